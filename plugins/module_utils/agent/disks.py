# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The disks of this machine, and which of them carries the sealed image.

Every disk is looked at by its partition table, never by the symbolic links of udev: the host decides which disk a link
points to when two have the same ids.
"""

from __future__ import annotations

import os
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Iterator, Optional, Sequence

from ..disk.gpt import ESP, GptError, Partition, Table, read_live_table
from ..errors import FdeError

SYSFS = Path("/sys")
DEVICES = Path("/dev")
SECTOR = 512


@dataclass(frozen=True)
class Disk:
    """A whole disk by its kernel name (``vda``) and its partition table."""

    name: str
    table: Table

    @property
    def device(self) -> str:
        """The device node of the disk."""
        return str(DEVICES / self.name)

    def holds(self, ids: Sequence[uuid.UUID]) -> bool:
        """Tell whether the disk has a partition of each of these ids."""
        return set(ids) <= {partition.id for partition in self.table.partitions}

    def beyond(self, sealed: Sequence[uuid.UUID]) -> tuple[Partition, ...]:
        """Return the partitions that the sealed image does not have: it has one ESP and those of ``sealed``."""
        esp = self.table.of_type(ESP)[:1]
        return tuple(one for one in self.table.partitions if one.id not in sealed and one not in esp)


def disks(sysfs: Path = SYSFS) -> tuple[Disk, ...]:
    """Return the disks that have a partition table, in the order of their names; damaged tables count as none."""
    return tuple(disk for name in _whole_disks(sysfs) if (disk := _disk(name, sysfs)) is not None)


def reread(disk: Disk, sysfs: Path = SYSFS) -> Disk:
    """Return the disk as it is now. Raises ``GptError`` when its table has become unreadable."""
    with open(disk.device, "rb") as device:
        return Disk(disk.name, read_live_table(device, _size(sysfs / "block" / disk.name), disk.device))


def partition_device(disk: Disk, partition: Partition, sysfs: Path = SYSFS) -> str:
    """Return the device node of a partition, after the kernel's idea of it was compared with the table.

    Raises ``FdeError`` when the kernel does not know the partition, or as another piece of the disk.
    """
    for directory in (sysfs / "block" / disk.name).iterdir():
        if _number(directory / "partition") == partition.number:
            start = (_number(directory / "start") or 0) * SECTOR
            if (start, _size(directory)) == (partition.offset, partition.size):
                return str(DEVICES / directory.name)
    raise FdeError(
        f"{disk.device}, partition {partition.number}",
        "the kernel's idea of it differs from the partition table",
        "Boot again; if it stays so, the disk changes under the machine",
    )


def _whole_disks(sysfs: Path) -> Iterator[str]:
    """Yield the block devices that can be a disk: not empty, and not stacked on others (dm, md, zram)."""
    for directory in sorted((sysfs / "block").iterdir()):
        virtual = "/devices/virtual/" in os.path.realpath(directory) and not directory.name.startswith("loop")
        if not virtual and _size(directory) > 0:
            yield directory.name


def _disk(name: str, sysfs: Path) -> Optional[Disk]:
    device = DEVICES / name
    try:
        with open(device, "rb") as opened:
            return Disk(name, read_live_table(opened, _size(sysfs / "block" / name), str(device)))
    except (GptError, OSError):
        # A disk without a table, or without a medium, is not the one that is looked for.
        return None


def _size(directory: Path) -> int:
    """Return the size of a block device in bytes; sysfs counts in sectors of 512 bytes whatever the disk's are."""
    return (_number(directory / "size") or 0) * SECTOR


def _number(path: Path) -> Optional[int]:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None
