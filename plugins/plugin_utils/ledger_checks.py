# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the ledger's past says about a machine that was just appraised, or is appraised once more years later.

Three checks join the verdict, and the level of freshness that the appraisal reached is judged again with them. All of
it follows from the result of the appraisal and from what was remembered at that moment, so an audit reaches the same.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Mapping, Optional

from .appraisal.judgement import Check, Result, Status, freshness_check, verdict_of, waived
from .appraisal.policy import Freshness, Policy
from .appraisal.roads.trust import RoadName
from .appraisal.rules.demands import reached
from .ledger.memory import Past
from .ledger.records import Anchor, Identity
from .naming import Naming

IDENTITY = "identity"
FRESHNESS = "anchor_freshness"
UNIQUE_KEY = "unique_volume_key"
#: The check of the appraisal that is made anew with what the ledger knows.
FRESHNESS_LEVEL = "freshness"
#: The checks that only a ledger can make, and what each promises.
CHECKS: Mapping[str, str] = {
    IDENTITY: "The keys that the machine proved to hold are those of this host, and of no other",
    FRESHNESS: "The anchor is not behind the highest one that this volume ever proved",
    UNIQUE_KEY: "No other host ever showed a volume with the same key",
}


def shown_identity(host: str, result: Result, first_use: bool) -> Optional[Identity]:
    """Return the identity that the machine proved, if what it proved counts: by a road, or where an operator may still
    approve it.
    """
    if result.keys is None or not (result.road != "none" or first_use):
        return None
    road = result.road if result.road != "none" else RoadName.FIRST_USE.value
    return Identity(host, road, result.keys.ek, result.keys.ak)


def proved_anchor(result: Result) -> Optional[Anchor]:
    """Return the anchor that the machine's TPM certified, as the ledger keeps it."""
    found = result.anchor
    return None if found is None else Anchor(found.generation, found.state, found.reset_count)


def with_past(result: Result, past: Past, shown: Optional[Identity], policy: Policy, known: bool) -> Result:
    """Return the result with what only the ledger can say, as the policy sees it.

    ``known`` says whether the host is one that the ledger knows, or becomes one by this very attestation.
    """
    added = (*_checks(past, shown, result, known), _unique(past, result))
    checks = [*(check for check in result.checks if check.name != FRESHNESS_LEVEL)]
    checks += [waived(check, policy) for check in added]
    passed = frozenset(check.name for check in checks if check.status is Status.PASSED)
    level = reached(passed, result.freshness is Freshness.DATA)
    checks.append(freshness_check(policy.freshness, level))
    claims = {**result.claims, "identity": Naming.PINNED.value} if IDENTITY in passed else result.claims
    return replace(result, checks=tuple(checks), verdict=verdict_of(checks), claims=claims, freshness=level)


def _checks(past: Past, shown: Optional[Identity], result: Result, known: bool) -> tuple[Check, Check]:
    identity = _identity(past, shown, known)
    if identity.status is Status.PASSED and result.freshness is Freshness.DATA:
        return identity, Check(FRESHNESS, Status.PASSED, "the machine keeps nothing that could have gone back")
    if identity.status is not Status.PASSED or result.anchor is None:
        ground = IDENTITY if identity.status is not Status.PASSED else "anchor_policy"
        return identity, Check(FRESHNESS, Status.UNKNOWN, f"not judged, because {ground} did not pass")
    return identity, _freshness(past.highest, result)


def _identity(past: Past, shown: Optional[Identity], known: bool) -> Check:
    if past.conflicts:
        return Check(IDENTITY, Status.FAILED, f"{past.conflicts[0]}; no operator has approved it")
    if shown is None:
        return Check(IDENTITY, Status.UNKNOWN, "the machine did not prove which TPM it has")
    if not known:
        return Check(IDENTITY, Status.UNKNOWN, "the host was never enrolled")
    return Check(IDENTITY, Status.PASSED, "it is this host's key, and no other's")


def _freshness(highest: Optional[Anchor], result: Result) -> Check:
    anchor = proved_anchor(result)
    if anchor is None or highest is None:
        return Check(FRESHNESS, Status.PASSED, "it is the first one of this volume that is remembered")
    behind = anchor.behind(highest)
    if behind:
        parts = ", ".join(
            f"{name.replace('_', ' ')} {getattr(anchor, name)} after {getattr(highest, name)}" for name in behind
        )
        return Check(FRESHNESS, Status.FAILED, f"the TPM went back: {parts}")
    return Check(
        FRESHNESS, Status.PASSED, f"generation {anchor.generation}, the TPM was reset {anchor.reset_count} times"
    )


def _unique(past: Past, result: Result) -> Check:
    """Judge that no other host has a volume of this key: two volumes of one key are copies of each other."""
    if result.freshness is Freshness.DATA:
        return Check(UNIQUE_KEY, Status.PASSED, "the machine keeps nothing, so it has no volume key")
    if result.claims.get("volume_key_id") is None:
        return Check(UNIQUE_KEY, Status.UNKNOWN, "not judged, because volume_key did not pass")
    if past.sharing:
        others = ", ".join(sorted(past.sharing)[:3])
        return Check(UNIQUE_KEY, Status.FAILED, f"{others} showed a volume with the same key")
    return Check(UNIQUE_KEY, Status.PASSED, "no other host of the ledger showed a volume with this key")
