# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""An attacker who owns the database, has dropped the triggers and edits what lies there."""

from __future__ import annotations

import sqlite3
import zlib
from pathlib import Path
from typing import Callable, ContextManager

import pytest
from ansible_collections.cvm.fde.plugins.module_utils.errors import FdeError, Refusal
from ansible_collections.cvm.fde.plugins.plugin_utils.ledger.chain import Flaw, Head, digest_of, link
from ansible_collections.cvm.fde.plugins.plugin_utils.ledger.documents import DOCUMENT_LIMIT
from ansible_collections.cvm.fde.plugins.plugin_utils.ledger.ledger import Ledger
from ansible_collections.cvm.fde.plugins.plugin_utils.ledger.records import Action, Attestation, Decision, Identity
from ansible_collections.cvm.fde.plugins.plugin_utils.ledger.schema import documents, entries
from ansible_collections.cvm.fde.plugins.plugin_utils.ledger.transfer import export_lines
from ansible_collections.cvm.fde.plugins.plugin_utils.ledger.verification import FINDING_LIMIT, Verification, verify
from sqlalchemy import Connection, create_engine, select, text
from sqlalchemy.exc import DBAPIError

Attack = Callable[[Ledger], ContextManager[Connection]]


def flaws(verification: Verification) -> set[tuple[Flaw, int | None]]:
    """Return what was found beyond the dropped triggers, which every attack here needs and which is always found."""
    found = {(finding.flaw, finding.sequence) for finding in verification.findings}
    assert (Flaw.UNGUARDED, None) in found
    return found - {(Flaw.UNGUARDED, None)}


def row_of(connection: Connection, sequence: int) -> dict[str, object]:
    return dict(connection.execute(select(entries).where(entries.c.sequence == sequence)).mappings().one())


def put(connection: Connection, number: int, /, **columns: object) -> None:
    connection.execute(entries.update().where(entries.c.sequence == number).values(**columns))


def drop(connection: Connection, *sequences: int) -> None:
    connection.execute(entries.delete().where(entries.c.sequence.in_(sequences)))


def test_an_untouched_ledger_is_sound(filled: Ledger) -> None:
    verification = verify(filled, filled.head())
    assert verification.findings == ()
    assert (verification.entries, verification.documents, verification.head) == (5, 6, filled.head())


def test_dropped_triggers_alone_are_told(filled: Ledger, attack: Attack) -> None:
    with attack(filled):
        pass
    verification = verify(filled)
    assert not verification.sound
    assert flaws(verification) == set()


@pytest.mark.parametrize("name", [column.name for column in entries.columns])
def test_an_edit_of_any_column_is_found(filled: Ledger, attack: Attack, name: str) -> None:
    remembered = filled.head()
    values = {"sequence": 9, "state": 3, "reset_count": 4, "generation": f"{9:020d}", "documents": "{}"}
    with attack(filled) as connection:
        put(connection, 3, **{name: values.get(name, "ff" * 32)})
    found = flaws(verify(filled, remembered))
    if name == "sequence":
        assert {(Flaw.MISSING, 3), (Flaw.EDITED, 9)} <= found
    else:
        assert (Flaw.EDITED, 3) in found


def test_an_edit_with_its_digest_made_good_is_found_at_the_next_entry(filled: Ledger, attack: Attack) -> None:
    with attack(filled) as connection:
        forged = {**row_of(connection, 3), "verdict": "untrusted"}
        put(connection, 3, verdict="untrusted", digest=digest_of(forged))
    assert flaws(verify(filled)) == {(Flaw.DETACHED, 4)}


def test_an_edit_of_the_last_entry_made_good_is_found_against_a_remembered_head(filled: Ledger, attack: Attack) -> None:
    remembered = filled.head()
    with attack(filled) as connection:
        forged = {**row_of(connection, 5), "verdict": "untrusted"}
        put(connection, 5, verdict="untrusted", digest=digest_of(forged))
    assert flaws(verify(filled)) == set()
    assert flaws(verify(filled, remembered)) == {(Flaw.REWRITTEN, 5)}


@pytest.mark.parametrize(("dropped", "missing"), [((1,), 1), ((3,), 3), ((2, 3), 2)])
def test_dropped_entries_are_found(filled: Ledger, attack: Attack, dropped: tuple[int, ...], missing: int) -> None:
    with attack(filled) as connection:
        drop(connection, *dropped)
    found = flaws(verify(filled))
    assert {(Flaw.MISSING, missing), (Flaw.DETACHED, max(dropped) + 1)} <= found


def test_a_dropped_entry_is_found_although_those_after_it_were_numbered_again(filled: Ledger, attack: Attack) -> None:
    with attack(filled) as connection:
        drop(connection, 3)
        put(connection, 4, sequence=3)
        put(connection, 5, sequence=4)
    assert {(Flaw.EDITED, 3), (Flaw.DETACHED, 3), (Flaw.EDITED, 4)} <= flaws(verify(filled))


def test_a_truncated_end_is_found_against_a_remembered_head_and_not_without(filled: Ledger, attack: Attack) -> None:
    """The documents of the dropped entries have to go too, or they give the truncation away."""
    remembered = filled.head()
    with attack(filled) as connection:
        drop(connection, 4, 5)
    assert {flaw for flaw, _where in flaws(verify(filled))} == {Flaw.DOCUMENT}
    with attack(filled) as connection:
        kept = [quote for number in (1, 2, 3) for quote in filled_documents(connection, number)]
        connection.execute(documents.delete().where(documents.c.digest.not_in(kept)))
    assert flaws(verify(filled)) == set()
    assert flaws(verify(filled, remembered)) == {(Flaw.TRUNCATED, 5)}


def filled_documents(connection: Connection, sequence: int) -> list[str]:
    stored = str(row_of(connection, sequence)["documents"])
    return [part for part in stored.split('"') if len(part) == 64]


def test_an_emptied_ledger_is_found_against_a_remembered_head_and_not_without(filled: Ledger, attack: Attack) -> None:
    remembered = filled.head()
    with attack(filled) as connection:
        connection.execute(entries.delete())
        connection.execute(documents.delete())
    assert flaws(verify(filled)) == set()
    assert flaws(verify(filled, remembered)) == {(Flaw.TRUNCATED, 5)}


def test_entries_that_traded_places_are_found(filled: Ledger, attack: Attack) -> None:
    with attack(filled) as connection:
        put(connection, 2, sequence=-1)
        put(connection, 4, sequence=2)
        put(connection, -1, sequence=4)
    found = flaws(verify(filled))
    assert {(Flaw.EDITED, 2), (Flaw.EDITED, 4), (Flaw.DETACHED, 2), (Flaw.DETACHED, 4)} <= found


def test_an_inserted_entry_is_found(filled: Ledger, attack: Attack) -> None:
    with attack(filled) as connection:
        for sequence in (5, 4, 3):
            put(connection, sequence, sequence=sequence + 1)
        second = row_of(connection, 2)
        forged = link({**second, "host": "forged"}, Head(2, str(second["digest"])))
        connection.execute(entries.insert().values(forged))
    assert {(Flaw.EDITED, 4), (Flaw.DETACHED, 4)} <= flaws(verify(filled))


@pytest.mark.parametrize("sequence", [0, -5, 7])
def test_an_entry_outside_the_numbers_is_found(filled: Ledger, attack: Attack, sequence: int) -> None:
    with attack(filled) as connection:
        forged = {**row_of(connection, 1), "sequence": sequence}
        connection.execute(entries.insert().values({**forged, "digest": digest_of(forged)}))
    assert {flaw for flaw, _where in flaws(verify(filled))} & {Flaw.MISPLACED, Flaw.MISSING}


def test_a_forged_entry_at_the_end_is_not_found(filled: Ledger, attack: Attack) -> None:
    """A chain is no signature: whoever may write may append. The documentation says so, and so does this test."""
    remembered = filled.head()
    with attack(filled) as connection:
        forged = link({**row_of(connection, 5), "host": "forged"}, remembered)
        connection.execute(entries.insert().values(forged))
    assert flaws(verify(filled, remembered)) == set()


def test_a_history_written_again_is_found_against_a_remembered_head_and_not_without(
    filled: Ledger, another: Ledger, attack: Attack
) -> None:
    """Somebody who may write recomputes every digest from the third entry on."""
    remembered = filled.head()
    with attack(filled) as connection:
        head = Head(2, str(row_of(connection, 2)["digest"]))
        for sequence in (3, 4, 5):
            forged = link({**row_of(connection, sequence), "verdict": "untrusted"}, head)
            put(connection, sequence, **forged)
            head = Head(sequence, str(forged["digest"]))
    assert flaws(verify(filled)) == set()
    assert flaws(verify(filled, remembered)) == {(Flaw.REWRITTEN, 5)}


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(zlib.compress(b"another quote"), id="another document"),
        pytest.param(b"not compressed", id="not compressed"),
        pytest.param(zlib.compress(b"quote 3")[:-1], id="cut off"),
        pytest.param(zlib.compress(b"quote 3") + b"more", id="with more behind it"),
        pytest.param(zlib.compress(bytes(DOCUMENT_LIMIT + 1)), id="a decompression bomb"),
        pytest.param(b"", id="nothing"),
    ],
)
def test_an_edited_document_is_found_and_never_handed_out(filled: Ledger, attack: Attack, content: bytes) -> None:
    entry = list(filled.entries())[2]
    with attack(filled) as connection:
        edited = documents.c.digest == entry.documents["quote"]
        connection.execute(documents.update().where(edited).values(content=content))
    assert flaws(verify(filled)) == {(Flaw.DOCUMENT, None), (Flaw.DOCUMENT, 3)}
    with pytest.raises(Refusal, match="a document of entry 3 is gone or was changed"):
        filled.documents(entry)
    with pytest.raises(Refusal, match="is gone or was changed"):
        list(export_lines(filled))


def test_a_dropped_document_is_found_at_every_entry_that_names_it(filled: Ledger, attack: Attack) -> None:
    entry = list(filled.entries())[0]
    with attack(filled) as connection:
        connection.execute(documents.delete().where(documents.c.digest == entry.documents["log"]))
    assert flaws(verify(filled)) == {(Flaw.DOCUMENT, sequence) for sequence in range(1, 6)}
    with pytest.raises(Refusal, match="a document of entry 1 is gone"):
        filled.documents(entry)


def test_a_document_that_no_entry_names_is_found(filled: Ledger, attack: Attack) -> None:
    with attack(filled) as connection:
        connection.execute(documents.insert().values(digest="ab" * 32, content=zlib.compress(b"stray")))
    assert flaws(verify(filled)) == {(Flaw.DOCUMENT, None)}


def test_an_edited_entry_is_never_handed_out(filled: Ledger, attack: Attack) -> None:
    with attack(filled) as connection:
        put(connection, 5, verdict="untrusted")
    with pytest.raises(Refusal, match="entry 5 is not what was recorded"):
        list(filled.entries())
    with pytest.raises(Refusal, match="entry 5 is not what was recorded"):
        filled.head()
    with pytest.raises(Refusal, match="entry 5 is not what"):
        list(export_lines(filled))


def test_an_edited_identity_decides_nothing(ledger: Ledger, attack: Attack) -> None:
    """The second host's name is written over the first one's, so that they no longer share a key."""
    for host in "ab":
        ledger.append(Identity(host, "pinned", ek="ab" * 32))
    ledger.append(Attestation("c", "trusted", "pinned"))
    decision = Decision("b", Action.APPROVE_IDENTITY, "ann", "the right one", key="ab" * 32)
    with attack(ledger) as connection:
        put(connection, 1, host="b")
    for ask in (ledger.conflicts, ledger.register, lambda: ledger.decide(decision)):
        with pytest.raises(Refusal, match="entry 1 is not what was recorded"):
            ask()


def test_nothing_is_built_on_an_edited_end(filled: Ledger, attack: Attack) -> None:
    with attack(filled) as connection:
        put(connection, 5, verdict="untrusted")
    with pytest.raises(Refusal, match="entry 5 is not what was recorded"):
        filled.append(Attestation("host6", "trusted", "pinned"))


def test_of_many_findings_the_first_are_told_and_the_others_counted(ledger: Ledger, attack: Attack) -> None:
    ledger.append_all([(Attestation(f"host{number}", "trusted", "pinned"), {}) for number in range(300)])
    with attack(ledger) as connection:
        connection.execute(entries.update().values(verdict="untrusted"))
    verification = verify(ledger)
    assert len(verification.findings) == FINDING_LIMIT
    assert verification.omitted == 300 + guards_of(ledger) - FINDING_LIMIT


def guards_of(ledger: Ledger) -> int:
    return 9 if ledger.database.url.get_backend_name() == "sqlite" else 3


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE ledger_entries SET verdict = 'trusted'",
        "DELETE FROM ledger_entries",
        "UPDATE ledger_documents SET digest = digest",
        "DELETE FROM ledger_documents",
        "UPDATE ledger_schema SET version = 2",
        "DELETE FROM ledger_schema",
    ],
)
def test_the_database_refuses_to_change_what_is_recorded(filled: Ledger, statement: str) -> None:
    engine = create_engine(filled.database.url)
    with pytest.raises(DBAPIError, match="the ledger is append-only"), engine.begin() as connection:
        connection.execute(text(statement))
    engine.dispose()
    assert verify(filled).sound


@pytest.mark.parametrize("table", ["ledger_entries", "ledger_documents", "ledger_schema"])
def test_the_database_refuses_to_replace_or_truncate_what_is_recorded(filled: Ledger, table: str) -> None:
    statement = f"TRUNCATE {table}"
    if filled.database.url.get_backend_name() == "sqlite":
        statement = f"INSERT OR REPLACE INTO {table} SELECT * FROM {table}"
    engine = create_engine(filled.database.url)
    with pytest.raises(DBAPIError, match="the ledger is append-only"), engine.begin() as connection:
        connection.execute(text(statement))
    engine.dispose()
    assert verify(filled).sound


@pytest.fixture
def file(tmp_path: Path) -> Ledger:
    """A ledger in a file: SQLite takes any type in any column."""
    ledger = Ledger.create(tmp_path / "ledger.db")
    ledger.append_all([(Attestation("host", "trusted", "pinned"), {"quote": b"quote"})] * 3)
    return ledger


@pytest.mark.parametrize(
    ("statement", "flaw"),
    [
        ("UPDATE ledger_entries SET host = x'ff00' WHERE sequence = 2", (Flaw.EDITED, 2)),
        ("UPDATE ledger_entries SET host = 5 WHERE sequence = 2", (Flaw.EDITED, 2)),
        ("UPDATE ledger_entries SET state = 1.5 WHERE sequence = 2", (Flaw.EDITED, 2)),
        ("UPDATE ledger_entries SET digest = x'00' WHERE sequence = 2", (Flaw.EDITED, 2)),
        ("UPDATE ledger_entries SET documents = '[[[' WHERE sequence = 2", (Flaw.EDITED, 2)),
        ("UPDATE ledger_entries SET documents = '[1]' WHERE sequence = 2", (Flaw.EDITED, 2)),
        ("UPDATE ledger_entries SET host = CAST(x'ff' AS TEXT) WHERE sequence = 2", (Flaw.UNREADABLE, None)),
        ("UPDATE ledger_documents SET content = 'text'", (Flaw.DOCUMENT, None)),
        ("UPDATE ledger_documents SET content = 123456789012", (Flaw.DOCUMENT, None)),
        ("UPDATE ledger_documents SET content = zeroblob(40000000)", (Flaw.DOCUMENT, None)),
        ("UPDATE ledger_documents SET digest = x'00'", (Flaw.DOCUMENT, None)),
        ("UPDATE ledger_documents SET digest = CAST(x'ff' AS TEXT)", (Flaw.UNREADABLE, None)),
    ],
)
def test_values_of_wrong_types_are_findings_and_no_crash(
    file: Ledger, attack: Attack, statement: str, flaw: tuple[Flaw, int | None]
) -> None:
    with attack(file) as connection:
        connection.execute(text(statement))
    assert flaw in flaws(verify(file))


def test_a_number_that_is_there_twice_is_found(file: Ledger, attack: Attack) -> None:
    """The attacker replaces the table by one without a key."""
    with attack(file) as connection:
        connection.execute(text("CREATE TABLE copy AS SELECT * FROM ledger_entries"))
        connection.execute(text("INSERT INTO copy SELECT * FROM ledger_entries WHERE sequence = 2"))
        connection.execute(text("DROP TABLE ledger_entries"))
        connection.execute(text("ALTER TABLE copy RENAME TO ledger_entries"))
    assert (Flaw.MISPLACED, 2) in flaws(verify(file))


def test_entries_without_numbers_are_found(file: Ledger, attack: Attack) -> None:
    with attack(file) as connection:
        connection.execute(text("CREATE TABLE copy AS SELECT * FROM ledger_entries"))
        connection.execute(text("UPDATE copy SET sequence = 'two' WHERE sequence = 2"))
        connection.execute(text("DROP TABLE ledger_entries"))
        connection.execute(text("ALTER TABLE copy RENAME TO ledger_entries"))
    assert {(Flaw.MISPLACED, None), (Flaw.MISSING, 2)} <= flaws(verify(file))


def test_a_damaged_file_is_the_users_error(file: Ledger) -> None:
    path = Path(str(file.database.url.database))
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    path.write_bytes(b"no database at all" * 1000)
    with pytest.raises(FdeError, match="the database refused"):
        Ledger(path)
