# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Programs end with the run that started them, within their time, and keep its lock until then."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from ansible_collections.cvm.fde.plugins.module_utils.agent.process import SubprocessRunner
from ansible_collections.cvm.fde.plugins.module_utils.errors import FdeError
from ansible_collections.cvm.fde.plugins.module_utils.runner import CommandError, MissingProgram
from ansible_collections.cvm.fde.plugins.module_utils.volume import guarded, volumes
from ansible_collections.cvm.fde.plugins.module_utils.volume.guarded import GuardedRunner
from ansible_collections.cvm.fde.plugins.module_utils.volume.machine import Machine
from ansible_collections.cvm.fde.plugins.module_utils.volume.places import Places

#: A run that starts a program and tells its number; it is killed while it waits for the program.
RUN = """
import sys
from pathlib import Path
from ansible_collections.cvm.fde.plugins.module_utils.agent.process import SubprocessRunner
from ansible_collections.cvm.fde.plugins.module_utils.volume import volumes
from ansible_collections.cvm.fde.plugins.module_utils.volume.machine import Machine
from ansible_collections.cvm.fde.plugins.module_utils.volume.places import Places

with volumes.exclusively(Machine(SubprocessRunner(), Places(Path(sys.argv[1])))) as machine:
    machine.runner.run(sys.argv[2:])
"""


@pytest.fixture
def runner(tmp_path: Path) -> GuardedRunner:
    return GuardedRunner(SubprocessRunner(), os.open(tmp_path / "lock", os.O_CREAT | os.O_WRONLY))


def test_a_program_is_run_as_without_the_guard(runner: GuardedRunner) -> None:
    done = runner.run(["sh", "-c", 'cat; echo "$SAID" >&2'], stdin=b"in", env={"SAID": "hello"})
    assert (done.argv[0], done.status, done.stdout, done.stderr) == ("sh", 0, b"in", b"hello\n")
    assert runner.run(["false"], ok=(0, 1)).status == 1 and runner.run(["sh", "-c", "exit 7"], ok=()).status == 7
    with pytest.raises(CommandError, match="'false' ended with status 1"):
        runner.run(["false"])
    with pytest.raises(MissingProgram):
        runner.run(["no-such-program"])


def test_a_program_that_does_not_end_is_ended(runner: GuardedRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guarded, "LIMIT", 1)
    with pytest.raises(FdeError, match="did not end within 1 seconds"):
        runner.run(["sleep", "600"])


@pytest.mark.parametrize("arguments", [[], ["luksFormat"]], ids=["limited", "unlimited"])
def test_a_run_that_is_killed_takes_its_program_with_it_and_the_next_run_waits_for_that(
    tmp_path: Path, arguments: list[str]
) -> None:
    fifo, script = tmp_path / "fifo", tmp_path / "program"
    os.mkfifo(fifo)
    # The program tells that it runs. Told to end it says so, though nobody reads that any more, and takes a second.
    script.write_text(
        f"#!/bin/sh\ntrap 'echo told >&2; sleep 1; touch {tmp_path}/ended; exit' TERM\necho > {fifo}\n"
        "while :; do sleep 0.1; done\n"
    )
    script.chmod(0o755)
    run = subprocess.Popen(
        [sys.executable, "-c", RUN, str(tmp_path / "root"), str(script), *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    fifo.read_text()
    run.send_signal(signal.SIGKILL)
    run.wait()
    with volumes.exclusively(Machine(SubprocessRunner(), Places(tmp_path / "root"))):
        assert (tmp_path / "ended").exists()


def test_a_second_run_that_waits_for_ever_says_for_what(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(volumes, "_PATIENCE", 1)
    machine = Machine(SubprocessRunner(), Places(tmp_path))
    second = volumes.exclusively(machine)
    with volumes.exclusively(machine), pytest.raises(FdeError, match="another run, or a program"):
        second.__enter__()
    with volumes.exclusively(machine), open(machine.places.run / ".lock") as file, pytest.raises(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
