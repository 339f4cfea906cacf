# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the kernel knows of a disk's way of working, as a device of device-mapper inherits it from the disks below.

The depth of the queue is not among it: device-mapper passes requests on and has none. Source: Linux
Documentation/ABI/stable/sysfs-block.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

SYSFS = Path("/sys")


@dataclass(frozen=True)
class Queue:
    """Whether a head has to move, and the size of a request in bytes that suits the disk; 0 where it does not say."""

    rotational: bool = False
    optimal: int = 0


#: A disk of which nothing is known.
UNKNOWN = Queue()


def queue_of(minor: int, sysfs: Path = SYSFS) -> Queue:
    """Return what is known of the device-mapper device of that minor number."""
    directory = sysfs / "block" / f"dm-{minor}" / "queue"
    return Queue(_number(directory / "rotational") == 1, _number(directory / "optimal_io_size"))


def refuse_discards(minor: int, sysfs: Path = SYSFS) -> None:
    """Let a device take no discards until its table is exchanged; one that cannot take any stays as it is."""
    maximum = sysfs / "block" / f"dm-{minor}" / "queue" / "discard_max_bytes"
    if _number(maximum):
        maximum.write_text("0")


def _number(path: Path) -> int:
    try:
        return max(0, int(path.read_text()))
    except (OSError, ValueError):
        return 0
