# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The judgement: every check in order, and the verdict that follows from them.

A check passes, fails, or stays unknown: because something to judge by is missing, or because a check it rests on did
not pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Callable, Mapping, Optional, Sequence, TypeVar

from ..naming import Naming
from .case import EPHEMERAL, Case, Challenge, Grounds
from .errors import AppraisalError, Undecided, contained
from .evidence import Evidence, Identity
from .policy import Freshness, Policy
from .reference import Reference
from .roads.trust import AkTrust, RoadName, digest
from .rules.demands import judge_freshness, reached
from .rules.rule import Rule
from .rules.table import rules_for

_T = TypeVar("_T")


class Status(str, Enum):
    """What became of one check."""

    PASSED = "passed"
    FAILED = "failed"
    UNKNOWN = "unknown"
    #: It did not pass, and the policy does not ask for it.
    WAIVED = "waived"


class Verdict(str, Enum):
    """What became of a machine."""

    #: Every check passed.
    TRUSTED = "trusted"
    #: Something contradicts what was expected.
    UNTRUSTED = "untrusted"
    #: All signed values are genuine, but the logs do not lead to them.
    UNEXPLAINED = "unexplained"
    #: Nothing contradicts, but something needed for a judgement is missing.
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Check:
    """One check's outcome; ``reason`` is a sentence for people."""

    name: str
    status: Status
    reason: str


@dataclass(frozen=True)
class Keys:
    """The keys that a machine proved to hold in one TPM, by the SHA-256 digests (hex) of their SubjectPublicKeyInfo.

    That it is a genuine TPM is not in here: that is what a road establishes.
    """

    ek: str
    ak: str


@dataclass(frozen=True)
class CertifiedAnchor:
    """The anchor that the attestation key certified, and the TPM's own count of its resets."""

    generation: int
    state: int
    reset_count: int
    complete: bool = False
    recoveries: int = 0
    refusals: int = 0
    last_refusal: str = ""


@dataclass(frozen=True)
class Result:
    """The verdict, the checks it follows from, and what the passed checks establish."""

    verdict: Verdict
    road: str
    checks: tuple[Check, ...]
    claims: Mapping[str, object]
    keys: Optional[Keys] = None
    anchor: Optional[CertifiedAnchor] = None
    freshness: Freshness = Freshness.BOOT
    #: What the road established, and the reference sets that were judged by: of the image that runs, of that which
    #: made the volume, and of that which recovered it last, as far as there are such; they may be one and the same.
    trust: Optional[AkTrust] = None
    references: tuple[Reference, ...] = ()


#: The only check of answers that could not be judged.
ANSWERS = "answers"
#: A failure of only these leaves genuine values without an explanation; any other failure contradicts.
_EXPLAINING = frozenset(("log_replay", "evidence_replay", "recovery_replay"))


def appraise(identity: Identity, evidence: Evidence, challenge: Challenge, grounds: Grounds) -> Result:
    """Judge one machine's answers to one challenge. Never raises for what the machine sent."""
    case = Case(identity, evidence, challenge, grounds)
    checks: dict[str, Check] = {}
    for rule in rules_for(case):
        checks[rule.name] = waived(_judge(rule, case), grounds.policy)
        if checks[rule.name].status is Status.PASSED:
            case.passed.add(rule.name)
    passed = frozenset(case.passed)
    return Result(
        verdict_of(tuple(checks.values())),
        _road(case, passed),
        tuple(checks.values()),
        _claims(case, passed),
        _keys(case, passed),
        _certified(case, passed),
        reached(passed, case.ephemeral and "no_volume" in passed),
        case.trust if "road" in passed else None,
        _used(case),
    )


def refused(status: Status, reason: str) -> Result:
    """Return the result for a machine whose answers could not be judged: ``FAILED`` or ``UNKNOWN``, and why."""
    verdict = Verdict.UNTRUSTED if status is Status.FAILED else Verdict.UNKNOWN
    return Result(verdict, "none", (Check(ANSWERS, status, reason),), {})


def _used(case: Case) -> tuple[Reference, ...]:
    origin = None if case.ephemeral else _if_readable(lambda: case.origin)
    recovered = None if case.ephemeral else _if_readable(lambda: case.recovered_by)
    used = (case.reference, origin or case.reference, recovered or case.reference)
    others = [place for place, one in enumerate(used) if one is not case.reference]
    return used[: max(others, default=0) + 1]


def _road(case: Case, passed: frozenset[str]) -> str:
    if case.trust is not None and "road" in passed:
        return case.trust.road.value
    return "ek-certificate" if passed >= {"endorsement_certificate", "credential_activation"} else "none"


def waived(check: Check, policy: Policy) -> Check:
    """Return the check as a policy sees it: what is waived keeps its reason and decides nothing."""
    if check.status is Status.PASSED or check.name not in policy.waived:
        return check
    return Check(check.name, Status.WAIVED, f"{check.status.value}, which the policy accepts: {check.reason}")


def freshness_check(demanded: Freshness, level: Freshness) -> Check:
    """Return the check of the level of freshness, once more for whoever knows more than the appraisal."""
    try:
        return Check("freshness", Status.PASSED, judge_freshness(demanded, level))
    except Undecided as undecided:
        return Check("freshness", Status.UNKNOWN, undecided.reason)


def _judge(rule: Rule, case: Case) -> Check:
    missing = [name for name in rule.needs if name not in case.passed]
    if missing:
        return Check(rule.name, Status.UNKNOWN, f"not judged, because {missing[0]} did not pass")
    try:
        return Check(rule.name, Status.PASSED, contained(lambda: rule.judge(case)))
    except AppraisalError as error:
        return Check(rule.name, Status.FAILED, error.reason)
    except Undecided as undecided:
        return Check(rule.name, Status.UNKNOWN, undecided.reason)


def verdict_of(checks: Sequence[Check]) -> Verdict:
    """Return the verdict that follows from the outcomes of checks."""
    failed = {check.name for check in checks if check.status is Status.FAILED}
    if failed - _EXPLAINING:
        return Verdict.UNTRUSTED
    if failed:
        return Verdict.UNEXPLAINED
    if not checks or any(check.status is Status.UNKNOWN for check in checks):
        return Verdict.UNKNOWN
    return Verdict.TRUSTED


def _claims(case: Case, passed: frozenset[str]) -> dict[str, object]:
    """Return what the passed checks establish; what none of them does is None.

    A public key is easily shown by somebody else: keys count only once the machine has used them.
    """
    activated = passed >= {"endorsement_key", "attestation_key", "credential_activation"}
    quoting = passed >= {"attestation_key", "quote_signature", "quote_nonce"}
    named = case.grounds.endorsement_key is not None or _road(case, passed) == RoadName.PINNED_EK.value
    claims = case.creation.claims if passed >= {"evidence_claims", "evidence_phase"} else None
    anchor = _if_readable(lambda: case.anchor) if "anchor_policy" in passed else None
    secure_boot = _if_readable(case.replay.secure_boot) if "log_replay" in passed else None
    return {
        "identity": (Naming.PINNED if activated and named else Naming.UNPINNED).value,
        "endorsement_key": digest(case.endorsement.key) if activated else None,
        "attestation_key": digest(case.attestation.key) if quoting else None,
        "image": case.reference.name if passed >= {"pcr_11", "quote_nonce"} else None,
        "made_by": case.origin.name if passed >= {"evidence_phase", "evidence_claims"} else None,
        "strategy": claims.strategy if claims else EPHEMERAL if "no_volume" in passed else None,
        "root_hash": _root_hash(case, passed),
        "volume_key_id": claims.volume_key_id.hex() if claims and "volume_key" in passed else None,
        "luks_uuid": claims.luks_uuid if claims else None,
        "partition_uuid": claims.partition_uuid if claims else None,
        "secure_boot": secure_boot.enabled if secure_boot else None,
        "pcr_policy": case.reference.policy_key.fingerprint if "anchor_policy" in passed else None,
        "anchor": {
            "state": anchor.state.name.lower() if anchor else None,
            "generation": anchor.generation if anchor else None,
            "complete": anchor.complete if anchor else None,
            "recoveries": anchor.recoveries if anchor else None,
            "refusals": anchor.refusals if anchor else None,
            "last_refusal": (anchor.last_refusal or None) if anchor else None,
            "matches": passed >= {"anchor_policy", "anchor_state", "evidence_anchor", "volume_key"},
        },
    }


def _root_hash(case: Case, passed: frozenset[str]) -> Optional[str]:
    """Return the root that the volume was made from, or of an ephemeral machine, the one of the image that runs."""
    if case.ephemeral:
        return case.reference.root_hash if passed >= {"no_volume", "pcr_11", "quote_nonce"} else None
    return case.creation.claims.root_hash if passed >= {"evidence_claims", "evidence_phase", "evidence_image"} else None


def _keys(case: Case, passed: frozenset[str]) -> Optional[Keys]:
    if not passed >= {"endorsement_key", "attestation_key", "credential_activation", "quote_signature", "quote_nonce"}:
        return None
    return Keys(digest(case.endorsement.key), digest(case.attestation.key))


def _certified(case: Case, passed: frozenset[str]) -> Optional[CertifiedAnchor]:
    anchor = _if_readable(lambda: case.anchor) if "anchor_policy" in passed else None
    if anchor is None:
        return None
    return CertifiedAnchor(
        anchor.generation,
        int(anchor.state),
        case.certification.clock.reset_count,
        anchor.complete,
        anchor.recoveries,
        anchor.refusals,
        anchor.last_refusal,
    )


def _if_readable(read: Callable[[], _T]) -> Optional[_T]:
    try:
        return contained(read)
    except AppraisalError:
        return None
