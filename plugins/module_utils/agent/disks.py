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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Iterable, Iterator, Mapping, Optional, Sequence, Union

from ..codes import Code, refuse
from ..disk.gpt import ESP, FDE, GptError, Partition, Table, has_signature, holds_only, read_live_table
from ..errors import FdeError, Refusal
from .configuration import Configuration, Place

SYSFS = Path("/sys")
DEVICES = Path("/dev")
SECTOR = 512
#: What of both ends of a disk must be zero for it to count as blank: partition tables and all common signatures.
_ENDS = 1 << 20


@dataclass(frozen=True)
class Disk:
    """A whole disk by its kernel name (``vda``) and its partition table."""

    name: str
    table: Table
    read_only: bool = False

    @property
    def device(self) -> str:
        """The device node of the disk."""
        return str(DEVICES / self.name)

    def holds(self, ids: Sequence[uuid.UUID]) -> bool:
        """Tell whether the disk has a partition of each of these ids."""
        return set(ids) <= {partition.id for partition in self.table.partitions}

    def shows(self, ids: Iterable[uuid.UUID]) -> bool:
        """Tell whether the disk has a partition of any of these ids."""
        return bool(set(ids) & {partition.id for partition in self.table.partitions})

    def beyond(self, sealed: Sequence[uuid.UUID]) -> tuple[Partition, ...]:
        """Return the partitions that the sealed image does not have: it has one ESP and those of ``sealed``."""
        esp = self.table.of_type(ESP)[:1]
        return tuple(one for one in self.table.partitions if one.id not in sealed and one not in esp)


@dataclass(frozen=True)
class Bare:
    """A whole disk without a partition table that can be used; ``blank`` when there is nothing on it at all.

    ``begun`` says that there is nothing but what a power cut leaves of a table while our partition is made.
    """

    name: str
    blank: bool
    damage: str = ""
    read_only: bool = False
    begun: bool = False

    @property
    def device(self) -> str:
        """The device node of the disk."""
        return str(DEVICES / self.name)


@dataclass(frozen=True)
class Survey:
    """All disks of the machine, and the serial numbers of those that have one, by kernel name."""

    disks: tuple[Disk, ...]
    bare: tuple[Bare, ...] = ()
    serials: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Choice:
    """The disk of the image, and the disk that the encrypted volume is on or is to be made on."""

    image: Disk
    volume: Union[Disk, Bare]

    @property
    def apart(self) -> bool:
        """Whether the volume has a disk of its own."""
        return self.volume.name != self.image.name


def choose(configuration: Configuration, survey: Survey, *, unfinished: bool = False) -> Union[Choice, Refusal]:
    """Return which disks this boot is about; changes and reads nothing.

    ``unfinished`` says that a first boot was begun: the volume's own disk may hold pieces of the table that it wrote.

    Refused are: no disk with the image, or several; a partition table that is damaged where that disk should be; and a
    second disk that shows one of the ids of the first, be it of the image or of the volume. Which disk holds the volume
    was decided when the image was sealed: it must be there, once, and have nothing on it that is not ours.

    The host says whether a disk is read-only. One that is is never chosen, but its ids count like those of any other:
    udev's links may lead to it.
    """
    sealed = (configuration.data_partition, configuration.hash_partition)
    carriers = [disk for disk in survey.disks if disk.holds(sealed)]
    if not carriers and (damaged := [one for one in survey.bare if one.damage]):
        return refuse(Code.DISK_DAMAGED, damaged[0].device, damaged[0].damage)
    if len(carriers) != 1:
        names = ", ".join(disk.device for disk in carriers)
        return refuse(Code.DISK_AMBIGUOUS, names or "no disk", f"{len(carriers)} found")
    image = carriers[0]
    if image.read_only:
        return refuse(Code.DISK_AMBIGUOUS, image.device, "it is read-only")
    if twins := _twins(survey, image):
        return twins
    volume = _volume_disk(configuration, survey, image, unfinished)
    if isinstance(volume, Refusal):
        return volume
    if isinstance(volume, Disk) and (twins := _twins(survey, volume)):
        return twins
    return Choice(image, volume)


def _twins(survey: Survey, disk: Disk) -> Optional[Refusal]:
    """Refuse other disks that show one of a disk's ids."""
    ids = {partition.id for partition in disk.table.partitions}
    found = [other.device for other in survey.disks if other.name != disk.name and other.shows(ids)]
    if found:
        return refuse(Code.DISK_AMBIGUOUS, ", ".join([disk.device, *found]), "they show the same partition ids")
    return None


def _volume_disk(
    configuration: Configuration, survey: Survey, image: Disk, unfinished: bool
) -> Union[Disk, Bare, Refusal]:
    wanted = configuration.disk
    if wanted.place is Place.ROOT:
        return image
    found: list[Union[Disk, Bare]] = [*survey.disks, *survey.bare]
    others = [disk for disk in found if disk.name != image.name and not disk.read_only]
    if wanted.place is Place.SERIAL:
        others = [disk for disk in others if survey.serials.get(disk.name) == wanted.serial]
    if len(others) != 1:
        names = ", ".join(disk.device for disk in others)
        return refuse(Code.VOLUME_DISK, names or "no disk", f"{len(others)} are '{wanted}'")
    disk = others[0]
    if isinstance(disk, Bare) and not (disk.blank or (unfinished and disk.begun)):
        if disk.damage:
            return refuse(Code.DISK_DAMAGED, disk.device, disk.damage)
        return refuse(Code.DISK_FOREIGN, disk.device, "there is something on it")
    return disk


def survey(sysfs: Path = SYSFS) -> Survey:
    """Look at every disk of the machine; changes nothing."""
    disks_, bare, serials = [], [], {}
    for name in _whole_disks(sysfs):
        found = _disk(name, sysfs)
        if isinstance(found, Disk):
            disks_.append(found)
        else:
            bare.append(found)
        serial = _serial(sysfs / "block" / name)
        if serial:
            serials[name] = serial
    return Survey(tuple(disks_), tuple(bare), serials)


def disks(sysfs: Path = SYSFS) -> tuple[Disk, ...]:
    """Return the disks that have a partition table, in the order of their names; damaged tables count as none."""
    return survey(sysfs).disks


def reread(name: str, sysfs: Path = SYSFS) -> Disk:
    """Return a disk as it is now. Raises ``GptError`` when its table is unreadable."""
    directory, device = sysfs / "block" / name, str(DEVICES / name)
    with open(device, "rb") as opened:
        table = read_live_table(opened, _size(directory), device, sector_size=_sector_size(directory))
    return Disk(name, table, _is_read_only(directory))


def size_of(name: str, sysfs: Path = SYSFS) -> int:
    """Return the size of a disk in bytes."""
    return _size(sysfs / "block" / name)


def sector_size_of(name: str, sysfs: Path = SYSFS) -> int:
    """Return the size of a disk's logical sectors in bytes."""
    return _sector_size(sysfs / "block" / name)


def known_partitions(name: str, sysfs: Path = SYSFS) -> set[int]:
    """Return the numbers of the partitions that the kernel knows of a disk."""
    numbers = (_number(directory / "partition") for directory in _partitions(name, sysfs))
    return {number for number in numbers if number is not None}


def _partitions(name: str, sysfs: Path) -> Iterator[Path]:
    """Yield the directories of a disk that can be partitions: the kernel lets their names begin with the disk's."""
    return (directory for directory in (sysfs / "block" / name).iterdir() if directory.name.startswith(name))


def require_known(disk: Disk, sysfs: Path = SYSFS) -> None:
    """Raise ``Refusal`` unless the kernel sees the partitions of the table and no others."""
    known = known_partitions(disk.name, sysfs)
    if known != {partition.number for partition in disk.table.partitions}:
        numbers = ", ".join(map(str, sorted(known))) or "none"
        raise refuse(Code.DISK_DAMAGED, disk.device, f"the kernel reads its table otherwise: partitions {numbers}")


def partition_device(disk: Disk, partition: Partition, sysfs: Path = SYSFS) -> str:
    """Return the device node of a partition, after the kernel's idea of it was compared with the table.

    Raises ``FdeError`` when the kernel does not know the partition, or as another piece of the disk.
    """
    for directory in _partitions(disk.name, sysfs):
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
    """Yield what can be a disk: not empty, not optical, not stacked on others (dm, md, zram).

    The head of an NVMe disk with native multipath is a virtual device, and is the disk; the paths below it are hidden,
    have no device node, and are not (Linux drivers/nvme/host/multipath.c).
    """
    for directory in sorted((sysfs / "block").iterdir()):
        optical = directory.name.startswith(("sr", "fd"))
        place = os.path.realpath(directory)
        virtual = "/devices/virtual/" in place and "/devices/virtual/nvme-subsystem/" not in place
        stacked = virtual and not directory.name.startswith("loop")
        if not (stacked or optical or _number(directory / "hidden")) and _size(directory) > 0:
            yield directory.name


def _disk(name: str, sysfs: Path) -> Union[Disk, Bare]:
    directory = sysfs / "block" / name
    try:
        try:
            return reread(name, sysfs)
        except GptError as error:
            return _bare(name, directory, error.cause)
    except OSError as error:
        # A drive without a medium, or one that does not answer, or no longer.
        return Bare(name, False, error.strerror or "it cannot be read", _is_read_only(directory))


def _bare(name: str, directory: Path, damage: str) -> Bare:
    size, sector = _size(directory), _sector_size(directory)
    with open(DEVICES / name, "rb") as opened:
        had_one = has_signature(opened, size, sector)
        opened.seek(0)
        front = opened.read(_ENDS)
        opened.seek(max(0, size - _ENDS))
        back = opened.read(_ENDS)
    blank = not any(front) and not any(back)
    return Bare(
        name,
        blank,
        damage=damage if had_one else "",
        read_only=_is_read_only(directory),
        begun=not blank and size > 2 * _ENDS and holds_only(front, back, sector, FDE),
    )


def _serial(directory: Path) -> str:
    """Return the serial number of a disk: virtio and NVMe have it in sysfs, SCSI as page 0x80 of its vital data."""
    for place in ("serial", "device/serial"):
        if (text := _bytes(directory / place).decode("ascii", "replace").strip()) != "":
            return text
    page = _bytes(directory / "device/vpd_pg80")
    length = int.from_bytes(page[2:4], "big")
    return page[4 : 4 + length].decode("ascii", "replace").strip(" \0")


def _sector_size(directory: Path) -> int:
    return _number(directory / "queue/logical_block_size") or SECTOR


def _is_read_only(directory: Path) -> bool:
    return bool(_number(directory / "ro"))


def _size(directory: Path) -> int:
    """Return the size of a block device in bytes; sysfs counts in sectors of 512 bytes whatever the disk's are."""
    return (_number(directory / "size") or 0) * SECTOR


def _number(path: Path) -> Optional[int]:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
