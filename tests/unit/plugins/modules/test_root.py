# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the modules about the root say, run as modules. What they look at is tried on real roots elsewhere."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.cvm.fde.plugins.module_utils.agent.commit import Action, Outcome
from ansible_collections.cvm.fde.plugins.module_utils.errors import FdeError
from ansible_collections.cvm.fde.plugins.modules import root_commit, root_info

#: What dmsetup 2.03 says on a machine in the middle of hydration, by the command.
CLONE = {
    "table": "0 1048576 clone 253:2 253:1 253:0 128 0 4 hydration_threshold 64 hydration_batch_size 16",
    "status": "0 1048576 clone 8 12/1024 128 6400/8192 16 0 4 hydration_threshold 64 hydration_batch_size 16 rw",
}
STOPPED = {**CLONE, "status": CLONE["status"].replace("16 0 4 hydr", "0 1 no_hydration 4 hydr")}
LINEAR = {"table": "0 1048576 linear 253:0 8192", "status": ""}


def run(main, capsys, **options):
    with patch_module_args(options), pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code, json.loads(capsys.readouterr().out)


@pytest.fixture
def dmsetup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Have the program say what it said elsewhere."""

    def say(said: dict[str, str]) -> None:
        answers = "".join(f"{command}) cat {tmp_path / command} ;;\n" for command in said)
        for command, text in said.items():
            (tmp_path / command).write_text(f"{text}\n" if text else "")
        (tmp_path / "dmsetup").write_text(f'#!/bin/sh\ncase "$1" in\n{answers}esac\n')
        (tmp_path / "dmsetup").chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")

    return say


@pytest.mark.parametrize(
    ("said", "hydration"),
    [
        (CLONE, {"hydrated": 6400, "total": 8192, "percent": 78.1, "running": True}),
        (STOPPED, {"hydrated": 6400, "total": 8192, "percent": 78.1, "running": False}),
        (LINEAR, {"hydrated": 1, "total": 1, "percent": 100.0, "running": False}),
        ({}, None),
    ],
)
def test_the_progress_of_hydration_is_shown(dmsetup, mapped, capsys, said, hydration) -> None:
    dmsetup(said)
    if said:
        mapped("fde-root", 3)
    status, result = run(root_info.main, capsys)
    assert (status, result["changed"], result["root"]["hydration"]) == (0, False, hydration)


@pytest.mark.parametrize(
    ("name", "volume", "expected"),
    [
        ("fde-root", 0, {"bytes": 512 << 20, "of": 1000 << 20}),
        ("fde-upper", 0, {"bytes": 512 << 20, "of": 1000 << 20}),
        # A slice of another device, and no volume at all.
        ("fde-root", 9, None),
        ("fde-root", None, None),
    ],
)
def test_how_far_the_volume_is_written_is_shown(dmsetup, mapped, capsys, name, volume, expected) -> None:
    dmsetup({"table": "0 1048576 linear 254:0 8192", "status": ""})
    mapped(name, 3)
    if volume is not None:
        mapped("fde-crypt", volume, size=8192 + (1000 << 11) + 7)
    _status, result = run(root_info.main, capsys)
    assert result["root"]["written"] == expected


def test_what_cannot_be_found_out_is_null_and_says_why(dmsetup, mapped, capsys) -> None:
    dmsetup({})
    status, result = run(root_info.main, capsys)
    assert status == 0
    assert [result["root"][name] for name in ("strategy", "anchor", "header_digest", "refusal")] == [None] * 4
    assert any("roothash" in problem or "command line" in problem for problem in result["root"]["problems"])


def test_a_machine_without_a_root_of_ours_commits_nothing(capsys) -> None:
    status, result = run(root_commit.main, capsys)
    assert status == 1 and result["failed"]
    assert result["subject"] and result["cause"] and result["remedy"] and result["subject"] in result["msg"]


@pytest.mark.parametrize("check", [False, True])
@pytest.mark.parametrize(("action", "changed"), [(Action.COMMIT, True), (Action.NOTHING, False)])
def test_what_was_committed_is_shown(capsys, monkeypatch, check, action, changed) -> None:
    asked = []

    def commit(machine, *, seen, dry_run):
        asked.append((seen, dry_run))
        return Outcome(action, "ab" * 32, ("keyslot 2 was added (systemd-recovery)",))

    monkeypatch.setattr(root_commit, "this_machine", lambda _runner: None)
    monkeypatch.setattr(root_commit, "commit", commit)
    status, result = run(root_commit.main, capsys, digest="ab" * 32, _ansible_check_mode=check)
    assert (status, result["changed"], result["action"], result["digest"]) == (0, changed, action.value, "ab" * 32)
    assert asked == [("ab" * 32, check)]
    assert result["diff"]["after"] == "keyslot 2 was added (systemd-recovery)\n"


def test_a_header_that_is_not_committed_is_a_failure(capsys, monkeypatch) -> None:
    def commit(_machine, **_options):
        raise FdeError("/dev/vda4", "its header is not the one that was looked at", "Look at it again")

    monkeypatch.setattr(root_commit, "this_machine", lambda _runner: None)
    monkeypatch.setattr(root_commit, "commit", commit)
    status, result = run(root_commit.main, capsys, digest="cd" * 32)
    assert (status, result["subject"]) == (1, "/dev/vda4") and "Look at it again" in result["msg"]
