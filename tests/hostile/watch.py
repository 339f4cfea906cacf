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
from typing import Any, Iterator, Optional, Sequence

MIB = 1 << 20


@dataclass
class Run:
    """What a run left behind; memory in bytes.

    ``main`` is the peak of the first process, ``workers`` that of each one that was forked from it for a host, and
    ``together`` the highest sum that was seen of all private and shared memory, each page counted once.
    """

    status: int = 0
    output: str = ""
    main: int = 0
    workers: dict[int, int] = field(default_factory=dict)
    together: int = 0


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
        found.main = max(found.main, _value(f"/proc/{pid}/status", "VmHWM:") or 0)
        together = _value(f"/proc/{pid}/smaps_rollup", "Pss:") or 0
        for child in _forked(pid):
            found.workers[child] = max(found.workers.get(child, 0), _value(f"/proc/{child}/status", "VmHWM:") or 0)
            together += _value(f"/proc/{child}/smaps_rollup", "Pss:") or 0
        found.together = max(found.together, together)


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


def _value(path: str, name: str) -> Optional[int]:
    try:
        with open(path, encoding="ascii") as file:
            return next((1024 * int(line.split()[1]) for line in file if line.startswith(name)), None)
    except OSError:
        return None
