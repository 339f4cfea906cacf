# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Entries and documents as they come out of the database: exactly what was recorded, or a refusal."""

from __future__ import annotations

from typing import Iterator, Mapping, Optional

from sqlalchemy import Connection, Select, func, select

from ...module_utils.errors import Refusal
from . import documents as packing
from .chain import EMPTY, Head, digest_of
from .records import Entry, Row, entry_of
from .schema import documents, entries

#: Rows and digests that one query is about.
PAGE = 500
_RESTORE = "Verify the ledger, and restore it from a copy or an export"


def entries_of(connection: Connection, query: Select[tuple[object, ...]]) -> list[Entry]:
    """Return the entries that a query on their table selects; `Refusal` if one is not what its digest was made from."""
    return [_entry(connection, dict(row)) for row in connection.execute(query).mappings()]


def in_order(connection: Connection, query: Select[tuple[object, ...]]) -> Iterator[Entry]:
    """Yield the entries that a query selects in their order, not all of them in memory at once."""
    last = 0
    paged = query.order_by(entries.c.sequence).limit(PAGE)
    while page := entries_of(connection, paged.where(entries.c.sequence > last)):
        yield from page
        last = page[-1].sequence


def last_of(connection: Connection, query: Select[tuple[object, ...]]) -> Optional[Entry]:
    """Return the last of the entries that a query selects, if there is one."""
    found = entries_of(connection, query.order_by(entries.c.sequence.desc()).limit(1))
    return found[0] if found else None


def head_of(connection: Connection) -> Head:
    """Return where the ledger ends; `Refusal` if its last entry was edited."""
    last = last_of(connection, select(entries))
    return EMPTY if last is None else Head(last.sequence, last.digest)


def documents_of(connection: Connection, entry: Entry) -> dict[str, bytes]:
    """Return the documents of an entry by their names; `Refusal` if one is gone or is not what was kept."""
    found = connection.execute(
        select(documents.c.digest, documents.c.content).where(
            documents.c.digest.in_(set(entry.documents.values())),
            func.length(documents.c.content) <= packing.PACKED_LIMIT,
        )
    )
    packed: Mapping[str, bytes] = {row.digest: row.content for row in found}
    try:
        return {name: packing.unpack(packed[digest], digest) for name, digest in entry.documents.items()}
    except (KeyError, ValueError) as damaged:
        cause = f"a document of entry {entry.sequence} is gone or was changed"
        raise Refusal("ledger-document", _name(connection), cause, _RESTORE) from damaged


def _entry(connection: Connection, row: Row) -> Entry:
    try:
        if digest_of(row) != row["digest"]:
            raise ValueError("the digest is of something else")
        return entry_of(row)
    except (ValueError, TypeError, RecursionError) as damaged:
        cause = f"entry {row['sequence']} is not what was recorded"
        raise Refusal("ledger-entry", _name(connection), cause, _RESTORE) from damaged


def _name(connection: Connection) -> str:
    return connection.engine.url.render_as_string(hide_password=True)
