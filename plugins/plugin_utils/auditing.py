# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""An audit: is the ledger whole, do its verdicts hold when they are reached again, and does it fit the inventory?"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import AbstractSet, Iterator, Mapping, Optional, Sequence, cast

from .appraisal.errors import AppraisalError
from .appraisal.judgement import Result, Status, Verdict, refused
from .appraisal.roads.trust import RoadName
from .case_file import NO_DOCUMENTS, Today, judge_again, nonce_of, policy_of
from .ledger.chain import Head
from .ledger.ledger import Ledger
from .ledger.records import Action, Attestation, Decision, Entry, Kind
from .ledger.verification import Verification, verify
from .ledger_checks import shown_identity, with_past


class Doubt(str, Enum):
    """What can be wrong with a recorded attestation; the words are stable."""

    #: The host's last attestation is older than the policy lets a verdict count.
    STALE = "stale"
    #: It was trusted, and is not when it is judged again.
    VERDICT = "verdict"
    #: It says other things than its documents prove.
    RECORD = "record"
    #: Its documents answer a nonce that another entry answers too.
    COPIED = "copied"
    #: The host is known by keys that its last trusted attestation does not prove.
    KEYS = "keys"


@dataclass(frozen=True)
class Finding:
    """One doubt about one entry."""

    doubt: Doubt
    sequence: int
    host: str
    cause: str


@dataclass(frozen=True)
class Inventory:
    """How the inventory and the ledger differ. ``moved`` are the conflicts of identity, as sentences."""

    missing: tuple[str, ...]
    new: tuple[str, ...]
    moved: tuple[str, ...]


@dataclass(frozen=True)
class Change:
    """An attestation that was not trusted, and has another verdict when it is judged again. Nothing rests on it."""

    sequence: int
    host: str
    recorded: str
    now: str
    cause: str


@dataclass(frozen=True)
class Audit:
    """What an audit found.

    ``judged`` is the number of attestations that were judged again, ``unjudged`` that of those which left nothing to
    judge: the machine answered nothing, or more than is kept.
    """

    verification: Verification
    inventory: Inventory
    judged: int = 0
    unjudged: int = 0
    findings: tuple[Finding, ...] = ()
    changes: tuple[Change, ...] = ()

    @property
    def sound(self) -> bool:
        return self.verification.sound and not self.findings and not self.inventory.moved


def audit(
    ledger: Ledger,
    today: Today,
    remembered: Optional[Head] = None,
    hosts: Optional[Sequence[str]] = None,
    whole_history: bool = False,
) -> Audit:
    """Audit a ledger. What cannot be read is not judged: the chain's own findings say so first."""
    verification = verify(ledger, remembered)
    if not verification.sound:
        return Audit(verification, Inventory((), (), ()))
    last = {entry.record.host: entry for entry in ledger.entries(kind=Kind.ATTESTATION)}
    again = _Again(ledger, today, {entry.sequence for entry in last.values()})
    again.findings.extend(_copied(ledger))
    for entry in ledger.entries(kind=Kind.ATTESTATION) if whole_history else last.values():
        again.judge(entry)
    return Audit(
        verification,
        _compared(ledger, hosts),
        again.judged,
        again.unjudged,
        tuple(again.findings),
        tuple(again.changes),
    )


def _copied(ledger: Ledger) -> Iterator[Finding]:
    """Find evidence that was used before, by its nonce: what else is kept of a challenge, nobody signed."""
    seen: dict[bytes, int] = {}
    for entry, challenge in ledger.documents_called("challenge", Kind.ATTESTATION):
        nonce = nonce_of(challenge)
        if nonce is None:
            continue
        first = seen.setdefault(nonce, entry.sequence)
        if first != entry.sequence:
            cause = f"its nonce is that of entry {first}: no nonce is given twice"
            yield Finding(Doubt.COPIED, entry.sequence, entry.record.host, cause)


def _retired(ledger: Ledger) -> Mapping[str, int]:
    """Return when hosts were retired last, as the sequence of the decision."""
    decisions = ((entry, cast(Decision, entry.record)) for entry in ledger.entries(kind=Kind.DECISION))
    return {one.host: entry.sequence for entry, one in decisions if one.action is Action.RETIRE_HOST}


class _Again:
    """Judges attestations once more, one by one, and gathers what is found. ``latest`` are those of each host."""

    def __init__(self, ledger: Ledger, today: Today, latest: AbstractSet[int]) -> None:
        self._ledger = ledger
        self._today = today
        self._latest = latest
        self._register = ledger.register()
        self._retired = _retired(ledger)
        self.judged = 0
        self.unjudged = 0
        self.findings: list[Finding] = []
        self.changes: list[Change] = []

    def judge(self, entry: Entry) -> None:
        """Judge one attestation. Only what was trusted can be doubted: nothing rests on the others."""
        record = cast(Attestation, entry.record)
        result, cause = self._result(entry, record)
        if result is None:
            self.unjudged += 1
        else:
            self.judged += 1
        if record.verdict == Verdict.TRUSTED.value:
            self.findings.extend(self._doubts(entry, record, result, cause))
        elif result is not None and result.verdict.value != record.verdict:
            now = result.verdict.value
            self.changes.append(Change(entry.sequence, record.host, record.verdict, now, cause))

    def _result(self, entry: Entry, record: Attestation) -> tuple[Optional[Result], str]:
        """Return the result of now, and why it is no better; None where nothing was kept that could be judged."""
        documents = self._ledger.documents(entry)
        try:
            result = judge_again(documents, self._today)
            policy = policy_of(documents, self._today)
        except AppraisalError as error:
            if error.code == NO_DOCUMENTS:
                return None, error.reason
            return refused(Status.FAILED, error.reason), error.reason
        # What the ledger knew at that moment counts, not what it learned since.
        shown = shown_identity(record.host, result, RoadName.FIRST_USE in policy.roads)
        key = result.claims["volume_key_id"]
        past = self._ledger.past(entry, shown, None if key is None else str(key))
        result = with_past(result, past, shown, policy, past.enrolled)
        return result, _why(result)

    def _doubts(self, entry: Entry, record: Attestation, result: Optional[Result], cause: str) -> Iterator[Finding]:
        if result is None or result.verdict is not Verdict.TRUSTED:
            told = cause if result is None else f"{result.verdict.value} now: {cause}"
            yield Finding(Doubt.VERDICT, entry.sequence, record.host, told)
            return
        differing = [name for name, recorded, proved in _pairs(record, result) if recorded != proved]
        if differing:
            told = f"its documents prove another {', '.join(differing)} than it says"
            yield Finding(Doubt.RECORD, entry.sequence, record.host, told)
        if entry.sequence not in self._latest:
            return
        yield from self._stale(entry)
        known = self._register.accepted(record.host)
        if known is not None and (result.keys is None or known.key != result.keys.ek):
            told = "the host is known by another key than this attestation proves"
            yield Finding(Doubt.KEYS, entry.sequence, record.host, told)

    def _stale(self, entry: Entry) -> Iterator[Finding]:
        """Doubt a host's last verdict when the policy of today no longer lets it count, and the host is still there."""
        policy, now = self._today.policy, self._today.now
        if policy is None or now is None or self._retired.get(entry.record.host, 0) > entry.sequence:
            return
        age = (now - entry.recorded).total_seconds()
        if age > policy.valid_for:
            told = f"the host was attested {age:.0f} seconds ago, a verdict counts for {policy.valid_for}"
            yield Finding(Doubt.STALE, entry.sequence, entry.record.host, told)


def _pairs(record: Attestation, result: Result) -> Iterator[tuple[str, object, object]]:
    yield "road", record.road, result.road
    for name in ("volume_key_id", "root_hash"):
        yield name.replace("_", " "), getattr(record, name), result.claims[name]
    recorded, proved = record.anchor, result.anchor
    if recorded is not None:
        known = vars(recorded)
        yield "anchor", known, None if proved is None else {name: getattr(proved, name) for name in known}


def _why(result: Result) -> str:
    for status in (Status.FAILED, Status.UNKNOWN):
        reasons = [f"{check.name}: {check.reason}" for check in result.checks if check.status is status]
        if reasons:
            return reasons[0]
    return "without a reason"


def _compared(ledger: Ledger, hosts: Optional[Sequence[str]]) -> Inventory:
    register = ledger.register()
    moved = tuple(str(conflict) for conflict in register.conflicts())
    if hosts is None:
        return Inventory((), (), moved)
    known = register.hosts()
    return Inventory(tuple(sorted(known - set(hosts))), tuple(sorted(set(hosts) - known)), moved)


def as_json(found: Audit) -> Mapping[str, object]:
    """Return an audit as the result of a task has it."""
    verification = found.verification
    return {
        "sound": found.sound,
        "head": str(verification.head),
        "entries": verification.entries,
        "judged": found.judged,
        "unjudged": found.unjudged,
        "chain": [
            {"flaw": finding.flaw.value, "sequence": finding.sequence, "cause": finding.cause}
            for finding in verification.findings
        ],
        "omitted": verification.omitted,
        "attestations": [{**vars(finding), "doubt": finding.doubt.value} for finding in found.findings],
        "changes": [dict(vars(change)) for change in found.changes],
        "inventory": {name: list(hosts) for name, hosts in vars(found.inventory).items()},
    }
