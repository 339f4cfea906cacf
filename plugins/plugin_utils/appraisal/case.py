# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One machine's answers beside what they are judged by."""

from __future__ import annotations

import datetime
from dataclasses import dataclass, field
from functools import cached_property
from typing import Callable, Optional, Sequence

from cryptography import x509

from ...module_utils.errors import certain
from ...module_utils.tpm.anchor import Anchor, AnchorError
from .errors import AppraisalError, Undecided
from .evidence import Evidence, Identity
from .fields import Signed
from .policy import Policy
from .reference import BANK, PHASE_INITRD, PHASE_READY, Reference
from .reference_sets import describing
from .replay import LogCache, Replay
from .roads.choice import Allowed
from .roads.trust import AkTrust, Attester
from .structures import (
    NvAttest,
    PublicArea,
    QuoteAttest,
    Selection,
    Values,
    parse_nv_certification,
    parse_public,
    parse_quote,
)
from .tokens import Creation, Origin, Recovery, parse_recovery, parse_token

#: The strategy of images without a volume.
EPHEMERAL = "ephemeral"


@dataclass(frozen=True)
class Challenge:
    """What the verifier chose for one machine, once: never used again for another round.

    ``made`` is when it was chosen, None where that is not known.
    """

    nonce: bytes
    secret: bytes
    selection: Selection
    made: Optional[datetime.datetime] = None


@dataclass(frozen=True)
class Grounds:
    """What the operator judges by. ``references`` holds at least one set; ``now`` is when the answers came."""

    references: Sequence[Reference]
    authorities: Sequence[x509.Certificate]
    now: datetime.datetime
    strategy: Optional[str] = None
    #: The endorsement key this machine is known by, in one of the forms of ``roads.endorsement_key.names_key``.
    endorsement_key: Optional[str] = None
    allowed: Allowed = field(default_factory=Allowed)
    policy: Policy = field(default_factory=Policy)
    cache: LogCache = field(default_factory=LogCache)


class Case:
    """One machine's answers beside what they are judged by; each part is read once, when a check first needs it."""

    def __init__(self, identity: Identity, evidence: Evidence, challenge: Challenge, grounds: Grounds) -> None:
        self.identity = identity
        self.evidence = evidence
        self.challenge = challenge
        self.grounds = grounds
        #: The checks that passed so far.
        self.passed: set[str] = set()
        #: What the road established, once the check of that name passed.
        self.trust: Optional[AkTrust] = None

    @cached_property
    def reference(self) -> Reference:
        """The set of the image that runs."""
        waived = self.grounds.policy.waived
        compared = {pcr for pcr in (4, 7, 12, 13, 14) if f"pcr_{pcr}" not in waived}
        values, references = self.evidence.values, self.grounds.references
        policy, now = self.grounds.policy, self.grounds.now
        found = describing(references, PHASE_READY, values, lambda: self.replay, compared, policy, now)
        # By the first one a machine fails that no set describes.
        return found or references[0]

    @property
    def ephemeral(self) -> bool:
        """Whether the image that runs keeps nothing: then there is no volume to judge."""
        return self.reference.strategy == EPHEMERAL

    @cached_property
    def origin(self) -> Reference:
        """The set of the image whose initrd made the volume: the one that runs, or one that ran before an update."""
        found = self._made_by(self.creation.values, lambda: self.creation_replay, "evidence_boot")
        return found or self.reference

    @cached_property
    def endorsement(self) -> PublicArea:
        return parse_public(self.identity.endorsement)

    @cached_property
    def attestation(self) -> PublicArea:
        return parse_public(self.identity.attestation)

    @cached_property
    def quote(self) -> QuoteAttest:
        return parse_quote(self.evidence.quote.attest)

    @cached_property
    def attester(self) -> Attester:
        return Attester(self.attestation, self.quote.qualified_signer, self.challenge.nonce, self.evidence.values)

    @cached_property
    def replay(self) -> Replay:
        return self._replay(self.evidence.firmware_log, self.evidence.userspace_log)

    @cached_property
    def certified(self) -> Signed:
        if self.evidence.anchor is None:
            raise AppraisalError("no-anchor", "the machine's TPM has no anchor")
        return self.evidence.anchor

    @cached_property
    def certification(self) -> NvAttest:
        return parse_nv_certification(self.certified.attest)

    @cached_property
    def anchor(self) -> Anchor:
        try:
            return Anchor.unmarshal(self.certification.contents)
        except AnchorError as error:
            raise AppraisalError("malformed", "the anchor's content is not of a known version") from error

    @cached_property
    def creation(self) -> Creation:
        if self.evidence.token is None:
            raise AppraisalError("no-evidence", "the volume carries no evidence of its creation")
        return parse_token(self.evidence.token)

    @cached_property
    def recovery(self) -> Optional[Recovery]:
        """What the last recovery left, if there was one."""
        return None if self.evidence.recovery is None else parse_recovery(self.evidence.recovery)

    @cached_property
    def recovered_by(self) -> Optional[Reference]:
        """The set of the image in whose initrd the volume was recovered last, if it was and is a known one."""
        if self.recovery is None:
            return None
        return self._made_by(self.recovery.values, lambda: self.recovery_replay, "recovery_boot")

    def _made_by(self, values: Values, replay: Callable[[], Replay], check: str) -> Optional[Reference]:
        """Find the set of the initrd in which a token was made, by what is compared of its boot in ``check``."""
        compared = frozenset(() if check in self.grounds.policy.waived else (4, 7, 12))
        others = (one for one in self.grounds.references if one is not self.reference)
        return describing((self.reference, *others), PHASE_INITRD, values, replay, compared, self.grounds.policy)

    @property
    def anchored_by(self) -> Origin:
        """The evidence of the boot in which the anchor that is there now was made."""
        return self.recovery or self.creation

    @cached_property
    def creation_quote(self) -> QuoteAttest:
        return parse_quote(self.creation.quote.attest)

    @cached_property
    def creation_replay(self) -> Replay:
        return self._replay(self.creation.firmware_log, self.creation.userspace_log)

    @cached_property
    def recovery_replay(self) -> Replay:
        """The logs of the last recovery; call it only where there was one."""
        recovery = certain(self.recovery)
        return self._replay(recovery.firmware_log, recovery.userspace_log)

    def _replay(self, firmware: bytes, userspace: bytes) -> Replay:
        replayed = self.grounds.cache.replay(firmware, userspace, BANK)
        if replayed is None:
            raise Undecided("the machine's firmware has no event log")
        return replayed
