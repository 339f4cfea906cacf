# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab's door to other programs: those that end, and those that stay in the background."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Mapping, Optional, Sequence, Union

Word = Union[str, Path]


class LabError(Exception):
    """A failure that the user of the lab can act on; everything else is a bug and keeps its traceback."""


def run(argv: Sequence[Word], *, cwd: Optional[Path] = None, env: Optional[Mapping[str, str]] = None) -> str:
    """Run a program to its end and return its standard output; raise ``LabError`` with all it said when it fails."""
    words = [str(word) for word in argv]
    try:
        done = subprocess.run(
            words,
            cwd=cwd,
            env={**os.environ, "LC_ALL": "C.UTF-8", **(env or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
        )
    except FileNotFoundError as error:
        raise LabError(f"{words[0]} is not installed; 'make setup' installs what the lab needs") from error
    if done.returncode:
        said = "\n".join((done.stdout + done.stderr).strip().splitlines()[-40:])
        raise LabError(f"'{' '.join(words)}' ended with status {done.returncode}:\n{said}")
    return done.stdout


@dataclass(frozen=True)
class Background:
    """A process that outlives the program that started it.

    ``file`` remembers its id **and** its start time, so that a later process with the same id is never taken for it.
    """

    file: Path

    def start(self, argv: Sequence[Word], *, cwd: Path, output: Path, env: Optional[Mapping[str, str]] = None) -> None:
        """Start a program in a session of its own; ``output`` gets what it says."""
        with open(output, "ab") as sink:
            process = subprocess.Popen(
                [str(word) for word in argv],
                cwd=cwd,
                env={**os.environ, **(env or {})},
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
                start_new_session=True,
            )
        self.file.write_text(f"{process.pid} {_start_time(process.pid)}\n")

    @property
    def pid(self) -> Optional[int]:
        """The id of the process while it runs; None once it has ended."""
        try:
            pid, started = self.file.read_text().split()
        except (FileNotFoundError, ValueError):
            return None
        return int(pid) if started == _start_time(int(pid)) else None

    def stop(self, grace: float = 10.0) -> None:
        """End the process, by force when it does not go within ``grace`` seconds."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            pid = self.pid
            if pid is None:
                break
            os.kill(pid, number)
            self.join(grace)
        self.file.unlink(missing_ok=True)

    def join(self, seconds: float) -> bool:
        """Wait until the process has ended; False when it still runs after that many seconds."""
        end = time.monotonic() + seconds
        while self.pid is not None:
            if time.monotonic() >= end:
                return False
            time.sleep(0.1)
        return True


def _start_time(pid: int) -> str:
    """Return when a process started, in clock ticks since boot (proc(5), field 22); empty when it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return "" if fields[0] in "ZX" else fields[19]
