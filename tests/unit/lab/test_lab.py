# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab tells a slow guest from a hung one, and its own processes from others."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from ansible_collections.cvm.fde.tests.lab import cache
from ansible_collections.cvm.fde.tests.lab.cache import cached, digest
from ansible_collections.cvm.fde.tests.lab.process import Background
from ansible_collections.cvm.fde.tests.lab.serial import SerialLog, Silence

WAITING = b"\r\x1b[K[   \x1b[0;31m*\x1b[0;1;31m*\x1b[0m] (1 of 2) Job dev-x.device/start running (25s / no limit)\r\n"


def test_a_guest_that_keeps_talking_is_never_given_up() -> None:
    silence = Silence(patience=10, now=0)
    assert not any(silence.lasts(size=second, now=second) for second in range(100))


def test_a_guest_that_says_nothing_new_for_too_long_is_given_up() -> None:
    silence = Silence(patience=10, now=0)
    assert [silence.lasts(size=7, now=second) for second in (1, 5, 11, 12)] == [False, False, False, True]


def test_a_boot_is_what_was_said_since_it_began(tmp_path: Path) -> None:
    log = SerialLog(tmp_path / "serial.log")
    for said in (b"first", b"second"):
        log.begin_boot()
        with open(log.path, "ab") as file:
            file.write(said)
    assert log.boot() == "second"
    assert log.find("first") is None


def test_systemds_animation_is_no_progress(tmp_path: Path) -> None:
    log = SerialLog(tmp_path / "serial.log")
    log.begin_boot()
    with open(log.path, "ab") as file:
        file.write(b"\x1b[0mStarting\r\n")
        file.flush()
        before = log.boot()
        file.write(WAITING.replace(b"[   ", b"[    ") + WAITING.replace(b"[   ", b"[    "))
    assert log.boot() == before == "Starting\n"


def test_a_process_that_took_over_an_id_is_not_ours(tmp_path: Path) -> None:
    stranger = subprocess.Popen(["sleep", "60"])
    try:
        remembered = Background(tmp_path / "pid")
        remembered.file.write_text(f"{stranger.pid} 1\n")
        remembered.stop()
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_a_process_is_known_while_it_runs(tmp_path: Path) -> None:
    process = Background(tmp_path / "pid")
    process.start(["sleep", "60"], cwd=tmp_path, output=tmp_path / "log")
    assert process.pid is not None and os.path.exists(f"/proc/{process.pid}")
    process.stop()
    assert process.pid is None


def test_a_thing_is_built_once_and_only_the_newest_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "BUILD", tmp_path)
    made: list[str] = []

    def make(at: Path) -> None:
        made.append(at.name)
        at.write_text("content")

    paths = [cached("a thing", "thing.raw", recipe, make, keep=2) for recipe in ("one", "two", "two", "three")]
    assert len(made) == 3
    assert [path.exists() for path in paths] == [False, True, True, True]


def test_what_was_not_finished_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "BUILD", tmp_path)

    def fail(at: Path) -> None:
        at.write_text("half")
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError):
        cached("a thing", "thing", "one", fail)
    assert cached("a thing", "thing", "one", lambda at: at.mkdir() or None).is_dir()


def test_a_recipe_changes_with_the_name_mode_and_content_of_its_files(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("content")
    seen = [digest(tmp_path)]
    file.write_text("other")
    seen.append(digest(tmp_path))
    file.chmod(0o755)
    seen.append(digest(tmp_path))
    file.rename(tmp_path / "elsewhere")
    seen.append(digest(tmp_path))
    assert len(set(seen)) == 4
