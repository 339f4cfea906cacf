# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A file system at a place of the agent's own, for a moment."""

from __future__ import annotations

import os
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Iterator, Sequence

from ..runner import CommandError, Runner

#: Every such place begins with it.
PLACE = "/run/cvm-fde-at-"
#: How often somebody else's file is waited for, and the seconds between two times.
_TIMES, _PAUSE = 20, 0.2


@contextmanager
def mounted(runner: Runner, device: str, kind: str, options: str) -> Iterator[Path]:
    """Mount a device and yield where. Raises ``CommandError`` when it cannot be mounted.

    Whoever watches the machine's files may have one of these open at the end: four seconds are waited for that, then
    the file system is detached, and goes when it is let go. Until then it cannot be mounted for writing where it was
    for reading, or the other way round, which is waited for too. The place is removed only as the empty directory that
    it was: what is mounted there is never deleted.
    """
    place = tempfile.mkdtemp(prefix=os.path.basename(PLACE), dir=os.path.dirname(PLACE))
    try:
        _patiently(runner, ["mount", "-t", kind, "-o", options, device, place])
        try:
            yield Path(place)
        finally:
            detach(runner, place)
    finally:
        os.rmdir(place)


def detach(runner: Runner, place: str) -> None:
    """Unmount what is at ``place``, used or not. Raises ``CommandError``."""
    try:
        _patiently(runner, ["umount", place])
    except CommandError:
        runner.run(["umount", "--lazy", place])


def _patiently(runner: Runner, argv: Sequence[str]) -> None:
    """Run a program, again as long as it says that something is busy. Raises ``CommandError``."""
    for left in reversed(range(_TIMES)):
        try:
            runner.run(argv)
            return
        except CommandError as error:
            if not left or b"busy" not in error.completed.stderr:
                raise
            time.sleep(_PAUSE)
