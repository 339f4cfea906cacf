# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How much time and memory a stranger's answer may cost the process that reads it.

Ansible collects what a host prints in memory, however much it is, and waits for its end, however long that takes; an
action plugin sees it only then. The process that does so belongs to one host and one task, so it can be bounded as a
whole.
"""

from __future__ import annotations

import os
import resource
import signal
import time
from contextlib import contextmanager
from types import FrameType
from typing import Iterator, Optional

_STATUS = "/proc/self/status"


class Late(BaseException):
    """The time is over. No ``Exception``, so that nobody on the way takes it for a failure to try again after."""


class TooMuch(BaseException):
    """There is more to read than is read. No ``Exception`` for the same reason."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise ``Late`` in the block once ``seconds`` have passed. Only in a process's main thread.

    A timer that is set already, that of a task's ``timeout``, is respected and set again for what is left of it.
    """
    if seconds <= 0:
        raise Late

    def over(_signal: int, _frame: Optional[FrameType]) -> None:
        raise Late

    before, started = signal.getitimer(signal.ITIMER_REAL)[0], time.monotonic()
    if 0 < before <= seconds:
        yield
        return
    handler = signal.signal(signal.SIGALRM, over)
    try:
        try:
            # Again and again: an exception that is raised while an object is being deleted goes nowhere.
            signal.setitimer(signal.ITIMER_REAL, seconds, 1)
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler or signal.SIG_DFL)
        if before:
            signal.setitimer(signal.ITIMER_REAL, max(before - (time.monotonic() - started), 0.001))


@contextmanager
def memory_limit(size: int) -> Iterator[None]:
    """Let the block, and each program that it starts, allocate ``size`` bytes more than the process has: otherwise
    ``MemoryError``.

    Only where the kernel counts private memory (Linux); elsewhere there is no limit.
    """
    used = _private_memory()
    if used is None:
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limits = [limit for limit in (used + size, soft, hard) if limit != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_DATA, (min(limits), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _private_memory() -> Optional[int]:
    """Return how many bytes the kernel counts against the limit of private memory, or None where it does not say."""
    try:
        with open(_STATUS, encoding="ascii") as status:
            for line in status:
                if line.startswith("VmData:"):
                    return 1024 * int(line.split()[1])
    except OSError:
        pass
    return None


def end_children() -> None:
    """End the programs that this process started and left running, where it leads a group of its own.

    A connection that was given up in the middle would go on otherwise, for as long as the other side likes.
    """
    if os.getpgrp() != os.getpid():
        return
    handler = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        os.killpg(os.getpid(), signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, handler or signal.SIG_DFL)
