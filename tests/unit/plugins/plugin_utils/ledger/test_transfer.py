# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""An export is the ledger: the same digests come out of its import, or nothing at all."""

from __future__ import annotations

import base64
import io
import json
import stat
from pathlib import Path
from typing import Callable, ContextManager

import pytest
from ansible_collections.cvm.fde.plugins.module_utils.errors import FdeError, Refusal
from ansible_collections.cvm.fde.plugins.plugin_utils.ledger import transfer
from ansible_collections.cvm.fde.plugins.plugin_utils.ledger.chain import EMPTY, Head, digest_of
from ansible_collections.cvm.fde.plugins.plugin_utils.ledger.ledger import Ledger
from ansible_collections.cvm.fde.plugins.plugin_utils.ledger.records import Action, Attestation, Decision, Identity
from ansible_collections.cvm.fde.plugins.plugin_utils.ledger.transfer import export_lines, import_lines
from ansible_collections.cvm.fde.plugins.plugin_utils.ledger.transfer_file import Transferred, export_file, import_file
from ansible_collections.cvm.fde.plugins.plugin_utils.ledger.verification import verify
from sqlalchemy import Connection, text

from .conftest import Postgres, attested

Lines = list[dict]


def exported(ledger: Ledger) -> bytes:
    return b"".join(export_lines(ledger))


def imported(ledger: Ledger, content: bytes, remembered: Head | None = None) -> Head:
    return import_lines(ledger, io.BytesIO(content), remembered)


def test_an_import_into_an_empty_ledger_is_the_same_ledger(filled: Ledger, another: Ledger) -> None:
    filled.append(Identity("host1", "pinned", ek="ab" * 32), {"certificate": b"\x30\x82\xff"})
    filled.decide(Decision("host2", Action.RETIRE_HOST, "änn", "“gone”"))
    content = exported(filled)
    assert imported(another, content, filled.head()) == filled.head() == another.head()
    assert list(another.entries()) == list(filled.entries())
    assert [another.documents(entry) for entry in another.entries()] == [
        filled.documents(entry) for entry in filled.entries()
    ]
    assert exported(another) == content
    assert verify(another, filled.head()).sound
    assert another.append(Attestation("host6", "trusted", "pinned")).previous == filled.head().digest


def test_a_ledger_moves_between_the_kinds_of_database(tmp_path, postgres) -> None:
    file = Ledger.create(tmp_path / "ledger.db")
    file.append_all([(Attestation(f"host{n}", "trusted", "pinned"), {"quote": b"%d" % n}) for n in range(1100)])
    server = Ledger.create(postgres.new_schema())
    back = Ledger.create(tmp_path / "back.db")
    imported(server, exported(file))
    imported(back, exported(server))
    assert back.head() == server.head() == file.head()
    assert verify(back).sound and verify(server).sound


def test_an_empty_ledger_is_exported_and_imported(ledger: Ledger, another: Ledger) -> None:
    assert imported(another, exported(ledger)) == EMPTY


def test_an_import_into_a_ledger_that_is_not_empty_is_refused(filled: Ledger, another: Ledger) -> None:
    another.append(Attestation("mine", "trusted", "pinned"))
    with pytest.raises(FdeError, match="the ledger is not empty"):
        imported(another, exported(filled))
    assert another.head().sequence == 1


def edit(**columns: object) -> Callable[[Lines], None]:
    def change(lines: Lines) -> None:
        [line for line in lines if "entry" in line][2]["entry"].update(columns)

    return change


def remake(**columns: object) -> Callable[[Lines], None]:
    """Edit the last entry and make its digest and the head good."""

    def change(lines: Lines) -> None:
        row = lines[-2]["entry"]
        row.update(columns)
        row["digest"] = digest_of(row)
        lines[-1]["head"] = f"{row['sequence']}:{row['digest']}"

    return change


def drop_documents(lines: Lines) -> None:
    lines[:] = [line for line in lines if "document" not in line]


def other_content(lines: Lines) -> None:
    lines[1]["content"] = base64.b64encode(b"another").decode()


def unused_document(lines: Lines) -> None:
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    lines.insert(1, {"document": empty, "content": ""})


@pytest.mark.parametrize(
    ("attack", "cause"),
    [
        pytest.param(edit(verdict="untrusted"), "entry 3 is not what its digest", id="edited"),
        pytest.param(edit(sequence=7), "entries 3 to 6 are missing", id="renumbered"),
        pytest.param(edit(sequence="3"), "has no number", id="a number as text"),
        pytest.param(edit(sequence=True), "has no number", id="a number as bool"),
        pytest.param(edit(extra=1), "other columns", id="another column"),
        pytest.param(edit(state=None, host=["a"]), "is not what its digest", id="a list as host"),
        pytest.param(remake(recorded="yesterday"), "no record of this ledger", id="no moment"),
        pytest.param(remake(host="a\nb"), "no record of this ledger", id="a host of two lines"),
        pytest.param(remake(state="2"), "no record of this ledger", id="a state as text"),
        pytest.param(remake(documents='{"quote": "x"}'), "no record of this ledger", id="no digest"),
        pytest.param(remake(documents="[" * 100_000), "no record of this ledger", id="deep documents"),
        pytest.param(remake(kind="poem"), "no record of this ledger", id="another kind"),
        pytest.param(lambda lines: lines[3]["entry"].pop("host"), "other columns", id="a column less"),
        pytest.param(lambda lines: lines.pop(3), "missing", id="the first entry dropped"),
        pytest.param(lambda lines: lines.pop(-2), "another head", id="the last entry dropped"),
        pytest.param(lambda lines: lines.pop(), "has no end", id="no head"),
        pytest.param(lambda lines: lines.append(lines[-1]), "is not its end", id="more behind the end"),
        pytest.param(lambda lines: lines.pop(0), "no export", id="no beginning"),
        pytest.param(lambda lines: lines[0].update(version=2), "no export of a ledger in version 1", id="new version"),
        pytest.param(lambda lines: lines.insert(4, dict(lines[3])), "there twice", id="an entry twice"),
        pytest.param(lambda lines: lines.insert(2, dict(lines[1])), "second time", id="a document twice"),
        pytest.param(drop_documents, "did not come before it", id="no documents"),
        pytest.param(other_content, "not what its digest was made from", id="another document"),
        pytest.param(lambda lines: lines[1].update(content="*"), "not base64", id="not base64"),
        pytest.param(lambda lines: lines[1].update(content=7), "no text", id="a number as document"),
        pytest.param(unused_document, "belong to no entry", id="a document of no entry"),
        pytest.param(lambda lines: lines.insert(1, {"poem": 1}), "neither a document nor an entry", id="a poem"),
    ],
)
def test_a_changed_export_is_refused_whole(
    filled: Ledger, another: Ledger, attack: Callable[[Lines], object], cause: str
) -> None:
    lines = [json.loads(line) for line in export_lines(filled)]
    attack(lines)
    with pytest.raises(Refusal, match=cause):
        imported(another, b"".join(json.dumps(line).encode() + b"\n" for line in lines))
    assert another.head() == EMPTY
    assert verify(another).findings == ()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n",
        b"[]\n",
        b"null\n",
        b"\xff\n",
        b"[" * 100_000 + b"\n",
        b'{"format":"cvm.fde ledger"',
        b'{"a":1,"a":1}\n',
    ],
    ids=["nothing", "an empty line", "a list", "null", "no UTF-8", "deep JSON", "cut off", "a name twice"],
)
def test_what_is_no_export_is_refused(ledger: Ledger, content: bytes) -> None:
    with pytest.raises(Refusal, match="line 1 of the import"):
        imported(ledger, content)


def test_a_line_without_end_does_not_fill_the_memory(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "LINE_LIMIT", 1000)

    class Endless(io.RawIOBase):
        def readline(self, size: int = -1) -> bytes:
            assert 0 < size <= 1001
            return b"x" * size

    with pytest.raises(Refusal, match="too long"):
        import_lines(ledger, Endless())


def test_an_export_cut_off_with_a_forged_end_is_refused_against_a_remembered_head(
    filled: Ledger, another: Ledger
) -> None:
    remembered = filled.head()
    shorter = exported(filled).splitlines(keepends=True)[:-3]
    last = [json.loads(line) for line in shorter][-1]["entry"]
    content = b"".join(shorter) + json.dumps({"head": f"{last['sequence']}:{last['digest']}"}).encode() + b"\n"
    with pytest.raises(Refusal, match="the remembered head is entry 5"):
        imported(another, content, remembered)
    assert imported(another, content).sequence == 4


# --- as files


def test_a_file_is_written_whole_for_its_owner_once(filled: Ledger, tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    assert export_file(filled, path, write=False) == Transferred(True, None, filled.head())
    assert list(tmp_path.glob("*.jsonl")) == []
    assert export_file(filled, path, write=True).changed
    assert path.read_bytes() == exported(filled)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    for write in (True, False):
        assert not export_file(filled, path, write).changed
    filled.append(attested(6))
    assert export_file(filled, path, write=True).changed
    assert [file.name for file in tmp_path.iterdir() if file.name.startswith(".ledger-")] == []


def test_an_export_that_others_can_read_is_written_anew(filled: Ledger, tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    export_file(filled, path, write=True)
    path.chmod(0o644)
    assert export_file(filled, path, write=False).changed
    assert export_file(filled, path, write=True).changed
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert not export_file(filled, path, write=True).changed


def test_what_cannot_be_exported_leaves_the_file_that_was_there(
    filled: Ledger, attack: Callable[[Ledger], ContextManager[Connection]], tmp_path: Path
) -> None:
    path = tmp_path / "ledger.jsonl"
    export_file(filled, path, write=True)
    before = path.read_bytes()
    with attack(filled) as connection:
        connection.execute(text("UPDATE ledger_entries SET verdict = 'untrusted' WHERE sequence = 3"))
    with pytest.raises(Refusal):
        export_file(filled, path, write=True)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir() if file.name.startswith(".ledger-")] == []
    with pytest.raises(FdeError, match="it cannot be written"):
        export_file(Ledger.create(tmp_path / "sound.db"), tmp_path / "nowhere" / "ledger.jsonl", write=True)


def test_a_file_is_imported_once_and_never_over_another_ledger(filled: Ledger, tmp_path: Path) -> None:
    path, there = tmp_path / "ledger.jsonl", tmp_path / "new.db"
    export_file(filled, path, write=True)
    head = filled.head()
    assert import_file(there, path, head, write=False) == Transferred(True, None, head)
    assert not there.exists()
    assert import_file(there, path, head, write=True).changed
    for write in (True, False):
        assert not import_file(there, path, head, write).changed
    Ledger(there).append(attested(6))
    for write in (True, False):
        with pytest.raises(FdeError, match="the ledger is not empty"):
            import_file(there, path, None, write)
    assert Ledger(there).head().sequence == 6


@pytest.mark.parametrize("write", [True, False])
def test_a_file_that_is_cut_off_or_lacks_the_remembered_head_makes_no_ledger(
    filled: Ledger, tmp_path: Path, write: bool
) -> None:
    path, there = tmp_path / "ledger.jsonl", tmp_path / "new.db"
    export_file(filled, path, write=True)
    with pytest.raises(Refusal):
        import_file(there, path, Head(9, "ab" * 32), write)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(Refusal):
        import_file(there, path, None, write)
    with pytest.raises(FdeError, match="it cannot be read"):
        import_file(there, tmp_path / "none.jsonl", None, write)
    assert not there.exists()


def test_files_carry_a_ledger_from_sqlite_to_postgresql_and_back(tmp_path: Path, postgres: Postgres) -> None:
    file = Ledger.create(tmp_path / "ledger.db")
    file.append_all([(attested(n), {"quote": b"%d" % n, "log": b"log" * 1000}) for n in range(1, 50)])
    path, url, back = tmp_path / "ledger.jsonl", postgres.new_schema(), tmp_path / "back.db"
    export_file(file, path, write=True)
    head = import_file(url, path, file.head(), write=True).head
    export_file(Ledger(url), tmp_path / "again.jsonl", write=True)
    import_file(back, tmp_path / "again.jsonl", head, write=True)
    assert Ledger(back).head() == Ledger(url).head() == file.head() == head
    assert (tmp_path / "again.jsonl").read_bytes() == path.read_bytes()
    assert verify(Ledger(back), head).sound and verify(Ledger(url), head).sound
