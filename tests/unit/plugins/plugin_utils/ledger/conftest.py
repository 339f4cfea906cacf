# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ledgers in SQLite and in a PostgreSQL server that the tests start, and an attacker who owns the database."""

from __future__ import annotations

import itertools
import os
import pwd
import shutil
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import Callable, ContextManager, Iterator

import pytest
from ansible_collections.cvm.fde.plugins.plugin_utils.ledger.ledger import Ledger
from ansible_collections.cvm.fde.plugins.plugin_utils.ledger.records import Anchor, Attestation
from sqlalchemy import URL, Connection, create_engine, text
from sqlalchemy.pool import NullPool

BACKENDS = ("sqlite", "postgresql")
_NUMBERS = itertools.count(1)


class Postgres:
    """A PostgreSQL server on a unix socket in a directory of its own, run by an account without privileges."""

    def __init__(self, directory: Path, programs: Path) -> None:
        self._directory = directory
        self._programs = programs
        self._account = pwd.getpwnam("postgres") if os.geteuid() == 0 else pwd.getpwuid(os.geteuid())

    def start(self) -> None:
        if os.geteuid() == 0:
            os.chown(self._directory, self._account.pw_uid, self._account.pw_gid)
        self._run(
            "initdb", "--auth=trust", "--encoding=UTF8", "--locale=C.UTF-8", "--no-sync", f"--pgdata={self._data}"
        )
        options = f"-c listen_addresses= -c unix_socket_directories={self._directory} -c fsync=off"
        self._run(
            "pg_ctl", "start", "--wait", f"--pgdata={self._data}", f"--options={options}", f"--log={self._data}.log"
        )

    def stop(self) -> None:
        self._run("pg_ctl", "stop", "--mode=immediate", f"--pgdata={self._data}")

    def new_schema(self) -> str:
        """Make an empty schema, which is as good as a database and cheaper, and return its URL."""
        name = f"ledger{next(_NUMBERS)}"
        with create_engine(self._url("public"), poolclass=NullPool).begin() as connection:
            connection.execute(text(f"CREATE SCHEMA {name}"))
        return self._url(name)

    @property
    def _data(self) -> Path:
        return self._directory / "data"

    def _url(self, schema: str) -> str:
        query = {"host": str(self._directory), "options": f"-csearch_path={schema}"}
        url = URL.create("postgresql+psycopg", self._account.pw_name, database="postgres", query=query)
        return url.render_as_string(hide_password=False)

    def _run(self, program: str, *arguments: str) -> None:
        identity = {}
        if os.geteuid() == 0:
            identity = {"user": self._account.pw_uid, "group": self._account.pw_gid, "extra_groups": []}
        subprocess.run(
            [self._programs / program, *arguments],
            check=True,
            cwd=self._directory,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            **identity,
        )


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    installed = list(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not installed:
        pytest.skip("PostgreSQL is not installed (Debian package postgresql)")
    # The path of a socket is short, and pytest's own directories are root's.
    directory = Path(tempfile.mkdtemp(prefix="fde-ledger-", dir="/tmp"))
    newest = max(installed, key=lambda program: float(program.parts[-3]))
    server = Postgres(directory, newest.parent)
    try:
        server.start()
        yield server
        server.stop()
    finally:
        shutil.rmtree(directory)


@pytest.fixture(params=BACKENDS)
def where(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The place of a ledger that is still to be made."""
    if request.param == "sqlite":
        return str(tmp_path / "ledger.db")
    return request.getfixturevalue("postgres").new_schema()


@pytest.fixture
def ledger(where: str) -> Ledger:
    return Ledger.create(where)


@pytest.fixture
def another(request: pytest.FixtureRequest, ledger: Ledger, tmp_path: Path) -> Ledger:
    """A second, empty ledger of the same kind."""
    if ledger.database.url.get_backend_name() == "sqlite":
        return Ledger.create(tmp_path / "another.db")
    return Ledger.create(request.getfixturevalue("postgres").new_schema())


@pytest.fixture
def filled(ledger: Ledger) -> Ledger:
    """A ledger of five attestations, each of which has a quote of its own and a log that all share."""
    ledger.append_all(
        [(attested(number), {"quote": b"quote %d" % number, "log": b"log" * 1000}) for number in range(1, 6)]
    )
    return ledger


def attested(number: int) -> Attestation:
    return Attestation(
        host=f"host{number}",
        verdict="trusted",
        road="ek-certificate",
        volume="fde-crypt",
        volume_key_id=f"{number:064x}",
        root_hash="aa" * 32,
        reference_set="image 1",
        anchor=Anchor(number, 2, 7),
    )


Attack = Callable[[Ledger], ContextManager[Connection]]


@contextmanager
def _attack(ledger: Ledger) -> Iterator[Connection]:
    engine = create_engine(ledger.database.url, poolclass=NullPool)
    with engine.begin() as connection:
        if engine.dialect.name == "sqlite":
            for name in (
                connection.execute(text("SELECT name FROM sqlite_master WHERE type = 'trigger'")).scalars().all()
            ):
                connection.execute(text(f"DROP TRIGGER {name}"))
        else:
            connection.execute(text("DROP FUNCTION IF EXISTS ledger_append_only CASCADE"))
        yield connection


@pytest.fixture
def attack() -> Attack:
    """Connect to a ledger's database as its owner, with the guards removed."""
    return _attack
