# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The checks, each a judge of one promise. Their table is the only place where a check exists.

Its order is that of judgement, and the documentation is compared with it. A judge returns why its check passed, and
raises ``AppraisalError`` when it failed or ``Undecided`` when something to judge by is missing.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass
from typing import Callable

from ...module_utils.agent.evidence import QUOTED_PCRS
from ...module_utils.agent.machine import VOLUME
from ...module_utils.agent.opening import VOLUME_KEY_PCR
from ...module_utils.luks2.profile import AUTHENTICATED, LAYOUT
from ...module_utils.tpm import templates
from ...module_utils.tpm.anchor import INDEX, SIZE, State, anchor_name
from .case import BANK, Case
from .endorsement import parse_certificate, verify_endorsement
from .errors import AppraisalError, Undecided
from .reference import PHASE_INITRD, PHASE_READY, Reference
from .replay import Replay, unexplained
from .roads import choice
from .roads.endorsement_key import Activation, names_key
from .structures import PublicArea, QuoteAttest, Values, pcr_digest, qualified_name, same_selection, verify_by

#: Quoted unless the operator says otherwise: everything but IMA's PCR 10 and the resettable 16 and 23.
DEFAULT_PCRS = (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 14, 15)
#: Without these there is nothing to judge.
REQUIRED_PCRS = (4, 7, 11, 12, 13, 15)


# --- the keys
# ----------------------------------------------------------------------------------------------------------


def _attestation_key(case: Case) -> str:
    key = case.attestation
    if not key.has(templates.RESTRICTED | templates.SIGN | templates.FIXED_TPM | templates.FIXED_PARENT):
        raise AppraisalError("bad-attestation-key", "the attestation key may sign what the TPM did not make")
    if key.has(templates.DECRYPT) or not key.has(templates.SENSITIVE_DATA_ORIGIN):
        raise AppraisalError("bad-attestation-key", "the attestation key can decrypt, or was not made in the TPM")
    if not templates.AK_ECC_P256.made(key.raw):
        raise AppraisalError("bad-attestation-key", "the attestation key was not made from this collection's template")
    _tried = key.key
    return "it is a restricted signing key of its TPM"


def _endorsement_key(case: Case) -> str:
    key = case.endorsement
    if not any(template.made(key.raw) for template in (templates.EK_RSA_2048, templates.EK_ECC_P256)):
        raise AppraisalError("bad-endorsement-key", "the endorsement key was not made from a standard template")
    _tried = key.key
    known = case.grounds.endorsement_key
    if known is not None and not names_key(known, key):
        raise AppraisalError("other-machine", "it is not the endorsement key that this machine is known by")
    return "it is a restricted storage key by a standard template"


def _endorsement_certificate(case: Case) -> str:
    if not case.grounds.authorities:
        raise Undecided("no authority for endorsement keys was given")
    if case.identity.endorsement_certificate is None:
        raise Undecided("the TPM holds no certificate of its endorsement key")
    certificate = parse_certificate(case.identity.endorsement_certificate)
    chain = verify_endorsement(certificate, case.endorsement, case.grounds.authorities, (), case.grounds.now)
    return f"a given authority vouches for the endorsement key, over {len(chain) - 1} signatures"


def _credential_activation(case: Case) -> str:
    if not hmac.compare_digest(case.evidence.activated, case.challenge.secret):
        raise AppraisalError("not-activated", "the TPM did not return the secret that only it could decrypt")
    return "the attestation key is in the TPM of the endorsement key"


def _road(case: Case) -> str:
    activation = Activation(case.endorsement, case.attestation.name, case.challenge.secret, case.evidence.activated)
    grounds = case.grounds
    shown = choice.Shown(case.attester, activation, case.identity.endorsement_certificate)
    case.trust = choice.walk(grounds.allowed, shown, grounds.authorities, grounds.now)
    return f"the road {case.trust.road.value} leads to the attestation key"


# --- the quote
# ---------------------------------------------------------------------------------------------------------


def _quote_signature(case: Case) -> str:
    verify_by(case.attestation, case.evidence.quote.signature, case.quote.raw)
    if case.quote.qualified_signer != qualified_name(case.attestation):
        raise AppraisalError("other-signer", "the quote names another signer than the attestation key")
    return "the attestation key signed it"


def _quote_nonce(case: Case) -> str:
    if not hmac.compare_digest(case.quote.extra_data, case.challenge.nonce):
        raise AppraisalError("other-nonce", "the quote answers another nonce: it is old, or another machine's")
    return "it answers the nonce of this round"


def _quote_selection(case: Case) -> str:
    if not same_selection(case.quote.selection, case.challenge.selection):
        raise AppraisalError("other-selection", "the quote covers other PCRs than were asked for")
    return "it covers exactly the PCRs that were asked for"


def _quote_digest(case: Case) -> str:
    _match_digest(case.quote, case.evidence.values, case.attestation)
    return "the PCR values are those that were quoted"


def _match_digest(quote: QuoteAttest, values: Values, key: PublicArea) -> None:
    hash_name = key.scheme.hash_name if key.scheme else BANK
    if not hmac.compare_digest(pcr_digest(quote, values, hash_name), quote.pcr_digest):
        raise AppraisalError("pcr-values", "the PCR values are not those that were quoted")


# --- logs and reference values
# -----------------------------------------------------------------------------------------


def _firmware_log(case: Case) -> str:
    log = case.grounds.cache.firmware(case.evidence.firmware_log)
    if log is None:
        raise Undecided("the machine's firmware has no event log")
    return f"{len(log.events)} events up to and after leaving the boot services (event {log.boundary})"


def _userspace_log(case: Case) -> str:
    log = case.grounds.cache.userspace(case.evidence.userspace_log)
    if log is None:
        raise Undecided("the machine has no log of systemd's measurements")
    if not case.evidence.userspace_complete:
        raise Undecided("systemd's log is marked incomplete: a writer died")
    return f"{len(log.records)} measurements"


def _log_replay(case: Case) -> str:
    return _explain(case.replay, case.evidence.values)


def _explain(replay: Replay, values: Values) -> str:
    left = unexplained(replay.values, values[BANK])
    if left:
        raise AppraisalError("unexplained", f"the logs do not lead to PCR {', '.join(str(pcr) for pcr in left)}")
    return f"the logs lead to all {len(values[BANK])} PCRs"


def _secure_boot(case: Case) -> str:
    return _enforced(case.replay)


def _enforced(replay: Replay) -> str:
    if not replay.secure_boot().enabled:
        raise AppraisalError("secure-boot-off", "the firmware started without Secure Boot")
    return "the firmware measured that Secure Boot was on"


def _listed(values: Values, pcr: int, legal: frozenset[bytes]) -> str:
    if values[BANK].get(pcr) not in legal:
        raise AppraisalError(f"pcr-{pcr}", f"PCR {pcr} does not have a value that the manifest lists")
    return "the manifest lists its value"


def _pcr_4(case: Case) -> str:
    return _listed(case.evidence.values, 4, case.reference.pcr_4)


def _pcr_7(case: Case) -> str:
    return _secure_boot_configuration(case.evidence.values, case.replay, case.reference)


def _secure_boot_configuration(values: Values, replay: Replay, reference: Reference) -> str:
    if reference.pcr_7 is not None:
        return _listed(values, 7, reference.pcr_7)
    if reference.signer is None:
        raise Undecided("the manifest lists no value of PCR 7 and names no Secure Boot certificate")
    if replay.secure_boot().authorities != {reference.signer}:
        raise AppraisalError(
            "pcr-7", "the image was not admitted by the certificate that the manifest names, and it alone"
        )
    return "only the certificate that the manifest names admitted what was started"


def _pcr_11(case: Case) -> str:
    return _listed(case.evidence.values, 11, frozenset((case.reference.pcr_11[PHASE_READY],)))


def _pcr_12(case: Case) -> str:
    return _listed(case.evidence.values, 12, case.reference.pcr_12)


def _pcr_13(case: Case) -> str:
    return _listed(case.evidence.values, 13, case.reference.pcr_13)


# --- the anchor
# --------------------------------------------------------------------------------------------------------


def _anchor_signature(case: Case) -> str:
    verify_by(case.attestation, case.certified.signature, case.certification.raw)
    if case.certification.qualified_signer != qualified_name(case.attestation):
        raise AppraisalError(
            "other-signer", "the certification of the anchor names another signer than the attestation key"
        )
    if not hmac.compare_digest(case.certification.extra_data, case.challenge.nonce):
        raise AppraisalError("other-nonce", "the certification of the anchor answers another nonce")
    now, then = case.quote.clock, case.certification.clock
    if (now.reset_count, now.restart_count) != (then.reset_count, then.restart_count):
        raise AppraisalError("other-boot", "quote and certification of the anchor are not from the same boot")
    return "the attestation key certified it under the nonce of this round"


def _anchor_policy(case: Case) -> str:
    expected = anchor_name(case.reference.policy_key, case.evidence.values[BANK])
    if not hmac.compare_digest(case.certification.index_name, expected):
        raise AppraisalError(
            "foreign-anchor", "what is at the anchor's place is not an anchor of this image, booted as in this boot"
        )
    if case.certification.offset != 0 or len(case.certification.contents) != SIZE:
        raise AppraisalError("foreign-anchor", "the certification does not cover the whole anchor")
    return "only signed phases of the image, booted as in this boot, can have written it"


def _anchor_state(case: Case) -> str:
    if case.anchor.state is not State.READY:
        raise AppraisalError("anchor-not-ready", "the volume's creation was never finished")
    return f"it is ready, at generation {case.anchor.generation}"


# --- evidence of the volume's creation
# ---------------------------------------------------------------------------------


def _evidence_signature(case: Case) -> str:
    if not hmac.compare_digest(case.creation.attestation, case.attestation.raw):
        raise AppraisalError("other-attestation-key", "the volume was made on another TPM")
    verify_by(case.attestation, case.creation.quote.signature, case.creation_quote.raw)
    if case.creation_quote.qualified_signer != qualified_name(case.attestation):
        raise AppraisalError("other-signer", "the quote of the volume's creation names another signer")
    return "the same attestation key signed it"


def _evidence_claims(case: Case) -> str:
    if not hmac.compare_digest(case.creation_quote.extra_data, hashlib.sha256(case.creation.claims.raw).digest()):
        raise AppraisalError("other-claims", "the quote of the volume's creation was made for other claims")
    return "the quote was made for these claims"


def _evidence_pcrs(case: Case) -> str:
    if not same_selection(case.creation_quote.selection, QUOTED_PCRS):
        raise AppraisalError("other-selection", "the quote of the volume's creation covers other PCRs than the agent's")
    _match_digest(case.creation_quote, case.creation.values, case.attestation)
    return "the PCR values are those that were quoted"


def _evidence_replay(case: Case) -> str:
    return _explain(case.creation_replay, case.creation.values)


def _evidence_phase(case: Case) -> str:
    if case.creation.values[BANK][11] != case.reference.pcr_11[PHASE_INITRD]:
        raise AppraisalError("other-phase", "the volume was not made in the initrd of this image")
    return "it was made in the initrd of this image"


def _evidence_boot(case: Case) -> str:
    _enforced(case.creation_replay)
    _listed(case.creation.values, 4, case.reference.pcr_4)
    _listed(case.creation.values, 12, case.reference.pcr_12)
    return _secure_boot_configuration(case.creation.values, case.creation_replay, case.reference)


def _evidence_image(case: Case) -> str:
    claims, expected = case.creation.claims, case.grounds.strategy or case.reference.strategy
    if not hmac.compare_digest(claims.root_hash, case.reference.root_hash):
        raise AppraisalError("other-root", "the volume was made from another root than the manifest's")
    if claims.strategy != expected or case.reference.strategy != expected:
        raise AppraisalError("other-strategy", "the root is not assembled by the strategy that is expected")
    return "it holds the root of the manifest, by the strategy that is expected"


def _evidence_encryption(case: Case) -> str:
    claims = case.creation.claims
    required = (VOLUME, AUTHENTICATED.encryption, AUTHENTICATED.integrity, LAYOUT.sector_size)
    if (claims.volume, claims.cipher, claims.integrity, claims.sector_size) != required:
        raise AppraisalError(
            "weak-volume", "the volume was not made with the authenticated encryption that is required"
        )
    return "it is encrypted and authenticated as required"


def _evidence_anchor(case: Case) -> str:
    claims = case.creation.claims
    then = anchor_name(case.reference.policy_key, case.creation.values[BANK])
    names = (claims.anchor_name, case.certification.index_name)
    if not all(hmac.compare_digest(name, then) for name in names) or claims.anchor_index.lower() != f"0x{INDEX:08x}":
        raise AppraisalError("other-anchor", "the volume was made for another anchor")
    return "it was made for this anchor"


def _evidence_history(case: Case) -> str:
    now, then = case.quote.clock, case.creation_quote.clock
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


@dataclass(frozen=True)
class Rule:
    """One check: its name, the checks it rests on, and the judge, which returns why it passed or raises why it did
    not.
    """

    name: str
    needs: tuple[str, ...]
    judge: Callable[[Case], str]


_SIGNED = ("quote_signature", "quote_digest")
RULES: tuple[Rule, ...] = (
    Rule("endorsement_key", (), _endorsement_key),
    Rule("endorsement_certificate", ("endorsement_key",), _endorsement_certificate),
    Rule("attestation_key", (), _attestation_key),
    Rule("credential_activation", ("endorsement_key", "attestation_key"), _credential_activation),
    Rule("quote_signature", ("attestation_key",), _quote_signature),
    Rule("quote_nonce", ("quote_signature",), _quote_nonce),
    Rule("quote_selection", ("quote_signature",), _quote_selection),
    Rule("quote_digest", ("quote_signature", "quote_selection"), _quote_digest),
    Rule("firmware_log", (), _firmware_log),
    Rule("userspace_log", (), _userspace_log),
    Rule("log_replay", (*_SIGNED, "firmware_log", "userspace_log"), _log_replay),
    Rule("secure_boot", ("log_replay",), _secure_boot),
    Rule("pcr_4", _SIGNED, _pcr_4),
    Rule("pcr_7", ("log_replay",), _pcr_7),
    Rule("pcr_11", _SIGNED, _pcr_11),
    Rule("pcr_12", _SIGNED, _pcr_12),
    Rule("pcr_13", _SIGNED, _pcr_13),
    Rule("anchor_signature", ("attestation_key", "quote_signature"), _anchor_signature),
    Rule("anchor_policy", ("anchor_signature", "quote_digest", "pcr_7", "pcr_12"), _anchor_policy),
    Rule("anchor_state", ("anchor_policy",), _anchor_state),
    Rule("evidence_signature", ("attestation_key",), _evidence_signature),
    Rule("evidence_claims", ("evidence_signature",), _evidence_claims),
    Rule("evidence_pcrs", ("evidence_signature",), _evidence_pcrs),
    Rule("evidence_replay", ("evidence_pcrs",), _evidence_replay),
    Rule("evidence_phase", ("evidence_pcrs",), _evidence_phase),
    Rule("evidence_boot", ("evidence_pcrs", "evidence_replay"), _evidence_boot),
    Rule("evidence_image", ("evidence_claims", "evidence_phase"), _evidence_image),
    Rule("evidence_encryption", ("evidence_claims", "evidence_phase"), _evidence_encryption),
    Rule("evidence_anchor", ("evidence_claims", "evidence_pcrs", "anchor_policy"), _evidence_anchor),
    Rule("evidence_history", ("evidence_signature", "quote_signature"), _evidence_history),
    Rule("volume_key", ("evidence_claims", "log_replay", "anchor_state"), _volume_key),
)

#: Which road was taken, where an operator allows others than the default.
ROAD = Rule("road", ("endorsement_key", "credential_activation", "quote_signature"), _road)


def rules_for(allowed: choice.Allowed) -> tuple[Rule, ...]:
    """Return the checks to make: those of `RULES`, with `ROAD` instead of the certificate where other roads count."""
    if allowed.default:
        return RULES
    rules = [rule for rule in RULES if rule.name != "endorsement_certificate"]
    place = 1 + max(number for number, rule in enumerate(rules) if rule.name in ROAD.needs)
    return (*rules[:place], ROAD, *rules[place:])
