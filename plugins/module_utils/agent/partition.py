# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The partition of the encrypted volume: made by systemd-repart, then checked by our own reading of the table."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Sequence, Union

from ..codes import Code, refuse
from ..disk.gpt import FDE, Partition
from ..errors import FdeError
from ..runner import Runner
from .disks import Bare, Disk, partition_device, reread, size_of

LABEL = "fde"
_DEFINITION = """\
[Partition]
Type={type}
Label={label}
UUID={id}
SizeMinBytes={size}
FactoryReset=yes
"""


#: systemd-repart begins and ends partitions at multiples of 4096 bytes. On a blank disk it leaves so many bytes before
#: the first partition, and the second copy of the table, which it moves to the end of the disk, takes up so many there.
_GRAIN, _START, _END = 4096, 1 << 20, 5 * 4096


def room(disk: Union[Disk, Bare], *, replace: bool) -> int:
    """Return the largest size in bytes that a new partition on ``disk`` can have.

    With ``replace`` the partitions of our type go first.
    """
    size = size_of(disk.name)
    if isinstance(disk, Bare):
        return max(0, (size - _START) // _GRAIN * _GRAIN - _END)
    kept = sorted(
        (one for one in disk.table.partitions if not (replace and one.type == FDE)), key=lambda one: one.offset
    )
    starts = [disk.table.first_usable, *(one.end for one in kept)]
    # An image is smaller than the disk that it is put on, and so is what its table thinks of.
    ends = [*(one.offset for one in kept), max(disk.table.end_usable, size // _GRAIN * _GRAIN - _END)]
    return max(max(0, end // _GRAIN * _GRAIN - -(-start // _GRAIN) * _GRAIN) for start, end in zip(starts, ends))


def require_room(disk: Union[Disk, Bare], minimum: int, *, replace: bool) -> None:
    """Raise ``Refusal`` unless a partition of ``minimum`` bytes fits on ``disk``."""
    free = room(disk, replace=replace)
    if free < minimum:
        wanted = -(-minimum >> 20)
        raise refuse(Code.DISK_TOO_SMALL, disk.device, f"{free >> 20} MiB are free in one piece, {wanted} are needed")


def create(
    runner: Runner, disk: Union[Disk, Bare], minimum: int, *, replace: bool, state: Path
) -> tuple[Partition, str]:
    """Make the partition in the free space of ``disk`` and return it with its device node.

    A blank disk gets a partition table first. ``minimum`` is the least size in bytes. ``replace`` first removes the
    partition of an earlier attempt. ``state`` is the agent's directory in RAM. The partition's id is random, so that
    nothing can be prepared for it. Raises ``FdeError`` when the table does not become what it was plus this one
    partition.
    """
    wanted = uuid.uuid4()
    definitions = state / "repart.d"
    definitions.mkdir(mode=0o700, parents=True, exist_ok=True)
    (definitions / "50-fde.conf").write_text(_DEFINITION.format(type=FDE, label=LABEL, id=wanted, size=minimum))
    runner.run(
        [
            "systemd-repart",
            "--dry-run=no",
            f"--empty={'refuse' if isinstance(disk, Disk) else 'require'}",
            "--seed=random",
            f"--factory-reset={'yes' if replace else 'no'}",
            "--discard=no",
            f"--definitions={definitions}",
            disk.device,
        ]
    )
    after = reread(disk.name)
    partition = _new_one(disk.table.partitions if isinstance(disk, Disk) else (), after, wanted)
    settle(runner)
    return partition, partition_device(after, partition)


def settle(runner: Runner) -> None:
    """Wait until udev has looked at every new device, where udev runs; then nobody opens it behind our back."""
    if udev_runs():
        runner.run(["udevadm", "settle", "--timeout=600"])


def udev_runs() -> bool:
    """Tell whether udev manages this system's devices."""
    return Path("/run/udev/control").exists()


def _new_one(before: Sequence[Partition], after: Disk, wanted: uuid.UUID) -> Partition:
    kept = [one for one in before if one.type != FDE]
    added = [one for one in after.table.partitions if one not in kept]
    if len(added) != 1 or added[0].id != wanted or added[0].type != FDE or len(after.table.partitions) != len(kept) + 1:
        raise FdeError(
            after.device,
            "after systemd-repart the partition table is not what it was plus our partition",
            "Boot again; if it stays so, the disk changes under the machine",
        )
    return added[0]
