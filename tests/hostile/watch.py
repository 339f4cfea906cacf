# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How much memory a run of ansible-playbook needed, process by process."""

from __future__ import annotations

import os
import subprocess
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Iterator, Sequence

MIB = 1 << 20


@dataclass
class Run:
    """What a run left behind; memory in bytes.

    ``main`` is the peak of the first process, ``workers`` that of each one that was forked from it for a host.
    """

    status: int = 0
    output: str = ""
    main: int = 0
    workers: dict[int, int] = field(default_factory=dict)


def watched(argv: Sequence[Any], environment: dict[str, str], log: Path) -> Run:
    """Run a playbook to its end and watch its processes."""
    found, over = Run(), threading.Event()
    with log.open("wb") as output:
        process = subprocess.Popen(
            [str(word) for word in argv],
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        watcher = threading.Thread(target=_watch, args=(process.pid, found, over))
        watcher.start()
        found.status = process.wait()
        over.set()
        watcher.join()
    found.output = log.read_text(errors="replace")
    return found


def _watch(pid: int, found: Run, over: threading.Event) -> None:
    while not over.wait(0.1):
        found.main = max(found.main, _peak(pid))
        for child in _forked(pid):
            found.workers[child] = max(found.workers.get(child, 0), _peak(child))


def _forked(pid: int) -> Iterator[int]:
    """Yield the children that run the same program: Ansible's workers."""
    try:
        program = os.readlink(f"/proc/{pid}/exe")
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return
    for child in map(int, children):
        try:
            if os.readlink(f"/proc/{child}/exe") == program:
                yield child
        except OSError:
            continue


def _peak(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/status", encoding="ascii") as file:
            return next((1024 * int(line.split()[1]) for line in file if line.startswith("VmHWM:")), 0)
    except OSError:
        return 0
