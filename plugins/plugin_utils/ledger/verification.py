# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Look over a whole ledger for everything that was not written by appending to it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Iterator, Optional

from sqlalchemy import Connection, case, func, null, select, type_coerce
from sqlalchemy.exc import DBAPIError
from sqlalchemy.types import NullType

from . import documents as packing
from .chain import Finding, Flaw, Follower, Head
from .ledger import Ledger
from .schema import documents, entries, missing_guards

#: Findings that are told one by one; of a ledger that has more, the number of the others is told.
FINDING_LIMIT = 100
_BATCH = 500


@dataclass(frozen=True)
class Verification:
    """What `verify` found. ``head`` is worth keeping elsewhere only if the ledger is sound."""

    head: Head
    entries: int
    documents: int
    findings: tuple[Finding, ...]
    omitted: int

    @property
    def sound(self) -> bool:
        return not self.findings


def verify(ledger: Ledger, remembered: Optional[Head] = None) -> Verification:
    """Follow the chain from its beginning, read every document, and compare with a head that was kept elsewhere.

    Without ``remembered`` this cannot find out that the end of the ledger is missing, or that everything from some
    entry on was written again by somebody who recomputed the digests. With it, both are found up to that head.
    """
    survey = _Survey(remembered)
    with ledger.database.reading() as connection:
        survey.documents(connection)
        survey.entries(connection)
        for guard in missing_guards(connection):
            survey.found(
                Finding(Flaw.UNGUARDED, None, f"the trigger {guard}, which keeps the ledger append-only, is gone")
            )
    return survey.result()


class _Survey:
    def __init__(self, remembered: Optional[Head]) -> None:
        self._follower = Follower(remembered)
        self._findings: list[Finding] = []
        self._omitted = 0
        self._entries = 0
        #: Digests of sound documents, and of those among them that an entry names.
        self._kept: set[str] = set()
        self._named: set[str] = set()

    def found(self, *findings: Finding) -> None:
        room = FINDING_LIMIT - len(self._findings)
        self._findings.extend(findings[:room])
        self._omitted += len(findings[room:])

    def documents(self, connection: Connection) -> None:
        # The database may hold anything: sizes are asked for before contents, and contents are taken as they come.
        content = type_coerce(documents.c.content, NullType())
        bounded = case((func.length(documents.c.content) <= packing.PACKED_LIMIT, content), else_=null())
        query = select(documents.c.digest, type_coerce(bounded, NullType())).execution_options(yield_per=1)
        for digest, packed in self._rows(connection, query, "documents"):
            try:
                packing.unpack(packed, str(digest))
                self._kept.add(str(digest))
            except ValueError as damaged:
                self.found(Finding(Flaw.DOCUMENT, None, f"document {digest!r:.80} {damaged}"))

    def entries(self, connection: Connection) -> None:
        query = select(entries).order_by(entries.c.sequence).execution_options(yield_per=_BATCH)
        names = [column.name for column in entries.columns]
        for values in self._rows(connection, query, "entries"):
            row = dict(zip(names, values))
            self._entries += 1
            self.found(*self._follower.follow(row), *self._unkept(row))
        self.found(*self._follower.end())
        for digest in sorted(self._kept - self._named):
            self.found(Finding(Flaw.DOCUMENT, None, f"document {digest} belongs to no entry"))

    def result(self) -> Verification:
        return Verification(self._follower.head, self._entries, len(self._kept), tuple(self._findings), self._omitted)

    def _unkept(self, row: dict[str, object]) -> Iterator[Finding]:
        try:
            named = json.loads(str(row["documents"]))
            digests = {name: digest for name, digest in named.items() if isinstance(digest, str)}
        except (ValueError, AttributeError, RecursionError):
            return  # The follower has said so.
        self._named.update(digests.values())
        for name, digest in sorted(digests.items()):
            if digest not in self._kept:
                cause = f"the document {name!r:.80} of entry {row['sequence']} is gone or was changed"
                yield Finding(Flaw.DOCUMENT, self._follower.head.sequence, cause)

    def _rows(self, connection: Connection, query: object, what: str) -> Iterator[tuple[object, ...]]:
        try:
            yield from connection.execute(query)  # type: ignore[call-overload]
        except DBAPIError as damaged:
            said = str(damaged.orig).strip().splitlines() or [type(damaged.orig).__name__]
            after = f"after entry {self._follower.head.sequence} " if self._entries else ""
            self.found(Finding(Flaw.UNREADABLE, None, f"the {what} cannot be read {after}to their end: {said[0]}"))
