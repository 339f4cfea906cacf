# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The volume: where its key was made, of what, and whether that key opened it in this boot."""

from __future__ import annotations

import hashlib
import hmac
import re
from typing import Callable, Union

from ....module_utils.agent.evidence import QUOTED_PCRS
from ....module_utils.agent.machine import VOLUME
from ....module_utils.agent.opening import VOLUME_KEY_PCR
from ....module_utils.errors import certain
from ....module_utils.luks2.profile import AUTHENTICATED, LAYOUT
from ....module_utils.tpm.anchor import INDEX, anchor_name
from ..booted import enforced, explain, listed, secure_boot_configuration
from ..case import Case
from ..errors import AppraisalError
from ..quote import require_selection, require_signature, require_values, verify_quote
from ..reference import BANK, PHASE_INITRD, Reference
from ..reference_sets import require_accepted
from ..replay import Replay
from ..structures import Values, parse_quote
from ..tokens import Claims, Recovered, Recovery
from ..userspace_log import VOLUME_KEY
from .rule import Rule, signing_hash

#: The PCRs that the agent has quoted, and what that quote is called.
_COVERED = {bank: frozenset(pcrs) for bank, pcrs in QUOTED_PCRS.items()}
_CREATION = "quote of the volume's creation"


def _evidence_signature(case: Case) -> str:
    if not hmac.compare_digest(case.creation.attestation, case.attestation.raw):
        raise AppraisalError("other-attestation-key", "the volume was made on another TPM")
    require_signature(case.attestation, case.creation.quote.signature, case.creation_quote, _CREATION)
    return "the same attestation key signed it"


def _evidence_claims(case: Case) -> str:
    if not hmac.compare_digest(case.creation_quote.extra_data, hashlib.sha256(case.creation.claims.raw).digest()):
        raise AppraisalError("other-claims", "the quote of the volume's creation was made for other claims")
    return "the quote was made for these claims"


def _evidence_pcrs(case: Case) -> str:
    require_selection(case.creation_quote, _COVERED, _CREATION)
    require_values(case.creation_quote, case.creation.values, signing_hash(case.attestation))
    return "the PCR values are those that were quoted"


def _evidence_replay(case: Case) -> str:
    return explain(case.creation_replay, case.creation.values)


def _evidence_phase(case: Case) -> str:
    if case.creation.values[BANK][11] != case.origin.pcr_11[PHASE_INITRD]:
        raise AppraisalError("other-phase", "the volume was not made in the initrd of this image")
    require_accepted(case.origin, case.grounds.policy)
    return f"it was made in the initrd of {case.origin.name}"


def _evidence_boot(case: Case) -> str:
    return _boot(case.creation.values, case.origin, case.creation_replay)


def _boot(values: Values, reference: Reference, replayed: Replay) -> str:
    """Judge the boot in which a token was made, whose logs were found to lead to the values."""
    enforced(replayed)
    listed(values, 4, reference.pcr_4)
    listed(values, 12, reference.pcr_12)
    return secure_boot_configuration(values, reference, lambda: replayed)


def _evidence_image(case: Case) -> str:
    _require_image(case.creation.claims, case.origin, case)
    return "it holds the root of the manifest, by the strategy that is expected"


def _require_image(claims: Union[Claims, Recovered], image: Reference, case: Case) -> None:
    if not hmac.compare_digest(claims.root_hash, image.root_hash):
        raise AppraisalError("other-root", "the root is another than the manifest's")
    if claims.strategy != image.strategy or case.reference.strategy != image.strategy:
        raise AppraisalError("other-strategy", "the root is not assembled by the strategy that is expected")


def _evidence_encryption(case: Case) -> str:
    claims = case.creation.claims
    required = (VOLUME, AUTHENTICATED.encryption, AUTHENTICATED.integrity, LAYOUT.sector_size)
    if (claims.volume, claims.cipher, claims.integrity, claims.sector_size) != required:
        raise AppraisalError(
            "weak-volume", "the volume was not made with the authenticated encryption that is required"
        )
    return "it is encrypted and authenticated as required"


def _recoveries(case: Case) -> str:
    """Judge the evidence of the last recovery, which takes the creation's place for the anchor and the TPM's past."""
    recovery, times, most = case.recovery, case.anchor.recoveries, case.grounds.policy.volume.maximum_recoveries
    if (recovery.claims.recoveries if recovery else 0) != times:
        raise AppraisalError("recovery", f"the anchor counts {times} recoveries, and there is other evidence of them")
    if most is not None and times > most:
        raise AppraisalError("recovery", f"the volume was opened by its recovery key {times} times")
    if recovery is None:
        return _NEVER
    _require_recovery(case, recovery)
    return f"the volume was opened by its recovery key {times} times, last after {recovery.claims.code}"


def _require_recovery(case: Case, recovery: Recovery) -> None:
    made = case.creation.claims
    if not hmac.compare_digest(recovery.attestation, case.attestation.raw):
        raise AppraisalError("recovery", "the volume was recovered on another TPM")
    claimed, shown = hashlib.sha256(recovery.claims.raw).digest(), recovery.quote
    try:
        verify_quote(case.attestation, shown.attest, shown.signature, claimed, _COVERED, recovery.values)
    except AppraisalError as error:
        why = "it was made for other claims" if error.code == "other-nonce" else error.reason
        raise AppraisalError("recovery", f"the quote of the volume's recovery is not good: {why}") from error
    of_the_volume = (recovery.claims.volume_key_id, recovery.claims.luks_uuid, recovery.claims.volume)
    if of_the_volume != (made.volume_key_id, made.luks_uuid, made.volume):
        raise AppraisalError("recovery", "it was another volume that was recovered")


def _of_recovery(judge: Callable[[Case, Recovery], str]) -> Callable[[Case], str]:
    """Judge the last recovery, if there was one, as the making of the volume was judged."""

    def judged(case: Case) -> str:
        return _NEVER if case.recovery is None else judge(case, case.recovery)

    return judged


def _recovery_replay(case: Case, recovery: Recovery) -> str:
    return explain(case.recovery_replay, recovery.values)


def _recovery_phase(case: Case, recovery: Recovery) -> str:
    image = case.recovered_by
    if image is None:
        raise AppraisalError("other-phase", "it was not recovered in the initrd of an image that is known")
    require_accepted(image, case.grounds.policy)
    _require_image(recovery.claims, image, case)
    return f"it was recovered in the initrd of {image.name}"


def _recovery_boot(case: Case, recovery: Recovery) -> str:
    return _boot(recovery.values, certain(case.recovered_by), case.recovery_replay)


def _evidence_anchor(case: Case) -> str:
    evidence = case.anchored_by
    claims = evidence.claims
    then = anchor_name(case.origin.policy_key, evidence.values[BANK])
    names = (claims.anchor_name, case.certification.index_name)
    if not all(hmac.compare_digest(name, then) for name in names) or claims.anchor_index.lower() != f"0x{INDEX:08x}":
        raise AppraisalError("other-anchor", "the volume was made for another anchor")
    return "it was made for this anchor"


def _evidence_history(case: Case) -> str:
    now, then = case.quote.clock, parse_quote(case.anchored_by.quote.attest).clock
    same_boot = (now.reset_count, now.restart_count) == (then.reset_count, then.restart_count)
    if now.reset_count < then.reset_count or (same_boot and now.safe and then.safe and now.clock < then.clock):
        raise AppraisalError(
            "tpm-rolled-back", "the TPM is older now than when the volume was made: its state went back"
        )
    return f"the TPM was reset {now.reset_count - then.reset_count} times since"


def _volume_key(case: Case) -> str:
    """Find the key in PCR 15 by its place, which the replay proves: what a record says of its digest is not measured.

    The first measurement is made before anything of the volume runs. Whoever has another volume opened comes too late
    for it, whatever is extended and said afterwards.
    """
    claims, userspace = case.creation.claims, case.replay.userspace
    if any(event.pcr == VOLUME_KEY_PCR for event in case.replay.firmware.events):
        raise AppraisalError("volume-key", f"the firmware measured something into PCR {VOLUME_KEY_PCR}")
    first = userspace.digests(VOLUME_KEY_PCR, BANK)[:1] if userspace else ()
    said = (
        next((record.string for record in userspace.records if record.pcr == VOLUME_KEY_PCR), "") if userspace else ""
    )
    word = _RECOVERY_WORD.fullmatch(said)
    if word is not None and first == (hashlib.sha256(said.encode()).digest(),):
        raise AppraisalError("recovery-boot", f"this boot opened the volume by its recovery key, after {word[1]}")
    if not first or not hmac.compare_digest(first[0], claims.volume_key_id):
        raise AppraisalError("volume-key", f"the first measurement in PCR {VOLUME_KEY_PCR} is not that of this volume")
    measured = userspace.volume_keys(claims.volume, claims.luks_uuid, BANK, VOLUME_KEY_PCR) if userspace else ()
    if len(measured) != 1:
        raise AppraisalError("volume-key", f"the key of this volume was measured {len(measured)} times instead of once")
    if not hmac.compare_digest(measured[0], claims.volume_key_id):
        raise AppraisalError("volume-key", "the volume was opened with another key than it was made with")
    if not hmac.compare_digest(case.anchor.volume_key_id, claims.volume_key_id):
        raise AppraisalError("volume-key", "the anchor remembers another key than the volume was made with")
    return "made with it, anchored with it, opened with it in this boot"


def _no_volume(case: Case) -> str:
    """Find nothing of a volume, which an image that keeps nothing never opens."""
    userspace = case.replay.userspace
    records = userspace.records if userspace else ()
    if case.evidence.token is not None or any(record.kind == VOLUME_KEY for record in records):
        raise AppraisalError("unexpected-volume", "an ephemeral machine opened an encrypted root, or shows one")
    return "it keeps nothing, and shows no volume"


_NEVER = "the volume was never opened by its recovery key"
#: What the agent measures before it asks for a recovery key, with the code of the refusal.
_RECOVERY_WORD = re.compile(r"cvm-fde-recovery:([a-z0-9-]{1,24})")
#: What is judged of an image whose strategy keeps nothing, instead of an anchor and a volume.
NO_VOLUME = Rule("no_volume", ("log_replay",), _no_volume)
RULES = (
    Rule("evidence_signature", ("attestation_key",), _evidence_signature),
    Rule("evidence_claims", ("evidence_signature",), _evidence_claims),
    Rule("evidence_pcrs", ("evidence_signature",), _evidence_pcrs),
    Rule("evidence_replay", ("evidence_pcrs",), _evidence_replay),
    Rule("evidence_phase", ("evidence_pcrs",), _evidence_phase),
    Rule("evidence_boot", ("evidence_pcrs", "evidence_replay"), _evidence_boot),
    Rule("evidence_image", ("evidence_claims", "evidence_phase"), _evidence_image),
    Rule("evidence_encryption", ("evidence_claims", "evidence_phase"), _evidence_encryption),
    Rule("recoveries", ("evidence_claims", "anchor_state"), _recoveries),
    Rule("recovery_replay", ("recoveries",), _of_recovery(_recovery_replay)),
    Rule("recovery_phase", ("recoveries",), _of_recovery(_recovery_phase)),
    Rule("recovery_boot", ("recovery_phase", "recovery_replay"), _of_recovery(_recovery_boot)),
    Rule("evidence_anchor", ("evidence_claims", "evidence_pcrs", "anchor_policy", "recoveries"), _evidence_anchor),
    Rule("evidence_history", ("evidence_signature", "quote_signature", "recoveries"), _evidence_history),
    Rule("volume_key", ("evidence_claims", "log_replay", "anchor_state"), _volume_key),
)
