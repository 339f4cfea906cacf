# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A ledger as JSON lines: for archives, for a move between databases, for another tool's eyes.

The first line says what the file is, the last one where the chain ends. In between stand documents (``{"document": …,
"content": base64}``, each before the first entry that names it) and entries (``{"entry": {every column}}``), in the
order of the chain. The digests are those of the ledger: anybody can compute them again from the lines.
"""

from __future__ import annotations

import base64
import binascii
import json
from typing import IO, Iterator, NoReturn, Optional

from sqlalchemy import Connection, select

from ...module_utils.errors import FdeError, Refusal
from . import documents as packing
from .chain import Follower, Head
from .ledger import Ledger
from .records import Entry, entry_of
from .schema import documents, entries

FORMAT = "cvm.fde ledger"
FORMAT_VERSION = 1
#: Bytes of one line: the largest document in base64, and its name.
LINE_LIMIT = packing.DOCUMENT_LIMIT * 4 // 3 + 4096
_BATCH = 500
_COLUMNS = frozenset(column.name for column in entries.columns)


def export_lines(ledger: Ledger) -> Iterator[bytes]:
    """Yield the ledger as lines, one state of it from first to last. `Refusal` if it is not sound."""
    yield _line({"format": FORMAT, "version": FORMAT_VERSION})
    follower = Follower()
    written: set[str] = set()
    with ledger.database.reading() as connection:
        query = select(entries).order_by(entries.c.sequence).execution_options(yield_per=_BATCH)
        for row in connection.execute(query).mappings():
            columns = dict(row)
            for finding in follower.follow(columns):
                _refuse(ledger.name, finding.cause)
            for digest in sorted(set(entry_of(columns).documents.values()) - written):
                yield _line({"document": digest, "content": _content(ledger, connection, digest)})
                written.add(digest)
            yield _line({"entry": columns})
    yield _line({"head": str(follower.head)})


def import_lines(ledger: Ledger, lines: IO[bytes], remembered: Optional[Head] = None) -> Head:
    """Fill an empty ledger from an export and return its head. All or nothing.

    `Refusal` if the chain, a document, or the end is broken, or if it does not contain the remembered head; FdeError if
    the ledger is not empty.
    """
    reader = _Reader(ledger.name, lines, remembered)
    with ledger.database.writing() as connection:
        if connection.execute(select(entries.c.sequence).limit(1)).first():
            raise FdeError(ledger.name, "the ledger is not empty", "Import into a ledger that was just created")
        rows: list[dict[str, object]] = []
        for line in reader.lines():
            if "document" in line:
                connection.execute(documents.insert().values(reader.document(line)))
            else:
                rows.append(reader.entry(line))
            if len(rows) == _BATCH:
                connection.execute(entries.insert(), rows)
                rows.clear()
        if rows:
            connection.execute(entries.insert(), rows)
    return reader.head


def read_lines(name: str, lines: IO[bytes], remembered: Optional[Head] = None) -> Head:
    """Read an export as an import would, write nothing, and return its head. `Refusal` as for an import."""
    reader = _Reader(name, lines, remembered)
    for line in reader.lines():
        if "document" in line:
            reader.document(line)
        else:
            reader.entry(line)
    return reader.head


class _Reader:
    """Read an export strictly: nothing is left out, nothing is there twice, nothing is of another kind."""

    def __init__(self, name: str, lines: IO[bytes], remembered: Optional[Head]) -> None:
        self._name = name
        self._lines = lines
        self._number = 0
        self._follower = Follower(remembered)
        self._kept: set[str] = set()
        self._waiting: set[str] = set()

    @property
    def head(self) -> Head:
        return self._follower.head

    def lines(self) -> Iterator[dict[str, object]]:
        """Yield the lines of documents and entries, having checked the first line and checking the last."""
        if self._next() != {"format": FORMAT, "version": FORMAT_VERSION}:
            self._refuse(f"it is no export of a ledger in version {FORMAT_VERSION}")
        while True:
            line = self._next()
            if line is None:
                self._refuse("it has no end: the line with the head is missing")
            if set(line) == {"head"}:
                return self._end(line["head"])
            if set(line) not in ({"document", "content"}, {"entry"}):
                self._refuse("is neither a document nor an entry")
            yield line

    def document(self, line: dict[str, object]) -> dict[str, object]:
        digest, encoded = line["document"], line["content"]
        if not isinstance(digest, str) or not isinstance(encoded, str):
            self._refuse("holds a document that is no text")
        if digest in self._kept:
            self._refuse("holds a document for the second time")
        try:
            content = base64.b64decode(encoded, validate=True)
            packed = packing.pack(content)
        except (binascii.Error, ValueError):
            self._refuse("holds a document that is not base64, or is too large")
        if packing.digest_of(content) != digest:
            self._refuse("holds a document that is not what its digest was made from")
        self._kept.add(digest)
        self._waiting.add(digest)
        return {"digest": digest, "content": packed}

    def entry(self, line: dict[str, object]) -> dict[str, object]:
        row = line["entry"]
        if not isinstance(row, dict) or set(row) != _COLUMNS:
            self._refuse("holds an entry with other columns than the ledger's")
        for finding in self._follower.follow(row):
            self._refuse(f"is refused: {finding.cause}")
        entry: Entry = entry_of(row)
        digests = set(entry.documents.values())
        if not digests <= self._kept:
            self._refuse("holds an entry whose documents did not come before it")
        self._waiting -= digests
        return row

    def _end(self, head: object) -> None:
        if head != str(self.head) or self._next() is not None:
            self._refuse("ends the file with another head than that of its entries, or is not its end")
        if self._waiting:
            self._refuse("ends a file with documents that belong to no entry")
        for finding in self._follower.end():
            self._refuse(f"is refused: {finding.cause}")

    def _next(self) -> Optional[dict[str, object]]:
        self._number += 1
        text = self._lines.readline(LINE_LIMIT + 1)
        if not text:
            return None
        if len(text) > LINE_LIMIT or not text.endswith(b"\n"):
            self._refuse("is too long, or was cut off")
        try:
            line = json.loads(text.decode("utf-8"), object_pairs_hook=_once)
        except (ValueError, RecursionError):
            self._refuse("is not JSON")
        if not isinstance(line, dict):
            self._refuse("is not a JSON object")
        return line

    def _refuse(self, cause: str) -> NoReturn:
        _refuse(self._name, f"line {self._number} of the import {cause}")


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name is there twice")
    return found


def _line(content: dict[str, object]) -> bytes:
    return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode("ascii") + b"\n"


def _content(ledger: Ledger, connection: Connection, digest: str) -> str:
    packed = connection.execute(select(documents.c.content).where(documents.c.digest == digest)).scalar()
    try:
        return base64.b64encode(packing.unpack(packed, digest)).decode("ascii")
    except ValueError:
        _refuse(ledger.name, f"the document {digest} is gone or was changed")


def _refuse(name: str, cause: str) -> NoReturn:
    raise Refusal("ledger-broken", name, cause, "Take another copy; a sound ledger's verify finds nothing")
