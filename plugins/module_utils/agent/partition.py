# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The partition of the encrypted volume: made by the agent, in an order that no power cut can make a damage of.

systemd-repart would do, but libfdisk writes both copies of the table before it flushes either: a power cut may leave
both torn, and where the disk is larger than the image there is no other copy in a place that the kernel looks at.
"""

from __future__ import annotations

import fcntl
import os
import uuid
from pathlib import Path
from typing import Sequence, Union

from ..codes import Code, refuse
from ..disk import blkpg, gpt
from ..disk.gpt import FDE, MIB, Partition
from ..dm import edges
from ..dm.table import SECTOR
from ..errors import FdeError
from ..runner import Runner
from .disks import Bare, Disk, known_partitions, partition_device, reread, sector_size_of, size_of

LABEL = "fde"
#: The partition begins at a multiple of a MiB, and ends at one of the largest sector size.
_START, _END = MIB, 4096


def room(disk: Union[Disk, Bare], *, replace: bool) -> int:
    """Return the largest size in bytes that a new partition on ``disk`` can have.

    With ``replace`` the partitions of our type go first.
    """
    start, end = _gap(disk, _kept(disk, replace=replace))
    return max(0, end - start)


def _kept(disk: Union[Disk, Bare], *, replace: bool) -> tuple[Partition, ...]:
    partitions = disk.table.partitions if isinstance(disk, Disk) else ()
    return tuple(one for one in partitions if not (replace and one.type == FDE))


def _gap(disk: Union[Disk, Bare], kept: Sequence[Partition]) -> tuple[int, int]:
    """Return start and end of the largest free piece of a disk. An image is smaller than the disk that it is put on."""
    size, sector = size_of(disk.name), sector_size_of(disk.name)
    blank = gpt.new_table(uuid.UUID(int=0), size, (), sector)
    ordered = sorted(kept, key=lambda one: one.offset)
    starts = [-(-start // _START) * _START for start in (blank.first_usable, *(one.end for one in ordered))]
    ends = [end // _END * _END for end in (*(one.offset for one in ordered), blank.end_usable)]
    return max(zip(starts, ends), key=lambda piece: piece[1] - piece[0])


def require_room(disk: Union[Disk, Bare], minimum: int, *, replace: bool) -> None:
    """Raise ``Refusal`` unless a partition of ``minimum`` bytes fits on ``disk``."""
    free = room(disk, replace=replace)
    if free < minimum:
        wanted = -(-minimum >> 20)
        raise refuse(Code.DISK_TOO_SMALL, disk.device, f"{free >> 20} MiB are free in one piece, {wanted} are needed")


def create(runner: Runner, disk: Union[Disk, Bare], *, replace: bool) -> tuple[Partition, str]:
    """Make the partition in the largest free piece of ``disk`` and return it with its device node.

    A blank disk gets a partition table first. ``replace`` first removes the partition of an earlier attempt. The
    partition's id is random, so that nothing can be prepared for it. Raises ``FdeError`` when the table does not become
    what it was plus this one partition.
    """
    kept = _kept(disk, replace=replace)
    start, end = _gap(disk, kept)
    number = min(set(range(1, gpt.ENTRIES + 1)) - {one.number for one in kept})
    made = Partition(number, FDE, uuid.uuid4(), start, end - start, name=LABEL)
    try:
        _write(disk, _table(disk, (*kept, made)), made, {one.number for one in kept})
    except OSError as error:
        raise FdeError(disk.device, f"its partition table cannot be changed: {error.strerror}", "Boot again") from error
    after = reread(disk.name)
    _check(after, (*kept, made))
    settle(runner)
    return made, partition_device(after, made)


def _table(disk: Union[Disk, Bare], partitions: Sequence[Partition]) -> gpt.Table:
    """Return the table of a disk as large as it is now. Raises ``FdeError`` when ours would not hold what is there."""
    disk_id = disk.table.disk_id if isinstance(disk, Disk) else uuid.uuid4()
    try:
        return gpt.new_table(disk_id, size_of(disk.name), partitions, sector_size_of(disk.name))
    except ValueError as error:
        cause = f"its partition table cannot be written anew: {error}"
        raise FdeError(disk.device, cause, "Deploy the image again, or use another disk") from error


def _write(disk: Union[Disk, Bare], table: gpt.Table, made: Partition, kept: set[int]) -> None:
    """Write a table, and tell the kernel what is new in it. Raises ``OSError``.

    The second copy is on the disk before the first one changes: one of them is whole at any moment, and at its place.
    Whatever an earlier attempt has left in the new partition is no signature for anybody.
    """
    edges.zero(disk.device, [(made.offset // SECTOR, edges.MEBIBYTE)])
    (front_at, front), (back_at, back) = gpt.encode_table(table)
    descriptor = os.open(disk.device, os.O_RDWR | os.O_CLOEXEC)
    try:
        # While it is locked, udev does not have the kernel read the table (systemd, "Locking Block Device Access").
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        boot_code = os.pread(descriptor, gpt.BOOT_CODE, 0)
        for content, at in ((back, back_at), (boot_code + front[len(boot_code) :], front_at)):
            edges.put(descriptor, content, at // SECTOR)
            os.fsync(descriptor)
        for number in known_partitions(disk.name) - kept:
            blkpg.delete(descriptor, number)
        blkpg.add(descriptor, made.number, made.offset, made.size)
    finally:
        os.close(descriptor)


def settle(runner: Runner) -> None:
    """Wait until udev has looked at every new device, where udev runs; then nobody opens it behind our back."""
    if udev_runs():
        runner.run(["udevadm", "settle", "--timeout=600"])


def udev_runs() -> bool:
    """Tell whether udev manages this system's devices."""
    return Path("/run/udev/control").exists()


def _check(after: Disk, wanted: Sequence[Partition]) -> None:
    if sorted(after.table.partitions, key=lambda one: one.number) != sorted(wanted, key=lambda one: one.number):
        raise FdeError(
            after.device,
            "the partition table that was written reads back as another one",
            "Boot again; if it stays so, the disk changes under the machine",
        )
