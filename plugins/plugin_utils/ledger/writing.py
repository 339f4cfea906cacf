# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How records are added: behind the last entry, with the documents they rest on, each of which is kept once."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from itertools import chain
from typing import Iterator, Mapping, Sequence

from sqlalchemy import Connection, func, select

from . import documents as packing
from .chain import Head, link
from .reading import PAGE, head_of
from .records import Entry, Record, columns_of, entry_of, text_of
from .schema import documents, entries

#: The document that names those which were not kept, by their digests.
OMITTED = "omitted"


@dataclass(frozen=True)
class Packed:
    """Documents as they are kept: their digests by their names, and each of them compressed, by its digest."""

    names: Mapping[str, str]
    contents: Mapping[str, bytes]

    @classmethod
    def of(cls, documents: Mapping[str, bytes]) -> Packed:
        """Compress documents, which takes too long to be done while others wait; ValueError for one too large."""
        names = {name: packing.digest_of(content) for name, content in documents.items()}
        return cls(names, {digest: packing.pack(documents[name]) for name, digest in names.items()})

    def beside(self, other: Packed) -> Packed:
        return Packed({**self.names, **other.names}, {**self.contents, **other.contents})


def write(connection: Connection, submissions: Sequence[tuple[Record, Packed]]) -> tuple[Entry, ...]:
    """Add records with their documents, next to each other; `Refusal` to build on a last entry that was edited."""
    head = head_of(connection)
    contents = {digest: content for _record, packed in submissions for digest, content in packed.contents.items()}
    known = _known(connection, contents)
    rows: list[dict[str, object]] = []
    for record, packed in submissions:
        columns = {**columns_of(record, packed.names), "recorded": text_of(datetime.now(timezone.utc))}
        rows.append(link(columns, head))
        head = Head(head.sequence + 1, str(rows[-1]["digest"]))
    missing = [{"digest": digest, "content": contents[digest]} for digest in contents if digest not in known]
    if missing:
        connection.execute(documents.insert(), missing)
    if rows:
        connection.execute(entries.insert(), rows)
    return tuple(entry_of(row) for row in rows)


def within(connection: Connection, host: str, packed: Packed, daily: int) -> Packed:
    """Return documents as they are, or in their place one that says what they were, once the host has had ``daily``
    compressed bytes within a day.
    """
    if not packed.names or _kept_of_a_day(connection, host) < daily:
        return packed
    told = json.dumps({"version": 1, "documents": packed.names}, sort_keys=True, separators=(",", ":"))
    return Packed.of({OMITTED: told.encode()})


def _kept_of_a_day(connection: Connection, host: str) -> int:
    columns, day = entries.c, text_of(datetime.now(timezone.utc) - timedelta(days=1))
    recent = connection.scalars(select(columns.documents).where(columns.host == host, columns.recorded >= day))
    digests = {digest for text in recent for digest in json.loads(text).values()}
    size = func.coalesce(func.sum(func.length(documents.c.content)), 0)
    return sum(
        connection.scalar(select(size).where(documents.c.digest.in_(some))) or 0 for some in _pages(sorted(digests))
    )


def _known(connection: Connection, digests: Mapping[str, bytes]) -> frozenset[str]:
    """Return those of the digests whose documents are kept already."""
    query = select(documents.c.digest)
    found = (connection.scalars(query.where(documents.c.digest.in_(some))) for some in _pages(sorted(digests)))
    return frozenset(chain.from_iterable(found))


def _pages(digests: Sequence[str]) -> Iterator[Sequence[str]]:
    return (digests[start : start + PAGE] for start in range(0, len(digests), PAGE))
