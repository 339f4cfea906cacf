# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""An audit: is the ledger whole, do its verdicts hold when they are reached again, and does it fit the inventory?"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Iterable, Iterator, Mapping, Optional, Sequence

from .appraisal.errors import AppraisalError
from .appraisal.judgement import Result, Status, Verdict
from .case_file import Today, judge_again
from .ledger.chain import Head
from .ledger.ledger import Ledger
from .ledger.records import Attestation, Entry, Kind
from .ledger.verification import Verification, verify


class Doubt(str, Enum):
    """What can be wrong with a recorded attestation; the words are stable."""

    #: The host's last attestation is older than the policy lets a verdict count.
    STALE = "stale"
    #: It was trusted, and is not when it is judged again.
    VERDICT = "verdict"
    #: It says other things than its documents prove.
    RECORD = "record"
    #: Its documents answer a challenge that another entry answers too.
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
class Audit:
    """What an audit found. ``judged`` is the number of attestations that were judged again."""

    verification: Verification
    judged: int
    findings: tuple[Finding, ...]
    inventory: Inventory

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
        return Audit(verification, 0, (), Inventory((), (), ()))
    attestations = list(ledger.entries(kind=Kind.ATTESTATION))
    chosen = attestations if whole_history else list(_last(attestations))
    findings = [*_copied(attestations)]
    for entry in chosen:
        findings.extend(_judged(ledger, entry, today))
    return Audit(verification, len(chosen), tuple(findings), _compared(ledger, hosts))


def _last(attestations: Iterable[Entry]) -> Iterable[Entry]:
    """Return the last attestation of each host."""
    return {entry.record.host: entry for entry in attestations}.values()


def _copied(attestations: Iterable[Entry]) -> Iterator[Finding]:
    seen: dict[str, int] = {}
    for entry in attestations:
        challenge = entry.documents.get("challenge")
        if challenge is None:
            continue
        first = seen.setdefault(challenge, entry.sequence)
        if first != entry.sequence:
            cause = f"its challenge is that of entry {first}: no challenge is given twice"
            yield Finding(Doubt.COPIED, entry.sequence, entry.record.host, cause)


def _judged(ledger: Ledger, entry: Entry, today: Today) -> Iterator[Finding]:
    """Judge one attestation again. Only what was trusted is doubted: nothing rests on the others."""
    record = entry.record
    if not isinstance(record, Attestation) or record.verdict != Verdict.TRUSTED.value:
        return
    try:
        result = judge_again(ledger.documents(entry), today)
    except AppraisalError as error:
        yield Finding(Doubt.VERDICT, entry.sequence, record.host, error.reason)
        return
    if result.verdict is not Verdict.TRUSTED:
        yield Finding(Doubt.VERDICT, entry.sequence, record.host, f"{result.verdict.value} now: {_why(result)}")
        return
    differing = [name for name, recorded, proved in _pairs(record, result) if recorded != proved]
    if differing:
        cause = f"its documents prove another {', '.join(differing)} than it says"
        yield Finding(Doubt.RECORD, entry.sequence, record.host, cause)
    yield from _stale(ledger, entry, today)
    known = ledger.register().accepted(record.host)
    if known is not None and (result.keys is None or known.key != result.keys.ek) and _is_latest(ledger, entry):
        cause = "the host is known by another key than this attestation proves"
        yield Finding(Doubt.KEYS, entry.sequence, record.host, cause)


def _stale(ledger: Ledger, entry: Entry, today: Today) -> Iterator[Finding]:
    """Doubt a host's last verdict when the policy of today no longer lets it count."""
    if today.policy is None or today.now is None or not _is_latest(ledger, entry):
        return
    age = (today.now - entry.recorded).total_seconds()
    if age > today.policy.valid_for:
        cause = f"the host was attested {age:.0f} seconds ago, a verdict counts for {today.policy.valid_for}"
        yield Finding(Doubt.STALE, entry.sequence, entry.record.host, cause)


def _pairs(record: Attestation, result: Result) -> Iterator[tuple[str, object, object]]:
    yield "road", record.road, result.road
    for name in ("volume_key_id", "root_hash"):
        yield name.replace("_", " "), getattr(record, name), result.claims[name]
    recorded, proved = record.anchor, result.anchor
    if recorded is not None:
        known = vars(recorded)
        yield "anchor", known, None if proved is None else {name: getattr(proved, name) for name in known}


def _is_latest(ledger: Ledger, entry: Entry) -> bool:
    latest = ledger.latest(entry.record.host)
    return latest is not None and latest.sequence == entry.sequence


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
        "chain": [
            {"flaw": finding.flaw.value, "sequence": finding.sequence, "cause": finding.cause}
            for finding in verification.findings
        ],
        "omitted": verification.omitted,
        "attestations": [{**vars(finding), "doubt": finding.doubt.value} for finding in found.findings],
        "inventory": {name: list(hosts) for name, hosts in vars(found.inventory).items()},
    }
