# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The ledger: what every host ever showed, what was thought of it, and what was decided about it.

It only grows. Whoever can write to its database can still damage it; `verification.verify` finds that out, and how much
it finds depends on a `Head` that was kept elsewhere. Each method is one transaction; what happens in it is told by
`reading`, `writing`, `memory` and `decisions`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from types import MappingProxyType
from typing import Callable, Iterator, Mapping, Optional, Sequence, Union, cast

from sqlalchemy import Connection, Select, select

from . import decisions, memory
from .chain import Head
from .database import Database
from .identities import Conflict, Register
from .memory import Past
from .reading import PAGE, documents_of, entries_of, head_of, in_order
from .records import Anchor, Attestation, Decision, Entry, Identity, Kind, Record, text_of
from .schema import entries
from .writing import Packed, within, write

_NONE: Mapping[str, bytes] = MappingProxyType({})


@dataclass(frozen=True)
class Conclusion:
    """What is to be recorded of a host: the verdict, what it rests on besides what was seen, and whether its keys
    are.
    """

    attestation: Attestation
    documents: Mapping[str, bytes]
    identity: Optional[Identity] = None
    #: Compressed bytes of documents of this host within a day from which on what was seen is named and not kept.
    daily: Optional[int] = None


class Ledger:
    """One ledger, by the path of its SQLite file or the URL of its database. Safe to use in many processes."""

    def __init__(self, where: Union[str, Path]) -> None:
        """Open a ledger that exists; FdeError if there is none, or one that cannot be understood."""
        self.database = Database(where)
        self.database.check()

    @classmethod
    def create(cls, where: Union[str, Path]) -> Ledger:
        """Open a ledger, made empty where there is none.

        Only for where hosts are enrolled: elsewhere a ledger that was taken away would be replaced by one that has
        forgotten every anchor and identity.
        """
        Database(where).create()
        return cls(where)

    @property
    def name(self) -> str:
        return self.database.name

    def append(self, record: Record, documents: Mapping[str, bytes] = _NONE) -> Entry:
        """Add a record and the documents it rests on."""
        (entry,) = self.append_all([(record, documents)])
        return entry

    def append_all(self, records: Sequence[tuple[Record, Mapping[str, bytes]]]) -> tuple[Entry, ...]:
        """Add several records with their documents, next to each other and all or none."""
        submissions = [(record, Packed.of(documents)) for record, documents in records]
        with self.database.writing() as connection:
            return write(connection, submissions)

    def append_within(
        self, record: Record, documents: Mapping[str, bytes], more: Mapping[str, bytes], daily: int
    ) -> Entry:
        """Add a record with ``documents``, and with ``more`` that are always kept; see `Conclusion.daily`."""
        packed, always = Packed.of(documents), Packed.of(more)
        with self.database.writing() as connection:
            kept = within(connection, record.host, packed, daily)
            (entry,) = write(connection, [(record, kept.beside(always))])
        return entry

    def conclude(
        self,
        host: str,
        volume: str,
        shown: Optional[Identity],
        documents: Mapping[str, bytes],
        judge: Callable[[Past], Conclusion],
        record: bool = True,
        volume_key_id: Optional[str] = None,
    ) -> Conclusion:
        """Judge a host in the light of what is remembered, and record the verdict with what it rests on.

        Nobody else writes between the two: of two hosts that show one key at the same time, the second is found out.
        ``judge`` runs while all other writers wait. Without ``record`` the same is found and nothing is added.
        """
        packed = Packed.of(documents)
        with self.database.writing() if record else self.database.reading() as connection:
            past = memory.past(connection, host, volume, shown, volume_key_id)
            concluded = judge(past)
            if record:
                _write_conclusion(connection, concluded, packed, past.new)
        return concluded

    def past(self, entry: Entry, shown: Optional[Identity], volume_key_id: Optional[str] = None) -> Past:
        """Return what was remembered when an attestation was recorded, for whoever judges it once more.

        The keys that were recorded with it count as known: they are the entry before it.
        """
        record = cast(Attestation, entry.record)
        with self.database.reading() as connection:
            return memory.past(connection, record.host, record.volume, shown, volume_key_id, entry.sequence)

    def approval(self, host: str) -> Optional[Entry]:
        """Return the last approval of a key of this host since it was last retired, if an operator gave one."""
        with self.database.reading() as connection:
            return decisions.approval(connection, host)

    def escrowed(self, host: str, volume: str) -> Optional[Entry]:
        """Return the record of the last recovery key of this volume that was put into escrow, if there is one."""
        with self.database.reading() as connection:
            return decisions.escrowed(connection, host, volume)

    def stands(self, decision: Decision) -> bool:
        """Tell whether deciding this would settle nothing, because the same was decided and still holds."""
        with self.database.reading() as connection:
            return decisions.stands(connection, decision)

    def check(self, decision: Decision) -> None:
        """Raise the FdeError that `decide` would raise, and add nothing."""
        with self.database.reading() as connection:
            decisions.check(connection, decision)

    def decide(self, decision: Decision, documents: Mapping[str, bytes] = _NONE) -> Entry:
        """Add an operator's decision; FdeError if there is nothing to decide."""
        packed = Packed.of(documents)
        with self.database.writing() as connection:
            decisions.check(connection, decision)
            (entry,) = write(connection, [(decision, packed)])
        return entry

    def head(self) -> Head:
        """Return where the ledger ends now. Keep it elsewhere: a cut-off end is found with it."""
        with self.database.reading() as connection:
            return head_of(connection)

    def entries(
        self, host: Optional[str] = None, kind: Optional[Kind] = None, since: Optional[datetime] = None
    ) -> Iterator[Entry]:
        """Yield entries in their order; `Refusal` at the first one that is not what was recorded."""
        query = select(entries).order_by(entries.c.sequence).limit(PAGE)
        if host is not None:
            query = query.where(entries.c.host == host)
        if kind is not None:
            query = query.where(entries.c.kind == kind.value)
        if since is not None:
            query = query.where(entries.c.recorded >= text_of(since))
        last = 0
        while page := self._page(query.where(entries.c.sequence > last)):
            yield from page
            last = page[-1].sequence

    def documents(self, entry: Entry) -> dict[str, bytes]:
        """Return the documents of an entry; `Refusal` if one is gone or is not what was kept."""
        with self.database.reading() as connection:
            return documents_of(connection, entry)

    def documents_called(self, name: str, kind: Kind) -> Iterator[tuple[Entry, bytes]]:
        """Yield the entries of a kind that have a document of this name, each with it; `Refusal` as for `documents`.

        They are those of one moment: what is added meanwhile is not among them.
        """
        with self.database.reading() as connection:
            for entry in in_order(connection, select(entries).where(entries.c.kind == kind.value)):
                if name in entry.documents:
                    only = replace(entry, documents={name: entry.documents[name]})
                    yield entry, documents_of(connection, only)[name]

    def highest_anchor(self, host: str, volume: str) -> Optional[Anchor]:
        """Return the highest anchor that this volume proved in its present life, part by part."""
        with self.database.reading() as connection:
            return memory.highest_anchor(connection, host, volume)

    def conflicts(self, host: Optional[str] = None) -> tuple[Conflict, ...]:
        """Return the conflicts of identity that concern a host, or all of them."""
        with self.database.reading() as connection:
            return memory.register_of(connection, host).conflicts(host)

    def register(self) -> Register:
        """Return what is known of all hosts' identities."""
        with self.database.reading() as connection:
            return memory.register_of(connection)

    def _page(self, query: Select[tuple[object, ...]]) -> list[Entry]:
        with self.database.reading() as connection:
            return entries_of(connection, query)


def _write_conclusion(connection: Connection, concluded: Conclusion, seen: Packed, new: bool) -> None:
    always = Packed.of(concluded.documents)
    if concluded.daily is not None:
        seen = within(connection, concluded.attestation.host, seen, concluded.daily)
    keys = [(concluded.identity, Packed({}, {}))] if concluded.identity is not None and new else []
    write(connection, [*keys, (concluded.attestation, seen.beside(always))])
