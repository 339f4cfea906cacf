# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The hash chain, and what it shows to whoever follows it. Nothing here knows a database.

An entry's digest is SHA-256 over a domain and the canonical JSON (sorted keys, no spaces, ASCII) of all its columns but
the digest itself; the digest of the entry before it is one of them. A chain shows every change that was not followed
through to its end. It cannot show that its end is missing, or that everything from some entry on was written again:
for that, somebody else has to remember a `Head`.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from dataclasses import dataclass
from enum import Enum
from typing import Optional

from ...module_utils.errors import FdeError
from .records import Row, entry_of

GENESIS = "0" * 64
_DOMAIN = b"cvm.fde ledger entry\0"
_HEAD = re.compile(r"([0-9]{1,19}):([0-9a-f]{64})")


class Flaw(str, Enum):
    """What can be wrong with a ledger; the words are stable."""

    EDITED = "edited"
    MISSING = "missing"
    MISPLACED = "misplaced"
    DETACHED = "detached"
    MALFORMED = "malformed"
    UNREADABLE = "unreadable"
    TRUNCATED = "truncated"
    REWRITTEN = "rewritten"
    DOCUMENT = "document"
    UNGUARDED = "unguarded"


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, and the entry at which it shows (None where no entry can be named)."""

    flaw: Flaw
    sequence: Optional[int]
    cause: str


@dataclass(frozen=True)
class Head:
    """How long the chain is and where it ends. Kept elsewhere, it is what a truncated ledger is found by."""

    sequence: int
    digest: str

    def __str__(self) -> str:
        return f"{self.sequence}:{self.digest}"

    @classmethod
    def parse(cls, text: str) -> Head:
        """Read what ``str(head)`` wrote; FdeError for anything else."""
        match = _HEAD.fullmatch(text.strip())
        if match is None:
            raise FdeError(
                "ledger head",
                "a head is the number of the last entry, a colon and 64 hex digits",
                "Give the head exactly as the ledger printed it",
            )
        return cls(int(match[1]), match[2])


EMPTY = Head(0, GENESIS)


def digest_of(row: Row) -> str:
    """Compute the digest of an entry from its columns; ValueError where a column holds what has no canonical form."""
    columns = {name: value for name, value in row.items() if name != "digest"}
    for value in columns.values():
        if not (value is None or type(value) in (str, int)):
            raise ValueError("a column holds neither text nor an integer")
    canonical = json.dumps(columns, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(_DOMAIN + canonical.encode("ascii")).hexdigest()


def link(columns: Row, head: Head) -> dict[str, object]:
    """Return the row that comes after ``head``: ``columns`` in their place, with their digest."""
    row = {**columns, "sequence": head.sequence + 1, "previous": head.digest}
    return {**row, "digest": digest_of(row)}


class Follower:
    """Follow a chain row by row, in the order of their sequence, and say what is wrong with each."""

    def __init__(self, remembered: Optional[Head] = None) -> None:
        self.head = EMPTY
        self._remembered = remembered

    def follow(self, row: Row) -> list[Finding]:
        """Judge the next row. What it says of itself is taken as its place, so that one flaw is told once."""
        sequence = row["sequence"]
        if type(sequence) is not int:
            return [Finding(Flaw.MISPLACED, None, f"an entry after {self.head.sequence} has no number")]
        findings = [*self._placed(sequence), *self._linked(row, sequence), *_intact(row, sequence)]
        digest = row["digest"]
        self.head = Head(max(sequence, self.head.sequence), digest if isinstance(digest, str) else "")
        if self._remembered and sequence == self._remembered.sequence and not self._is_remembered(self.head):
            findings.append(
                Finding(Flaw.REWRITTEN, sequence, f"entry {sequence} is not the one that the remembered head names")
            )
        return findings

    def end(self) -> list[Finding]:
        """Judge the end of the chain against the remembered head."""
        remembered = self._remembered
        if remembered is None or remembered.sequence <= self.head.sequence:
            return []
        return [
            Finding(
                Flaw.TRUNCATED,
                remembered.sequence,
                f"the ledger ends at entry {self.head.sequence}, the remembered head is entry {remembered.sequence}",
            )
        ]

    def _placed(self, sequence: int) -> list[Finding]:
        expected = self.head.sequence + 1
        if sequence == expected:
            return []
        if sequence < expected:
            return [
                Finding(Flaw.MISPLACED, sequence, f"entry {sequence} is there twice or was never given that number")
            ]
        missing = f"entry {expected} is" if sequence == expected + 1 else f"entries {expected} to {sequence - 1} are"
        return [Finding(Flaw.MISSING, expected, f"{missing} missing")]

    def _linked(self, row: Row, sequence: int) -> list[Finding]:
        if row["previous"] == self.head.digest:
            return []
        return [
            Finding(
                Flaw.DETACHED,
                sequence,
                f"entry {sequence} does not continue the one before it, which was replaced, moved or dropped",
            )
        ]

    def _is_remembered(self, head: Head) -> bool:
        remembered = self._remembered
        return remembered is not None and hmac.compare_digest(remembered.digest, head.digest)


def _intact(row: Row, sequence: int) -> list[Finding]:
    try:
        intact = row["digest"] == digest_of(row)
    except ValueError:
        intact = False
    if not intact:
        return [Finding(Flaw.EDITED, sequence, f"entry {sequence} is not what its digest was made from")]
    try:
        entry_of(row)
    except (ValueError, TypeError, RecursionError) as malformed:
        return [Finding(Flaw.MALFORMED, sequence, f"entry {sequence} is no record of this ledger: {malformed}")]
    return []
