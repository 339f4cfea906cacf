# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A file system at a place of the agent's own, for a moment."""

from __future__ import annotations

import os
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import Iterator

from ..runner import CommandError, Runner

#: Every such place begins with it.
PLACE = "/run/cvm-fde-at-"


@contextmanager
def mounted(runner: Runner, device: str, kind: str, options: str) -> Iterator[Path]:
    """Mount a device and yield where. Raises ``CommandError`` when it cannot be mounted.

    Whoever watches the machine's files may have one of these open at the end: then the file system is detached, and
    goes when it is let go. The place is removed only as the empty directory that it was: what is mounted there is
    never deleted.
    """
    place = tempfile.mkdtemp(prefix=os.path.basename(PLACE), dir=os.path.dirname(PLACE))
    try:
        runner.run(["mount", "-t", kind, "-o", options, device, place])
        try:
            yield Path(place)
        finally:
            detach(runner, place)
    finally:
        os.rmdir(place)


def detach(runner: Runner, place: str) -> None:
    """Unmount what is at ``place``, used or not. Raises ``CommandError``."""
    try:
        runner.run(["umount", place])
    except CommandError:
        runner.run(["umount", "--lazy", place])
