# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where the ledger lies: a SQLite file of its own, or tables of a PostgreSQL database.

There is one writer at a time, for the length of one transaction: the chain has one end. SQLite begins such a
transaction with BEGIN IMMEDIATE, PostgreSQL with an advisory lock; waiting is the database's business. No connection
outlives its use, so that a ledger can be opened before a fork and used after it.
"""

from __future__ import annotations

import os
import random
import sqlite3
import stat
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Iterator, NoReturn, Union

from sqlalchemy import URL, Connection, Engine, RootTransaction, create_engine, event, func, inspect, make_url, select
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.pool import NullPool

from ...module_utils.errors import FdeError
from . import schema

#: Seconds that a writer waits for others. An append holds the lock for milliseconds, an import for as long as it lasts.
LOCK_TIMEOUT = 60
#: The advisory lock's key: "cvm.fde\0" read as a number.
_LOCK = int.from_bytes(b"cvm.fde\0", "big")
#: SQLITE_BUSY, SQLITE_LOCKED and SQLITE_PROTOCOL (a race for the WAL); lock_not_available.
_SQLITE_BUSY = frozenset({5, 6, 15})
_POSTGRESQL_BUSY = "55P03"


class NoLedger(FdeError):
    """There is none at this place; whether there was one cannot be told."""


class Database:
    """Connections to one ledger. ``name`` is how messages call it: its URL without the password."""

    def __init__(self, where: Union[str, Path]) -> None:
        self.url = _url_of(where)
        self.name = self.url.render_as_string(hide_password=True)
        try:
            self._engine = _engine_of(self.url)
        except ImportError as missing:
            raise FdeError(
                self.name,
                f"the Python package {missing.name or 'psycopg'} cannot be used",
                f"Install {missing.name or 'psycopg[binary]'} for the Python that runs Ansible",
            ) from missing

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """Open a transaction that sees one state of the ledger from its first to its last query."""
        options: dict[str, object] = {"ledger_begin": "BEGIN"}
        if not self._is_file:
            options = {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
        with self._in_our_terms():
            connection, transaction = self._begin(options)
            with connection, transaction:
                yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """Open a transaction that no other writer runs beside; it is committed at the end or leaves nothing."""
        options: dict[str, object] = {"ledger_begin": "BEGIN IMMEDIATE"}
        if not self._is_file:
            # What others committed while this one waited for the lock must be seen after it.
            options = {"isolation_level": "READ COMMITTED"}
        with self._in_our_terms():
            connection, transaction = self._begin(options)
            with connection, transaction:
                if not self._is_file:
                    connection.execute(select(func.set_config("lock_timeout", f"{LOCK_TIMEOUT}s", True)))
                    connection.execute(select(func.pg_advisory_xact_lock(_LOCK)))
                yield connection

    def create(self) -> None:
        """Make an empty ledger, unless there is one already."""
        if self._is_file:
            self._create_file()
        with self.writing() as connection:
            if not inspect(connection).has_table(schema.versions.name):
                schema.create(connection)

    def check(self) -> None:
        """Raise FdeError unless this is a ledger that this version of the collection understands."""
        if self._is_file:
            self._check_file()
        with self.reading() as connection:
            if not inspect(connection).has_table(schema.versions.name):
                raise self._absent()
            found = connection.execute(select(schema.versions.c.version)).scalars().all()
        if found != [schema.SCHEMA_VERSION]:
            raise FdeError(
                self.name,
                f"the ledger's schema version is {', '.join(map(str, found)) or 'not stated'}, "
                f"this collection knows version {schema.SCHEMA_VERSION}",
                "Use the version of the collection that wrote it, and import its export into a new ledger",
            )

    @property
    def _is_file(self) -> bool:
        return self.url.get_backend_name() == "sqlite"

    @property
    def _path(self) -> Path:
        return Path(self.url.database or "")

    def _absent(self) -> NoLedger:
        return NoLedger(
            self.name,
            "there is no ledger here",
            "Create it where hosts are enrolled. If there was one, it is gone together with the highest anchors seen: "
            "restore it",
        )

    def _create_file(self) -> None:
        try:
            os.close(os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        except FileExistsError:
            self._check_file()
        except OSError as failed:
            raise FdeError(
                str(self._path),
                f"cannot be created: {failed.strerror}",
                "Name a file in a directory that you can write to",
            ) from failed

    def _check_file(self) -> None:
        try:
            mode = self._path.stat().st_mode
        except FileNotFoundError:
            raise self._absent() from None
        except OSError as failed:
            raise FdeError(
                str(self._path), f"cannot be read: {failed.strerror}", "Run as the ledger's owner"
            ) from failed
        if stat.S_IMODE(mode) & 0o077:
            raise FdeError(
                str(self._path),
                f"others than its owner may read or write the ledger (mode {stat.S_IMODE(mode):04o})",
                f"Run: chmod 600 {self._path}",
            )

    def _begin(self, options: dict[str, object]) -> tuple[Connection, RootTransaction]:
        # SQLite waits for its locks, but gives up at once where waiting could not help one of several; they try again.
        deadline = time.monotonic() + LOCK_TIMEOUT
        while True:
            try:
                connection = self._engine.connect().execution_options(**options)
                try:
                    return connection, connection.begin()
                except BaseException:
                    connection.close()
                    raise
            except DBAPIError as failed:
                if not _is_busy(failed) or time.monotonic() > deadline:
                    raise
                time.sleep(random.uniform(0.001, 0.02))

    @contextmanager
    def _in_our_terms(self) -> Iterator[None]:
        try:
            yield
        except DBAPIError as failed:
            self._fail(failed)

    def _fail(self, failed: DBAPIError) -> NoReturn:
        said = str(failed.orig).strip().splitlines() or [type(failed.orig).__name__]
        if _is_busy(failed):
            raise FdeError(
                self.name,
                f"another writer held the ledger for more than {LOCK_TIMEOUT} seconds",
                "Wait for it, an import for example, and run again: nothing was recorded",
            ) from failed
        raise FdeError(
            self.name,
            f"the database refused: {said[0].rstrip('.')}",
            "See that it is reachable, writable for this account, undamaged and not full",
        ) from failed


def _url_of(where: Union[str, Path]) -> URL:
    """Read a URL, or take what is none as the path of a SQLite file."""
    text = str(where)
    try:
        url = make_url(text) if "://" in text else URL.create("sqlite", database=text)
    except (ArgumentError, ValueError):
        url = URL.create("unreadable")
    backend = url.get_backend_name()
    if backend == "postgresql":
        return url.set(drivername="postgresql+psycopg")
    if backend == "sqlite" and url.database and not url.query and not url.database.startswith((":", "file:")):
        return url.set(drivername="sqlite+pysqlite", database=os.path.abspath(url.database))
    raise FdeError(
        "ledger",
        "it is neither the path of a file nor a sqlite:/// or postgresql:// URL",
        "Give for example /var/lib/fde/ledger.db or postgresql://fde@db.example/fde",
    )


def _engine_of(url: URL) -> Engine:
    if url.get_backend_name() == "postgresql":
        return create_engine(url, poolclass=NullPool)
    engine = create_engine(url, poolclass=NullPool, connect_args={"timeout": LOCK_TIMEOUT, "isolation_level": None})
    event.listen(engine, "connect", _configure_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _configure_sqlite(connection: sqlite3.Connection, _record: object) -> None:
    # WAL keeps readers and the writer out of each other's way; it stays with the file, and this changes only a new one.
    # A commit that is lost in a power cut looks like a truncated ledger to whoever remembers its head.
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")


def _begin_sqlite(connection: Connection) -> None:
    connection.exec_driver_sql(connection.get_execution_options()["ledger_begin"])


def _is_busy(failed: DBAPIError) -> bool:
    if isinstance(failed.orig, sqlite3.Error):
        return getattr(failed.orig, "sqlite_errorcode", 0) & 0xFF in _SQLITE_BUSY
    return getattr(failed.orig, "sqlstate", None) == _POSTGRESQL_BUSY
