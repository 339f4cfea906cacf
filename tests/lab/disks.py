# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The disks of a guest: how each is attached, and how the guest finds it again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Sequence

from .process import LabError, Word

MIB, GIB = 1 << 20, 1 << 30
UNITS = {"M": MIB, "G": GIB}
#: How a guest names a disk by the serial number that the lab gave it, under /dev/disk/by-id.
BY_ID = {"virtio": "virtio-{}", "nvme": "nvme-QEMU_NVMe_Ctrl_{}", "scsi": "scsi-0QEMU_QEMU_HARDDISK_{}"}
SECTORS = (512, 4096)
#: The longest serial number that all interfaces carry.
SERIAL_LENGTH = 20


@dataclass(frozen=True)
class Disk:
    """A disk of ``size`` bytes, attached as virtio-blk, NVMe or SCSI, with logical sectors of ``sector`` bytes.

    ``log`` is a file that gets every write of it, with the flushes among them, as dm-log-writes has it.
    """

    size: int
    interface: str = "virtio"
    sector: int = 512
    serial: str = ""
    log: str = ""

    def __post_init__(self) -> None:
        if self.interface not in BY_ID:
            raise LabError(f"no disk is attached by {self.interface!r}; there are {', '.join(BY_ID)}")
        if self.sector not in SECTORS:
            raise LabError(f"no disk has sectors of {self.sector} bytes; there are {SECTORS[0]} and {SECTORS[1]}")
        if len(self.serial) > SERIAL_LENGTH or not self.serial.replace("-", "").isalnum() and self.serial:
            raise LabError(f"{self.serial!r} is no serial number: up to {SERIAL_LENGTH} letters, digits and '-'")

    @property
    def by_id(self) -> str:
        """The disk's stable path in the guest."""
        return f"/dev/disk/by-id/{BY_ID[self.interface].format(self.serial)}"


class DataDisk(Disk):
    """A further disk, empty at first; without a serial number it gets ``data-1``, ``data-2``, ... in its guest."""

    @classmethod
    def parse(cls, text: str) -> DataDisk:
        """Read ``SIZE[,interface=NAME][,sector=BYTES][,serial=TEXT]``, the size as in 512M or 2G."""
        size, *options = text.split(",")
        known = dict(option.partition("=")[::2] for option in options)
        if not size[:-1].isdigit() or size[-1:] not in UNITS or not known.keys() <= {"interface", "sector", "serial"}:
            raise LabError(f"{text!r} is no disk; it is SIZE[,interface=NAME][,sector=BYTES][,serial=TEXT], as in 2G")
        sector = known.pop("sector", "512")
        return cls(int(size[:-1]) * UNITS[size[-1]], sector=int(sector) if sector.isdigit() else 0, **known)


def attach(disks: Sequence[tuple[Disk, str]]) -> list[Word]:
    """Return QEMU's arguments for disks, each with its file; the first one is booted from."""
    words: list[Word] = []
    if any(disk.interface == "scsi" for disk, _ in disks):
        words += ["-device", "virtio-scsi-pci,id=scsi"]
    for number, (disk, file) in enumerate(disks):
        node, device = f"disk{number}", _DEVICES[disk.interface]
        words += [
            *("-blockdev", f"driver=file,node-name=file{number},filename={file},aio=threads,{_CACHE}"),
            *("-blockdev", f"driver=raw,node-name={node},file=file{number},{_CACHE}"),
        ]
        if disk.log:
            words += ["-blockdev", f"driver=file,node-name=log{number},filename={disk.log},cache.no-flush=on"]
            words += ["-blockdev", f"driver=blklogwrites,node-name=logged{number},file={node},log=log{number}"]
            node = f"logged{number}"
            # Requests that are put together reach the limit of vectors, and the log's own two come on top of it.
            device = f"{device},request-merging=off" if disk.interface == "virtio" else device
        words += [
            *("-device", ",".join([device, f"drive={node}", f"serial={disk.serial}", *_shape(disk)])),
        ]
        if number == 0:
            words[-1] = f"{words[-1]},bootindex=1"
    return words


_CACHE = "discard=unmap,cache.no-flush=on"
_DEVICES = {"virtio": "virtio-blk-pci", "nvme": "nvme", "scsi": "scsi-hd,bus=scsi.0"}


def _shape(disk: Disk) -> list[str]:
    return [f"logical_block_size={disk.sector}", f"physical_block_size={max(disk.sector, 512)}"]
