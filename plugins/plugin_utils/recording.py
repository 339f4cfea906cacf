# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the ledger has to say about a host that was just appraised, and what it is told of it.

Two checks join the verdict: ``identity`` (the keys are this host's and no other's) and ``anchor_freshness`` (the anchor
went forward since the highest one that was ever seen). A key is recorded only when the machine proved to hold it, an
anchor only when the TPM of that key certified it: what a machine merely says cannot lock out the truth.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from typing import Mapping, Optional

from ..module_utils.agent.machine import VOLUME
from .appraisal.judgement import Check, Naming, Result, Status, Verdict, freshness_check, verdict_of, waived
from .appraisal.policy import Freshness, Policy
from .appraisal.roads.trust import RoadName
from .appraisal.rules.demands import reached
from .case_file import canonical
from .ledger.ledger import Conclusion, Ledger, Past
from .ledger.records import TEXT_LIMIT, Anchor, Attestation, Identity

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
#: What must be all that is missing for a host's first key to be recorded before an operator approves it.
_APPROVABLE = frozenset(("road",))


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
        shown = self._shown(result)
        final = result

        def judge(past: Past) -> Conclusion:
            nonlocal final
            final = self._with_past(result, past, shown)
            named = shown if past.new and self._may_record(past, result) else None
            # The anchor is this host's only if the key that certified it is.
            known = shown is not None and (named is not None or (past.enrolled and not past.new))
            anchor = _anchor(result) if known and not past.conflicts else None
            return Conclusion(
                self._attestation(final, anchor, documents), {"result": result_document(final, self.policy)}, named
            )

        key = _text(result.claims.get("volume_key_id"))
        concluded = self.ledger.conclude(self.host, VOLUME, shown, documents, judge, self.write, key)
        return final, concluded.identity is not None

    def _with_past(self, result: Result, past: Past, shown: Optional[Identity]) -> Result:
        """Return the result with what only the ledger can say, as the policy sees it."""
        added = (*self._checks(past, shown, result), self._unique(past))
        checks = [*(check for check in result.checks if check.name != FRESHNESS_LEVEL)]
        checks += [waived(check, self.policy) for check in added]
        passed = frozenset(check.name for check in checks if check.status is Status.PASSED)
        level = reached(passed, result.freshness is Freshness.DATA)
        checks.append(freshness_check(self.policy.freshness, level))
        claims = {**result.claims, "identity": Naming.PINNED.value} if IDENTITY in passed else result.claims
        return replace(result, checks=tuple(checks), verdict=verdict_of(checks), claims=claims, freshness=level)

    def _unique(self, past: Past) -> Check:
        """Judge that no other host has a volume of this key: two volumes of one key are copies of each other."""
        if past.sharing:
            others = ", ".join(sorted(past.sharing)[:3])
            return Check(UNIQUE_KEY, Status.FAILED, f"{others} showed a volume with the same key")
        return Check(UNIQUE_KEY, Status.PASSED, "no other host of the ledger showed a volume with this key")

    def unjudged(self, report: Mapping[str, object]) -> None:
        """Record the verdict on a host whose answers could not be judged."""
        attestation = Attestation(self.host, str(report["verdict"]), "none", volume=VOLUME)
        if self.write:
            self.ledger.append(attestation, {"result": canonical({"version": 1, **report})})

    def _shown(self, result: Result) -> Optional[Identity]:
        """Return the identity that the machine proved, if what it proved counts."""
        if result.keys is None or not (result.road != "none" or self.first_use):
            return None
        road = result.road if result.road != "none" else RoadName.FIRST_USE.value
        return Identity(self.host, road, result.keys.ek, result.keys.ak)

    def _may_record(self, past: Past, result: Result) -> bool:
        """Tell whether a new key goes into the ledger: of a known host always, since it is what shall be noticed; of
        a new one when it is enrolled and nothing but an operator's approval is missing.
        """
        if past.enrolled:
            return True
        left = {check.name for check in result.checks if check.status is not Status.PASSED}
        approvable = self.first_use and left <= _APPROVABLE
        return self.enrol and (result.verdict is Verdict.TRUSTED or approvable)

    def _checks(self, past: Past, shown: Optional[Identity], result: Result) -> tuple[Check, Check]:
        identity = self._identity(past, shown)
        if identity.status is not Status.PASSED or result.anchor is None:
            ground = IDENTITY if identity.status is not Status.PASSED else "anchor_policy"
            return identity, Check(FRESHNESS, Status.UNKNOWN, f"not judged, because {ground} did not pass")
        return identity, _freshness(past.highest, result)

    def _identity(self, past: Past, shown: Optional[Identity]) -> Check:
        if past.conflicts:
            return Check(IDENTITY, Status.FAILED, f"{past.conflicts[0]}; no operator has approved it")
        if shown is None:
            return Check(IDENTITY, Status.UNKNOWN, "the machine did not prove which TPM it has")
        if not past.enrolled and not self.enrol:
            return Check(IDENTITY, Status.UNKNOWN, "the host was never enrolled")
        return Check(IDENTITY, Status.PASSED, "it is this host's key, and no other's")

    def _attestation(self, result: Result, anchor: Optional[Anchor], documents: Mapping[str, bytes]) -> Attestation:
        claims = result.claims
        image = _manifest_name(documents)
        return Attestation(
            self.host,
            result.verdict.value,
            result.road,
            volume=VOLUME,
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


def _freshness(highest: Optional[Anchor], result: Result) -> Check:
    anchor = _anchor(result)
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


def _anchor(result: Result) -> Optional[Anchor]:
    found = result.anchor
    return None if found is None else Anchor(found.generation, found.state, found.reset_count)


def _manifest_name(documents: Mapping[str, bytes]) -> Optional[str]:
    """Return the name of the image in its (signed) manifest, where the ledger can take it."""
    name = json.loads(documents["manifest"]).get("name") if "manifest" in documents else None
    return name if isinstance(name, str) and name.isprintable() and 0 < len(name) <= TEXT_LIMIT else None


def _text(value: object) -> Optional[str]:
    return None if value is None else str(value)
