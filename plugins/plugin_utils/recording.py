# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How the verdict on a host gets into the ledger, and what of the host may get there with it.

The checks of the ledger itself (`ledger_checks`) join the verdict first. A key is recorded only when the machine proved
to hold it, an anchor only when the TPM of that key certified it: what a machine merely says cannot lock out the truth.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from types import MappingProxyType
from typing import Mapping, Optional

from ..module_utils.agent.machine import VOLUME
from .appraisal.case import EPHEMERAL
from .appraisal.judgement import Result, Status, Verdict
from .appraisal.policy import Policy
from .case_file import canonical
from .ledger.ledger import Conclusion, Ledger
from .ledger.memory import Past
from .ledger.records import TEXT_LIMIT, Anchor, Attestation, Identity
from .ledger_checks import proved_anchor, shown_identity, with_past

#: Compressed bytes that a host which is not trusted may add within a day, before its documents are only named. What
#: trust rests on is always kept.
DAILY_LIMIT = 32 * 1024 * 1024
#: What must be all that is missing for a host's first key to be recorded before an operator approves it.
_APPROVABLE = frozenset(("road",))
_NONE: Mapping[str, bytes] = MappingProxyType({})


@dataclass(frozen=True)
class Recorder:
    """A ledger, and how it is used for one host.

    With ``enrol`` a host that was never seen may become known; without it such a host stays ``unknown``. With
    ``first_use`` keys are recorded that nobody vouches for, so that an operator can approve them. Without ``write``
    the verdict is the same and nothing is recorded.
    """

    ledger: Ledger
    host: str
    policy: Policy = field(default_factory=Policy)
    enrol: bool = False
    first_use: bool = False
    write: bool = True

    def judged(self, result: Result, documents: Mapping[str, bytes]) -> tuple[Result, bool]:
        """Return the result with the ledger's checks, and whether the host's keys were (or would be) added."""
        shown = shown_identity(self.host, result, self.first_use)
        final = result

        def judge(past: Past) -> Conclusion:
            nonlocal final
            named = shown if shown is not None and past.new and self._may_record(past, shown, result) else None
            final = with_past(result, past, shown, self.policy, past.enrolled or named is not None)
            # The anchor is this host's only if the key that certified it is.
            known = shown is not None and (named is not None or (past.enrolled and not past.new))
            anchor = proved_anchor(result) if known and not past.conflicts else None
            return Conclusion(
                self._attestation(final, anchor, documents),
                {"result": result_document(final, self.policy)},
                named,
                None if final.verdict is Verdict.TRUSTED else DAILY_LIMIT,
            )

        key = _text(result.claims.get("volume_key_id"))
        concluded = self.ledger.conclude(self.host, VOLUME, shown, documents, judge, self.write, key)
        return final, concluded.identity is not None

    def unjudged(self, report: Mapping[str, object], documents: Mapping[str, bytes] = _NONE) -> None:
        """Record the verdict on a host whose answers could not be judged, with what is left of them."""
        attestation = Attestation(self.host, str(report["verdict"]), "none", volume=VOLUME)
        if self.write:
            result = {"result": canonical({"version": 1, **report})}
            self.ledger.append_within(attestation, documents, result, DAILY_LIMIT)

    def _may_record(self, past: Past, shown: Identity, result: Result) -> bool:
        """Tell whether a new key goes into the ledger: of a known host always, since it is what shall be noticed; of
        a new one when it is enrolled and would then be trusted, or lacks nothing but an operator's approval.

        A conflict is no reason to forget the key: it can only be noticed again, and decided, when it is recorded.
        """
        if past.enrolled:
            return True
        alone = replace(past, conflicts=(), sharing=frozenset()) if past.conflicts else past
        enrolled = with_past(result, alone, shown, self.policy, known=True)
        left = {check.name for check in enrolled.checks if check.status not in (Status.PASSED, Status.WAIVED)}
        approvable = self.first_use and left <= _APPROVABLE
        return self.enrol and (enrolled.verdict is Verdict.TRUSTED or approvable)

    def _attestation(self, result: Result, anchor: Optional[Anchor], documents: Mapping[str, bytes]) -> Attestation:
        claims = result.claims
        image = _manifest_name(documents)
        volume = None if claims.get("strategy") == EPHEMERAL else VOLUME
        return Attestation(
            self.host,
            result.verdict.value,
            result.road,
            volume=volume,
            volume_key_id=_text(claims.get("volume_key_id")),
            root_hash=_text(claims.get("root_hash")),
            reference_set=image,
            anchor=anchor,
        )


def result_document(result: Result, policy: Policy) -> bytes:
    """Return a result as it is kept: canonical JSON."""
    return canonical(
        {
            "version": 1,
            "verdict": result.verdict.value,
            "road": result.road,
            "policy": {"name": policy.name, "sha256": policy.digest},
            "trust": None if result.trust is None else result.trust.document(),
            "freshness": result.freshness.value,
            "keys": None if result.keys is None else asdict(result.keys),
            "anchor": None if result.anchor is None else asdict(result.anchor),
            "claims": dict(result.claims),
            "checks": [{**asdict(check), "status": check.status.value} for check in result.checks],
        }
    )


def _manifest_name(documents: Mapping[str, bytes]) -> Optional[str]:
    """Return the name of the image in its (signed) manifest, where the ledger can take it."""
    name = json.loads(documents["manifest"]).get("name") if "manifest" in documents else None
    return name if isinstance(name, str) and name.isprintable() and 0 < len(name) <= TEXT_LIMIT else None


def _text(value: object) -> Optional[str]:
    return None if value is None else str(value)
