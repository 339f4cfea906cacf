# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where a ledger may lie, who may read it, and what the user is told when it cannot be used."""

from __future__ import annotations

import sqlite3
import stat
from pathlib import Path
from typing import Callable, ContextManager

import pytest
from ansible_collections.cvm.fde.plugins.module_utils.errors import FdeError
from ansible_collections.cvm.fde.plugins.plugin_utils.ledger import database
from ansible_collections.cvm.fde.plugins.plugin_utils.ledger.ledger import Ledger
from ansible_collections.cvm.fde.plugins.plugin_utils.ledger.records import Attestation
from ansible_collections.cvm.fde.plugins.plugin_utils.ledger.verification import verify
from sqlalchemy import Connection, create_engine, make_url, text
from sqlalchemy.pool import NullPool

Attack = Callable[[Ledger], ContextManager[Connection]]


def test_a_ledger_is_not_made_by_opening_it(where: str) -> None:
    """A verifier that made one would take a ledger that was stolen for one that was never used."""
    with pytest.raises(FdeError, match="there is no ledger here"):
        Ledger(where)
    if "://" not in where:
        assert not Path(where).exists()


def test_a_ledger_that_exists_is_opened_by_creating_it(filled: Ledger) -> None:
    assert Ledger.create(filled.database.url.render_as_string(hide_password=False)).head() == filled.head()


@pytest.mark.parametrize("versions", [[], [2], [1, 2], [0]])
def test_a_ledger_of_an_unknown_version_is_refused(filled: Ledger, attack: Attack, versions: list[int]) -> None:
    with attack(filled) as connection:
        connection.execute(text("DELETE FROM ledger_schema"))
        for version in versions:
            connection.execute(text(f"INSERT INTO ledger_schema VALUES ({version})"))
    where = filled.database.url.render_as_string(hide_password=False)
    for opens in (Ledger, Ledger.create):
        with pytest.raises(FdeError, match="this collection knows version 1"):
            opens(where)


@pytest.mark.parametrize("form", ["{path}", "sqlite:///{path}", "sqlite+pysqlite:///{path}"])
def test_a_file_is_named_by_path_or_url_and_is_its_owners_alone(tmp_path: Path, form: str) -> None:
    path = tmp_path / "ledger.db"
    ledger = Ledger.create(form.format(path=path))
    ledger.append(Attestation("host", "trusted", "pinned"))
    with ledger.database.reading():
        modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()}
    assert set(modes) == {"ledger.db", "ledger.db-wal", "ledger.db-shm"}
    assert set(modes.values()) == {0o600}


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o666])
def test_a_file_that_others_may_read_or_write_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "ledger.db"
    Ledger.create(path)
    path.chmod(mode)
    for opens in (Ledger, Ledger.create):
        with pytest.raises(FdeError, match=f"mode {mode:04o}.*chmod 600"):
            opens(path)


def test_a_ledger_keeps_its_place_when_the_directory_is_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ledger = Ledger.create("ledger.db")
    monkeypatch.chdir("/")
    ledger.append(Attestation("host", "trusted", "pinned"))
    assert Ledger(tmp_path / "ledger.db").head().sequence == 1


@pytest.mark.parametrize(
    "where",
    [
        "",
        "sqlite://",
        "sqlite:///:memory:",
        ":memory:",
        "sqlite:///file:x?uri=true",
        "mysql://db/fde",
        "://",
        "x://",
        "a://b:c/d",
    ],
)
def test_what_names_no_ledger_is_refused(where: str) -> None:
    with pytest.raises(FdeError, match="neither the path of a file nor"):
        Ledger.create(where)


def test_a_file_that_cannot_be_made_is_the_users_error(tmp_path: Path) -> None:
    with pytest.raises(FdeError, match="cannot be created: No such file or directory"):
        Ledger.create(tmp_path / "absent" / "ledger.db")


def test_a_database_of_something_else_is_no_ledger(tmp_path: Path) -> None:
    path = tmp_path / "other.db"
    path.touch(0o600)
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE poems (text)")
    connection.close()
    with pytest.raises(FdeError, match="there is no ledger here"):
        Ledger(path)


def test_the_password_of_a_server_is_in_no_message(tmp_path: Path) -> None:
    with pytest.raises(FdeError) as raised:
        Ledger(f"postgresql://fde:hunter2@/fde?host={tmp_path}")
    assert "the database refused" in str(raised.value)
    assert "hunter2" not in str(raised.value)
    assert "fde:***@" in raised.value.subject


def test_a_writer_that_waited_too_long_says_so(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "LOCK_TIMEOUT", 1)
    waiting = Ledger(ledger.database.url.render_as_string(hide_password=False))
    with ledger.database.writing(), pytest.raises(FdeError, match="another writer held the ledger for more than 1 sec"):
        waiting.append(Attestation("host", "trusted", "pinned"))
    assert waiting.append(Attestation("host", "trusted", "pinned")).sequence == 1


def test_an_account_that_may_only_read_and_insert_is_enough(postgres) -> None:
    """The documentation advises to give the verifier no more than that; the owner of the tables is somebody else."""
    url = make_url(postgres.new_schema())
    schema = str(url.query["options"]).partition("=")[2]
    owner = Ledger.create(url.render_as_string(hide_password=False))
    role = f"verifier_{schema}"
    engine = create_engine(url, poolclass=NullPool)
    with engine.begin() as connection:
        connection.execute(text(f"CREATE ROLE {role} LOGIN"))
        connection.execute(text(f"GRANT USAGE ON SCHEMA {schema} TO {role}"))
        connection.execute(text(f"GRANT SELECT, INSERT ON ledger_entries, ledger_documents TO {role}"))
        connection.execute(text(f"GRANT SELECT ON ledger_schema TO {role}"))
    verifier = Ledger(url.set(username=role).render_as_string(hide_password=False))
    verifier.append(Attestation("host", "trusted", "pinned"), {"quote": b"quote"})
    assert verify(verifier).sound
    assert owner.head().sequence == 1
