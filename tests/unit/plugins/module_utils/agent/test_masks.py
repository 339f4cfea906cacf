# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A record that cannot be read says nothing, and that is said."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ansible_collections.cvm.fde.plugins.module_utils.agent import masks
from ansible_collections.cvm.fde.plugins.module_utils.agent.configuration import Configuration, Strategy
from ansible_collections.cvm.fde.plugins.module_utils.agent.masks import Entry, Record, Why, compare, keep

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
