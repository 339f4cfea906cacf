# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What hides a file of the image, what an update changed below it, and what is said where that cannot be told."""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ansible_collections.cvm.fde.plugins.module_utils.agent import masks
from ansible_collections.cvm.fde.plugins.module_utils.agent.configuration import Configuration, Strategy
from ansible_collections.cvm.fde.plugins.module_utils.agent.masks import Entry, Record, Why, compare, keep, masked

HASH = "ab" * 32
MASKED = {"changed": Entry("mine", "theirs", True), "same": Entry("one", "one", True), "gone": Entry(None, "it", True)}


def test_where_nothing_was_ever_recorded_nothing_is_reported() -> None:
    assert compare(None, HASH, MASKED).reported == {}


def test_without_a_record_that_can_be_read_every_hidden_file_is_reported() -> None:
    found = compare(None, HASH, MASKED, unreadable=True)
    assert found.reported == {"changed": Why.UNCOMPARED, "gone": Why.UNCOMPARED}
    assert found.known == {"changed": "theirs", "same": "one", "gone": "it"}


def test_what_could_not_be_compared_stays_reported_until_it_is_mended() -> None:
    found = compare(None, HASH, MASKED, unreadable=True)
    assert compare(found, HASH, MASKED).reported == found.reported
    mended = {**MASKED, "changed": Entry("theirs", "theirs", True)}
    assert compare(found, HASH, mended).reported == {"gone": Why.UNCOMPARED}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"null",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"version": 1, "root_hash": "x", "known": [], "reported": {}}',
        b'{"version": 1, "root_hash": "x", "known": {}, "reported": {"a": "no such reason"}}',
        b'{"version": 2, "root_hash": "x", "known": {}, "reported": {}}',
        b"\xff\xfe",
    ],
)
def test_what_is_no_record_is_none(content: bytes) -> None:
    assert Record.unmarshal(content) is None


@pytest.fixture
def machine(tmp_path: Path) -> Any:
    for directory in ("upper/data", "lower"):
        (tmp_path / directory).mkdir(parents=True)
    (tmp_path / "upper/data/file").write_bytes(b"mine")
    (tmp_path / "lower/file").write_bytes(b"the image's")
    configuration = Configuration(bytes.fromhex(HASH), Strategy.OVERLAY)
    return SimpleNamespace(paths=SimpleNamespace(state=tmp_path), configuration=configuration)


@pytest.mark.parametrize("content", [b"{", b"[" * 100_000, b" " * 65])
def test_a_record_that_is_damaged_or_too_large_is_reported(
    machine: Any, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(masks, "_LIMIT", 64 if content == b" " * 65 else 64 << 20)
    place = machine.paths.state / "upper/masked.json"
    place.write_bytes(content)
    told: list[str] = []
    assert keep(machine, told.append).reported == {"file": Why.UNCOMPARED}
    assert str(place) in told[0] and told[0].startswith("<4>")
    assert any("/file" in line and "uncompared" in line for line in told)
    assert json.loads((machine.paths.state / "masks.json").read_text())["outdated"] == {"file": "uncompared"}


def test_a_first_look_and_a_record_as_large_as_may_be_are_quiet(machine: Any) -> None:
    told: list[str] = []
    first = keep(machine, told.append)
    assert first.reported == {} and keep(machine, told.append) == first
    assert not [line for line in told if line.startswith("<4>")]


def updated(machine: Any) -> None:
    """Let another image be below, as the root hash of the next boot says."""
    machine.configuration = Configuration(bytes.fromhex("cd" * 32), Strategy.OVERLAY)


def delete(upper: Path) -> None:
    """Leave what overlayfs does where a lower file or directory was deleted."""
    os.mknod(upper, stat.S_IFCHR | 0o644, os.makedev(0, 0))


#: What an instance can have in the place of a directory of the image. A link may lead to where such files are.
REPLACED: dict[str, Callable[[Path], object]] = {
    "deleted": delete,
    "a file": lambda upper: upper.write_bytes(b"mine"),
    "a link to nowhere": lambda upper: upper.symlink_to("/nowhere"),
    "a link to the like": lambda upper: upper.symlink_to(upper.parents[2] / "like"),
}


@pytest.mark.parametrize("replaced", REPLACED)
def test_what_an_update_changes_below_a_directory_that_is_gone_is_reported(machine: Any, replaced: str) -> None:
    upper, lower = machine.paths.state / "upper/data", machine.paths.state / "lower"
    for directory in (lower / "opt/app", machine.paths.state / "like"):
        (directory / "lib").mkdir(parents=True)
        for name in ("program", "lib/module", "lib/same"):
            (directory / name).write_bytes(b"old")
    (lower / "opt/app/lib64").symlink_to("lib")
    (upper / "opt").mkdir()
    REPLACED[replaced](upper / "opt/app")
    assert keep(machine, lambda _: None).reported == {}
    updated(machine)
    (lower / "opt/app/program").write_bytes(b"patched")
    (lower / "opt/app/lib/module").write_bytes(b"patched")
    (lower / "opt/app/lib/added").write_bytes(b"new")
    (lower / "opt/app/lib64").unlink()
    (lower / "opt/app/lib64").symlink_to("lib/x86_64")
    assert keep(machine, lambda _: None).reported == {
        "opt/app/program": Why.CHANGED,
        "opt/app/lib/module": Why.CHANGED,
        "opt/app/lib/added": Why.ADDED,
        "opt/app/lib64": Why.CHANGED,
    }


def test_below_a_directory_that_went_unseen_nothing_is_known(machine: Any) -> None:
    upper, lower = machine.paths.state / "upper/data", machine.paths.state / "lower"
    (lower / "app").mkdir()
    (lower / "app/program").write_bytes(b"old")
    assert keep(machine, lambda _: None).reported == {}
    delete(upper / "app")
    updated(machine)
    assert keep(machine, lambda _: None).reported == {"app": Why.UNRECORDED, "app/program": Why.UNRECORDED}


def test_a_deleted_file_that_is_another_one_in_the_newer_image_is_reported(machine: Any) -> None:
    upper, lower = machine.paths.state / "upper/data", machine.paths.state / "lower"
    for name in ("deleted", "left"):
        (lower / name).write_bytes(b"old")
        delete(upper / name)
    assert keep(machine, lambda _: None).reported == {}
    updated(machine)
    (lower / "deleted").write_bytes(b"patched")
    assert keep(machine, lambda _: None).reported == {"deleted": Why.CHANGED}


@pytest.mark.parametrize("then", [lambda _path: None, delete], ids=["gone", "deleted"])
def test_a_directory_that_goes_while_it_is_looked_at_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, then: Callable[[Path], object]
) -> None:
    upper, lower = tmp_path / "upper", tmp_path / "lower"
    for layer in (upper, lower):
        (layer / "going").mkdir(parents=True)
        (layer / "going/file").write_bytes(b"it")
        (layer / "staying").write_bytes(b"it")
    real = os.scandir

    def scan(path: Path) -> Any:
        if path == upper / "going":
            shutil.rmtree(path)
            then(path)
        return real(path)

    monkeypatch.setattr(os, "scandir", scan)
    assert list(dict(masked(upper, lower, {}))) == ["staying"]


def test_a_file_that_goes_while_it_is_looked_at_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    upper, lower = tmp_path / "upper", tmp_path / "lower"
    for layer in (upper, lower):
        layer.mkdir()
        for name in ("going", "staying"):
            (layer / name).write_bytes(b"it")
    real = os.lstat

    def look(path: Path) -> Any:
        found = real(path)
        if path == upper / "going":
            path.unlink()
        return found

    monkeypatch.setattr(os, "lstat", look)
    assert list(dict(masked(upper, lower, {}))) == ["staying"]
