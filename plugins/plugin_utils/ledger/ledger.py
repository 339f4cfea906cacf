# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The ledger: what every host ever showed, what was thought of it, and what was decided about it.

It only grows. Whoever can write to its database can still damage it; `Ledger.verify` finds that out, and how much
`verify` finds depends on a `Head` that was kept elsewhere.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import AbstractSet, Callable, Generic, Iterator, Mapping, Optional, Sequence, TypeVar, Union, cast

from sqlalchemy import Connection, Select, and_, func, or_, select

from ...module_utils.errors import FdeError, Refusal
from . import documents as packing
from .chain import EMPTY, Head, digest_of, link
from .database import Database
from .identities import Conflict, Register
from .records import (
    NO_ROAD,
    Action,
    Anchor,
    Attestation,
    Decision,
    Entry,
    Identity,
    Kind,
    Record,
    columns_of,
    entry_of,
    text_of,
)
from .schema import documents, entries

#: The document that names those which were not kept, by their digests.
OMITTED = "omitted"
_PAGE = 500
#: A sequence beyond every entry: what is asked for "before" it is asked for as of now.
_NEVER = (1 << 63) - 1
_T = TypeVar("_T")
#: A record and the documents that belong to it, by name.
Submission = tuple[Record, Mapping[str, bytes]]
_NONE: Mapping[str, bytes] = MappingProxyType({})
#: A record, the digests of its documents by name, and the compressed documents by digest.
_Packed = tuple[Record, dict[str, str], dict[str, bytes]]


@dataclass(frozen=True)
class Past:
    """What is remembered at the moment in which a host is judged.

    ``enrolled`` says whether the host showed a key before, ``new`` whether the one that it shows now is another one
    or its first. ``conflicts`` are those that concern the host, with what it shows now taken into account.
    """

    enrolled: bool
    new: bool
    conflicts: tuple[Conflict, ...]
    highest: Optional[Anchor]
    #: Other hosts that showed a volume with the same key.
    sharing: frozenset[str] = frozenset()


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


@dataclass(frozen=True)
class Reappraisal(Generic[_T]):
    """An attestation of the past, and what an appraisal makes of it now."""

    entry: Entry
    result: _T


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

    def append_within(
        self, record: Record, documents: Mapping[str, bytes], more: Mapping[str, bytes], daily: int
    ) -> Entry:
        """Add a record with ``documents``, and with ``more`` that are always kept; see `Conclusion.daily`."""
        names, packed = _pack_documents(documents)
        others, small = _pack_documents(more)
        with self.database.writing() as connection:
            names, packed = self._within(connection, record.host, daily, names, packed)
            (entry,) = self._write(connection, [(record, {**names, **others}, {**packed, **small})])
        return entry

    def append_all(self, submissions: Sequence[Submission]) -> tuple[Entry, ...]:
        """Add several records, next to each other and all or none."""
        packed = _pack(submissions)
        with self.database.writing() as connection:
            return self._write(connection, packed)

    def identify(self, identity: Identity, documents: Mapping[str, bytes] = _NONE) -> tuple[Conflict, ...]:
        """Add the identity that a host proved, unless it is known, and return the conflicts that concern the host."""
        packed = _pack([(identity, documents)])
        with self.database.writing() as connection:
            register = self._register(connection, identity)
            if not register.knows(identity):
                self._write(connection, packed)
                register.note(identity)
        return register.conflicts(identity.host)

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
        names, packed = _pack_documents(documents)
        with self.database.writing() if record else self.database.reading() as connection:
            past = self._past(connection, host, volume, shown, volume_key_id)
            concluded = judge(past)
            if record:
                more, small = _pack_documents(concluded.documents)
                if concluded.daily is not None:
                    names, packed = self._within(connection, host, concluded.daily, names, packed)
                identity = concluded.identity
                known: list[_Packed] = [(identity, {}, {})] if identity is not None and past.new else []
                self._write(connection, [*known, (concluded.attestation, {**names, **more}, {**packed, **small})])
        return concluded

    def past(
        self,
        entry: Entry,
        shown: Optional[Identity],
        volume_key_id: Optional[str] = None,
    ) -> Past:
        """Return what was remembered when an attestation was recorded, for whoever judges it once more.

        The keys that were recorded with it count as known: they are the entry before it.
        """
        record = cast(Attestation, entry.record)
        with self.database.reading() as connection:
            return self._past(connection, record.host, record.volume, shown, volume_key_id, entry.sequence)

    def approval(self, host: str) -> Optional[Entry]:
        """Return the last approval of a key of this host since it was last retired, if an operator gave one."""
        columns = entries.c
        with self.database.reading() as connection:
            query = select(entries).where(
                columns.host == host,
                columns.kind == Kind.DECISION.value,
                columns.action == Action.APPROVE_IDENTITY.value,
                columns.sequence > _began(connection, host),
            )
            row = connection.execute(query.order_by(columns.sequence.desc()).limit(1)).mappings().one_or_none()
        return None if row is None else _entry(self.name, dict(row))

    def escrowed(self, host: str, volume: str) -> Optional[Entry]:
        """Return the record of the last recovery key of this volume that was put into escrow, if there is one."""
        columns = entries.c
        with self.database.reading() as connection:
            query = select(entries).where(
                columns.host == host,
                columns.kind == Kind.DECISION.value,
                columns.action == Action.ESCROW_KEY.value,
                columns.volume == volume,
                columns.sequence > _began(connection, host, volume),
            )
            row = connection.execute(query.order_by(columns.sequence.desc()).limit(1)).mappings().one_or_none()
        return None if row is None else _entry(self.name, dict(row))

    def stands(self, decision: Decision) -> bool:
        """Tell whether deciding this would settle nothing, because the same was decided and still holds."""
        if decision.action is Action.APPROVE_IDENTITY:
            approved, register = self.approval(decision.host), self.register()
            accepted, record = register.accepted(decision.host), approved.record if approved else None
            settled = not any(conflict.host == decision.host for conflict in register.conflicts(decision.host))
            named = isinstance(record, Decision) and record.key == decision.key
            return named and settled and accepted is not None and accepted.key == decision.key
        if decision.action is Action.ESCROW_KEY:
            escrowed = self.escrowed(decision.host, str(decision.volume))
            return escrowed is not None and cast(Decision, escrowed.record).key == decision.key
        query = select(entries).where(entries.c.host == decision.host).order_by(entries.c.sequence.desc()).limit(1)
        last = [entry.record for entry in self._page(query)]
        return any(isinstance(one, Decision) and one.action is decision.action for one in last)

    def check(self, decision: Decision) -> None:
        """Raise the FdeError that `decide` would raise, and add nothing."""
        with self.database.reading() as connection:
            self._check_decision(connection, decision)

    def decide(self, decision: Decision, documents: Mapping[str, bytes] = _NONE) -> Entry:
        """Add an operator's decision; FdeError if there is nothing to decide."""
        packed = _pack([(decision, documents)])
        with self.database.writing() as connection:
            self._check_decision(connection, decision)
            (entry,) = self._write(connection, packed)
        return entry

    def head(self) -> Head:
        """Return where the ledger ends now. Keep it elsewhere: `verify` finds a cut-off end with it."""
        with self.database.reading() as connection:
            return _head(connection)

    def entries(
        self, host: Optional[str] = None, kind: Optional[Kind] = None, since: Optional[datetime] = None
    ) -> Iterator[Entry]:
        """Yield entries in their order; `Refusal` at the first one that is not what was recorded."""
        query = select(entries).order_by(entries.c.sequence).limit(_PAGE)
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

    def latest(self, host: str) -> Optional[Entry]:
        """Return the last attestation of a host, if it ever had one."""
        query = select(entries).where(entries.c.host == host, entries.c.kind == Kind.ATTESTATION.value)
        page = self._page(query.order_by(entries.c.sequence.desc()).limit(1))
        return page[0] if page else None

    def documents(self, entry: Entry) -> dict[str, bytes]:
        """Return the documents of an entry; `Refusal` if one is gone or is not what was kept."""
        with self.database.reading() as connection:
            found = connection.execute(
                select(documents.c.digest, documents.c.content).where(
                    documents.c.digest.in_(set(entry.documents.values())),
                    func.length(documents.c.content) <= packing.PACKED_LIMIT,
                )
            )
            packed = {row.digest: row.content for row in found}
        try:
            return {name: packing.unpack(packed[digest], digest) for name, digest in entry.documents.items()}
        except (KeyError, ValueError) as damaged:
            raise Refusal(
                "ledger-document",
                self.name,
                f"a document of entry {entry.sequence} is gone or was changed",
                "Verify the ledger, and restore it from a copy or an export",
            ) from damaged

    def highest_anchor(self, host: str, volume: str) -> Optional[Anchor]:
        """Return the highest anchor that this volume ever proved, part by part.

        The parts only grow in the life of a volume, so the highest of each is what the last honest state has. A
        renewal of the volume or the retirement of the host, both an operator's decisions, begin a new life.
        """
        with self.database.reading() as connection:
            return self._highest_anchor(connection, host, volume)

    def hosts_of_volume_key(self, volume_key_id: str) -> frozenset[str]:
        """Return the hosts that showed a volume with this key, behind a TPM that a road led to, and were not retired
        since. More than one: a clone.
        """
        with self.database.reading() as connection:
            return self._hosts_of_volume_key(connection, volume_key_id)

    def _hosts_of_volume_key(self, connection: Connection, volume_key_id: str, before: int = _NEVER) -> frozenset[str]:
        shown = connection.execute(
            select(entries.c.host, func.max(entries.c.sequence))
            .where(
                entries.c.volume_key_id == volume_key_id,
                # Behind a TPM that nobody vouches for, a machine may show any key: such a lie must not lock out others.
                entries.c.road != NO_ROAD,
                entries.c.sequence < before,
            )
            .group_by(entries.c.host)
        ).all()
        return frozenset(host for host, last in shown if last > _began(connection, host, before=before))

    def conflicts(self, host: Optional[str] = None) -> tuple[Conflict, ...]:
        """Return the conflicts of identity that concern a host, or all of them."""
        with self.database.reading() as connection:
            return self._register(connection, host).conflicts(host)

    def register(self) -> Register:
        """Return what is known of all hosts' identities."""
        with self.database.reading() as connection:
            return self._register(connection)

    def reappraise(
        self,
        appraise: Callable[[Entry, Mapping[str, bytes]], _T],
        host: Optional[str] = None,
        since: Optional[datetime] = None,
    ) -> Iterator[Reappraisal[_T]]:
        """Appraise attestations of the past again, from the documents kept with each.

        ``appraise`` gets the entry (with its time and the verdict of then) and its documents; which policy it applies,
        today's or the one among the documents, is its own choice.
        """
        for entry in self.entries(host, Kind.ATTESTATION, since):
            yield Reappraisal(entry, appraise(entry, self.documents(entry)))

    def _past(
        self,
        connection: Connection,
        host: str,
        volume: Optional[str],
        shown: Optional[Identity],
        volume_key_id: Optional[str],
        before: int = _NEVER,
    ) -> Past:
        register = self._register(connection, shown or host, before)
        enrolled, new = host in register.hosts(), shown is not None and not register.knows(shown)
        if shown is not None:
            register.note(shown)
        highest = None if volume is None else self._highest_anchor(connection, host, volume, before)
        sharing = self._hosts_of_volume_key(connection, volume_key_id, before) if volume_key_id else frozenset()
        return Past(enrolled, new, register.conflicts(host), highest, sharing - {host})

    def _highest_anchor(self, connection: Connection, host: str, volume: str, before: int = _NEVER) -> Optional[Anchor]:
        columns = entries.c
        generation, state, reset_count = connection.execute(
            select(func.max(columns.generation), func.max(columns.state), func.max(columns.reset_count)).where(
                columns.host == host,
                columns.kind == Kind.ATTESTATION.value,
                columns.volume == volume,
                columns.sequence < before,
                columns.sequence > _began(connection, host, volume, before),
            )
        ).one()
        return None if generation is None else Anchor(int(generation), state, reset_count)

    def _page(self, query: Select[tuple[object, ...]]) -> list[Entry]:
        with self.database.reading() as connection:
            rows = connection.execute(query).mappings().all()
        return [_entry(self.name, dict(row)) for row in rows]

    def _write(self, connection: Connection, packed: Sequence[_Packed]) -> tuple[Entry, ...]:
        head = self._sound_head(connection)
        contents = {digest: content for _record, _names, new in packed for digest, content in new.items()}
        known = _known(connection, set(contents))
        rows: list[dict[str, object]] = []
        for record, names, _new in packed:
            columns = {**columns_of(record, names), "recorded": text_of(datetime.now(timezone.utc))}
            rows.append(link(columns, head))
            head = Head(head.sequence + 1, str(rows[-1]["digest"]))
        missing = [{"digest": digest, "content": contents[digest]} for digest in contents if digest not in known]
        if missing:
            connection.execute(documents.insert(), missing)
        if rows:
            connection.execute(entries.insert(), rows)
        return tuple(entry_of(row) for row in rows)

    def _within(
        self, connection: Connection, host: str, daily: int, names: dict[str, str], packed: dict[str, bytes]
    ) -> tuple[dict[str, str], dict[str, bytes]]:
        """Return documents as they are, or in their place one that says what they were, when a host has had its share
        of a day.
        """
        columns, day = entries.c, text_of(datetime.now(timezone.utc) - timedelta(days=1))
        recent = connection.scalars(select(columns.documents).where(columns.host == host, columns.recorded >= day))
        digests = sorted({digest for text in recent for digest in json.loads(text).values()})
        size = func.coalesce(func.sum(func.length(documents.c.content)), 0)
        kept = sum(
            connection.scalar(select(size).where(documents.c.digest.in_(digests[start : start + _PAGE]))) or 0
            for start in range(0, len(digests), _PAGE)
        )
        if kept < daily or not names:
            return names, packed
        told = json.dumps({"version": 1, "documents": names}, sort_keys=True, separators=(",", ":"))
        return _pack_documents({OMITTED: told.encode()})

    def _sound_head(self, connection: Connection) -> Head:
        """Return the head to continue from, and refuse to build on a last entry that was edited."""
        row = connection.execute(select(entries).order_by(entries.c.sequence.desc()).limit(1)).mappings().one_or_none()
        if row is None:
            return EMPTY
        last = _entry(self.name, dict(row))
        return Head(last.sequence, last.digest)

    def _register(
        self, connection: Connection, about: Union[Identity, str, None] = None, before: int = _NEVER
    ) -> Register:
        """Read the register, for all hosts or for those that what is asked about can depend on."""
        columns = entries.c
        query = (
            select(entries)
            .where(columns.kind.in_((Kind.IDENTITY.value, Kind.DECISION.value)), columns.sequence < before)
            .order_by(columns.sequence)
        )
        if about is None:
            return Register(_entry(self.name, dict(row)).record for row in connection.execute(query).mappings())
        hosts = {about if isinstance(about, str) else about.host}
        keys = set() if isinstance(about, str) else set(about.fingerprints)
        while True:
            related = query.where(or_(columns.host.in_(hosts), columns.ek.in_(keys), columns.ak.in_(keys)))
            records = [_entry(self.name, dict(row)).record for row in connection.execute(related).mappings()]
            found_keys = keys.union(*(record.fingerprints for record in records if isinstance(record, Identity)))
            found_hosts = hosts.union(record.host for record in records)
            if found_hosts == hosts and found_keys == keys:
                return Register(records)
            hosts, keys = found_hosts, found_keys

    def _check_decision(self, connection: Connection, decision: Decision) -> None:
        if decision.action in (Action.RENEW_VOLUME, Action.ESCROW_KEY):
            known = entries.c.volume == decision.volume
            cause = f"no volume {decision.volume} of this host was ever recorded"
        else:
            known = entries.c.kind.in_((Kind.ATTESTATION.value, Kind.IDENTITY.value))
            cause = "nothing is recorded about this host"
        found = connection.scalar(
            select(entries.c.sequence)
            .where(known, entries.c.host == decision.host, entries.c.sequence > _began(connection, decision.host))
            .limit(1)
        )
        if found and decision.action is Action.APPROVE_IDENTITY:
            found = decision.key in self._register(connection, decision.host).claimed(decision.host)
            cause = f"it never showed key {decision.key}, or that was settled already"
        if not found:
            raise FdeError(decision.host, cause, f"Look at the host's entries in {self.name} and name it as they do")


def _entry(name: str, row: Mapping[str, object]) -> Entry:
    """Read an entry of the named ledger; `Refusal` unless it is what its digest was made from."""
    try:
        if digest_of(row) != row["digest"]:
            raise ValueError("the digest is of something else")
        return entry_of(row)
    except (ValueError, TypeError, RecursionError) as damaged:
        raise Refusal(
            "ledger-entry",
            name,
            f"entry {row['sequence']} is not what was recorded",
            "Verify the ledger, and restore it from a copy or an export",
        ) from damaged


def _pack(submissions: Sequence[Submission]) -> list[_Packed]:
    """Name every document by its digest and compress it, which would take long under the lock."""
    seen: set[str] = set()
    packed: list[_Packed] = []
    for record, contents in submissions:
        names, new = _pack_documents(contents, seen)
        seen.update(new)
        packed.append((record, names, new))
    return packed


def _pack_documents(
    contents: Mapping[str, bytes], seen: AbstractSet[str] = frozenset()
) -> tuple[dict[str, str], dict[str, bytes]]:
    """Return the digests of documents by their names, and the compressed ones that were not seen by their digests."""
    names = {name: packing.digest_of(content) for name, content in contents.items()}
    return names, {digest: packing.pack(contents[name]) for name, digest in names.items() if digest not in seen}


def _head(connection: Connection) -> Head:
    row = connection.execute(
        select(entries.c.sequence, entries.c.digest).order_by(entries.c.sequence.desc()).limit(1)
    ).one_or_none()
    return EMPTY if row is None else Head(row.sequence, row.digest)


def _known(connection: Connection, digests: set[str]) -> frozenset[str]:
    asked = sorted(digests)
    query = select(documents.c.digest)
    found = (
        connection.scalars(query.where(documents.c.digest.in_(asked[start : start + _PAGE])))
        for start in range(0, len(asked), _PAGE)
    )
    return frozenset(chain.from_iterable(found))


def _began(connection: Connection, host: str, volume: Optional[str] = None, before: int = _NEVER) -> int:
    """Return the entry after which the life of a host, or of a volume of it, began that it had before an entry; 0 for
    its first.
    """
    columns = entries.c
    begins = columns.action == Action.RETIRE_HOST.value
    if volume is not None:
        begins = or_(begins, and_(columns.action == Action.RENEW_VOLUME.value, columns.volume == volume))
    query = select(func.max(columns.sequence)).where(columns.host == host, begins, columns.sequence < before)
    last = connection.execute(query).scalar()
    return last or 0
