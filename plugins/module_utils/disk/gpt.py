# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read and write GUID partition tables.

Strict, because the table of an image or a disk is written by somebody we do not trust: both copies must be valid and
say the same, nothing may overlap, and no field decides how much is read without a bound. All positions are in bytes.

Source: UEFI specification 2.10, section 5.3; types from the Discoverable Partitions Specification.
"""

from __future__ import annotations

import struct
import uuid
import zlib
from dataclasses import dataclass
from typing import BinaryIO, Sequence

from ..errors import FdeError

MIB = 1 << 20

ESP = uuid.UUID("c12a7328-f81f-11d2-ba4b-00a0c93ec93b")
LINUX_GENERIC = uuid.UUID("0fc63daf-8483-4772-8e79-3d69d8477de4")
ROOT_X86_64 = uuid.UUID("4f68bce3-e8cd-4db1-96e7-fbcaf984b709")
ROOT_VERITY_X86_64 = uuid.UUID("2c7357ed-ebd2-46d9-aec1-23d437ec2bf5")
#: The partition that an instance encrypts for itself; a type of our own, so that nothing adopts it by its type.
FDE = uuid.UUID("7d5bfc6e-3b4c-4b7a-9d0f-5a7e1c0fde01")

#: Attribute bits of the Discoverable Partitions Specification.
READ_ONLY = 1 << 60
NO_AUTO = 1 << 63

SIGNATURE = b"EFI PART"
REVISION = 0x00010000
HEADER = struct.Struct("<8sIIIIQQQQ16sQIII")
ENTRY = struct.Struct("<16s16sQQQ72s")
NO_TYPE = b"\0" * 16
#: Bytes at the beginning of a disk that are not the table's.
BOOT_CODE = 446
#: What is written: 128 entries of 128 bytes, the least that the specification allows.
ENTRIES = 128
#: No table of a real disk is larger; without a bound a hostile header could make us read gigabytes.
MAX_ENTRIES_SIZE = MIB


class GptError(FdeError):
    """The partition table is missing, damaged or not of a form that is accepted."""

    def __init__(self, subject: str, cause: str) -> None:
        super().__init__(subject, cause, "Repair the partition table (sgdisk --verify) or use another disk")


@dataclass(frozen=True)
class Partition:
    """One entry in use. ``offset`` and ``size`` in bytes, ``number`` counts from 1."""

    number: int
    type: uuid.UUID
    id: uuid.UUID
    offset: int
    size: int
    attributes: int = 0
    name: str = ""

    @property
    def end(self) -> int:
        """The first byte after the partition."""
        return self.offset + self.size


@dataclass(frozen=True)
class Table:
    """A partition table. Partitions may use the bytes from ``first_usable`` up to, not including, ``end_usable``."""

    disk_id: uuid.UUID
    sector_size: int
    first_usable: int
    end_usable: int
    #: Byte offset of the second header; on a disk that grew it is not in the last sector.
    backup_offset: int
    partitions: tuple[Partition, ...]

    def of_type(self, *types: uuid.UUID) -> tuple[Partition, ...]:
        """Return the partitions of these types in the order of the table."""
        return tuple(partition for partition in self.partitions if partition.type in types)


@dataclass(frozen=True)
class _Header:
    own: int
    other: int
    first_usable: int
    last_usable: int
    disk_id: bytes
    entries: int
    count: int
    entry_size: int
    entries_crc: int


def read_table(disk: BinaryIO, size: int, subject: str) -> Table:
    """Read the table of a disk of ``size`` bytes; ``subject`` names it in errors. Raises ``GptError``."""
    for sector in (512, 4096):
        if size >= 6 * sector and _read(disk, sector, len(SIGNATURE)) == SIGNATURE:
            return _read_table(disk, size, sector, subject)
    raise GptError(subject, "there is no GUID partition table")


def read_live_table(disk: BinaryIO, size: int, subject: str, sector_size: int = 512) -> Table:
    """Read the table of a disk in use as the kernel does when its command line says ``gpt``.

    The first copy counts where it is valid, otherwise the second, in the last sector. A power cut while the table is
    written leaves one of them damaged, or both valid and different: that is no reason to give the disk up. Raises
    ``GptError`` when neither can be used. Source: Linux ``block/partitions/efi.c``, ``find_valid_gpt``.
    """
    sectors = size // sector_size
    if sectors < 6:
        raise GptError(subject, "there is no GUID partition table")
    _check_protective_mbr(_read(disk, 0, 512), subject)
    try:
        header, blob = _read_copy(disk, 1, sector_size, sectors, subject)
        backup = header.other
    except GptError:
        header, blob = _read_copy(disk, sectors - 1, sector_size, sectors, subject)
        backup = header.own
    return _table(blob, header, backup, sector_size, subject)


def has_signature(disk: BinaryIO, size: int, sector_size: int) -> bool:
    """Tell whether there is a sign of a table, usable or not, in either of its places."""
    places = (sector_size, (size // sector_size - 1) * sector_size)
    return any(place > 0 and _read(disk, place, len(SIGNATURE)) == SIGNATURE for place in places)


def holds_only(front: bytes, back: bytes, sector_size: int, kind: uuid.UUID) -> bool:
    """Tell whether the two ends of a disk hold nothing but a table, or pieces of one, with partitions of type ``kind``.

    ``front`` and ``back`` are what they hold, each longer than the table's copy there.
    """
    entries_at, header_at = 2 * sector_size, len(back) - sector_size
    size = -(-ENTRIES * ENTRY.size // sector_size) * sector_size
    mbr, entries_end, entries_begin = front[:sector_size], entries_at + size, header_at - size
    if any(front[entries_end:]) or any(back[:entries_begin]):
        return False
    headers = (front[sector_size:entries_at], back[header_at:])
    entries = front[entries_at:entries_end] + back[entries_begin:header_at]
    types = {entries[at : at + 16] for at in range(0, len(entries), ENTRY.size) if any(entries[at : at + ENTRY.size])}
    return (
        (not any(mbr) or _is_protective(mbr[:512]))
        and all(header.startswith(SIGNATURE) or not any(header) for header in headers)
        and types <= {kind.bytes_le}
    )


def _read_table(disk: BinaryIO, size: int, sector: int, subject: str) -> Table:
    _check_protective_mbr(_read(disk, 0, 512), subject)
    sectors = size // sector
    primary, blob = _read_copy(disk, 1, sector, sectors, subject)
    backup, _blob = _read_copy(disk, primary.other, sector, sectors, subject)
    if backup.other != 1 or primary.other <= primary.last_usable:
        raise GptError(subject, "the two partition table headers do not point at each other")
    same = ("first_usable", "last_usable", "disk_id", "count", "entry_size", "entries_crc")
    if any(getattr(primary, field) != getattr(backup, field) for field in same):
        raise GptError(subject, "the two copies of the partition table differ")
    return _table(blob, primary, primary.other, sector, subject)


def _read_copy(disk: BinaryIO, lba: int, sector: int, sectors: int, subject: str) -> tuple[_Header, bytes]:
    header = _read_header(disk, lba, sector, sectors, subject)
    return header, _read_entries(disk, header, sector, sectors, subject)


def _table(blob: bytes, header: _Header, backup: int, sector: int, subject: str) -> Table:
    return Table(
        disk_id=uuid.UUID(bytes_le=header.disk_id),
        sector_size=sector,
        first_usable=header.first_usable * sector,
        end_usable=(header.last_usable + 1) * sector,
        backup_offset=backup * sector,
        partitions=_partitions(blob, header, sector, subject),
    )


def _check_protective_mbr(mbr: bytes, subject: str) -> None:
    if len(mbr) != 512 or mbr[510:] != b"\x55\xaa":
        raise GptError(subject, "there is no protective MBR before the partition table")
    if not _is_protective(mbr):
        raise GptError(subject, "the MBR is not a plain protective one")


def _is_protective(mbr: bytes) -> bool:
    return mbr[510:] == b"\x55\xaa" and sorted(mbr[BOOT_CODE + 16 * index + 4] for index in range(4)) == [0, 0, 0, 0xEE]


def _read_header(disk: BinaryIO, lba: int, sector: int, sectors: int, subject: str) -> _Header:
    if not 1 <= lba < sectors:
        raise GptError(subject, "a partition table header lies outside the disk")
    block = _read(disk, lba * sector, sector)
    if len(block) != sector:
        raise GptError(subject, "a partition table header cannot be read")
    (
        signature,
        revision,
        length,
        crc,
        _reserved,
        own,
        other,
        first,
        last,
        disk_id,
        entries,
        count,
        entry_size,
        table_crc,
    ) = HEADER.unpack_from(block)
    if signature != SIGNATURE or revision != REVISION or not HEADER.size <= length <= sector:
        raise GptError(subject, "a partition table header is not one")
    if zlib.crc32(block[:16] + b"\0\0\0\0" + block[20:length]) != crc:
        raise GptError(subject, "the checksum of a partition table header is wrong")
    if own != lba:
        raise GptError(subject, "a partition table header is not where it says it is")
    if not 1 < first <= last < sectors:
        raise GptError(subject, "the usable area of the partition table is impossible")
    if entry_size not in (128, 256, 512, 1024, 2048, 4096) or count < 1 or count * entry_size > MAX_ENTRIES_SIZE:
        raise GptError(subject, "the partition entries have an impossible size")
    return _Header(own, other, first, last, disk_id, entries, count, entry_size, table_crc)


def _read_entries(disk: BinaryIO, header: _Header, sector: int, sectors: int, subject: str) -> bytes:
    length = header.count * header.entry_size
    end = header.entries + -(-length // sector)
    before = header.entries > 1 and end <= header.first_usable
    after = header.last_usable < header.entries and end <= sectors
    if not (before or after):
        raise GptError(subject, "the partition entries lie in the usable area or outside the disk")
    blob = _read(disk, header.entries * sector, length)
    if len(blob) != length or zlib.crc32(blob) != header.entries_crc:
        raise GptError(subject, "the checksum of the partition entries is wrong")
    return blob


def _partitions(blob: bytes, header: _Header, sector: int, subject: str) -> tuple[Partition, ...]:
    found = []
    for index in range(header.count):
        kind, unique, first, last, attributes, name = ENTRY.unpack_from(blob, index * header.entry_size)
        if kind == NO_TYPE:
            continue
        if not header.first_usable <= first <= last <= header.last_usable:
            raise GptError(subject, f"partition {index + 1} lies outside the usable area")
        found.append(
            Partition(
                number=index + 1,
                type=uuid.UUID(bytes_le=kind),
                id=uuid.UUID(bytes_le=unique),
                offset=first * sector,
                size=(last - first + 1) * sector,
                attributes=attributes,
                name=name.decode("utf-16-le", "replace").split("\0", 1)[0],
            )
        )
    _check_distinct(found, subject)
    return tuple(found)


def _check_distinct(partitions: Sequence[Partition], subject: str) -> None:
    ordered = sorted(partitions, key=lambda partition: partition.offset)
    for left, right in zip(ordered, ordered[1:]):
        if left.end > right.offset:
            raise GptError(subject, f"partitions {left.number} and {right.number} overlap")
    if len({partition.id for partition in partitions}) != len(partitions):
        raise GptError(subject, "two partitions have the same unique id")


def _read(disk: BinaryIO, offset: int, length: int) -> bytes:
    disk.seek(offset)
    return disk.read(length)


def new_table(disk_id: uuid.UUID, size: int, partitions: Sequence[Partition], sector_size: int = 512) -> Table:
    """Return the table of a disk of ``size`` bytes with these partitions.

    Raises ``ValueError`` when a partition is not a whole number of sectors, overlaps another or does not fit.
    """
    reserved = -(-ENTRIES * ENTRY.size // sector_size)
    first_usable = (2 + reserved) * sector_size
    end_usable = (size // sector_size - 1 - reserved) * sector_size
    for partition in partitions:
        if partition.offset % sector_size or partition.size % sector_size or partition.size <= 0:
            raise ValueError(f"partition {partition.number} is not a whole number of sectors")
        if partition.offset < first_usable or partition.end > end_usable or not 1 <= partition.number <= ENTRIES:
            raise ValueError(f"partition {partition.number} does not fit the disk")
    try:
        _check_distinct(partitions, "the new table")
    except GptError as error:
        raise ValueError(str(error)) from error
    ordered = tuple(sorted(partitions, key=lambda partition: partition.number))
    return Table(disk_id, sector_size, first_usable, end_usable, (size // sector_size - 1) * sector_size, ordered)


def encode_table(table: Table) -> tuple[tuple[int, bytes], ...]:
    """Return what to write as (byte offset, bytes): protective MBR with the first copy, then the second copy."""
    sector = table.sector_size
    blob = bytearray(ENTRIES * ENTRY.size)
    for partition in table.partitions:
        ENTRY.pack_into(
            blob,
            (partition.number - 1) * ENTRY.size,
            partition.type.bytes_le,
            partition.id.bytes_le,
            partition.offset // sector,
            partition.end // sector - 1,
            partition.attributes,
            partition.name.encode("utf-16-le")[:72],
        )
    entries = bytes(blob)
    last = table.backup_offset // sector
    first_copy = _encode_header(table, entries, own=1, other=last, entries_lba=2)
    second_copy = _encode_header(table, entries, own=last, other=1, entries_lba=table.end_usable // sector)
    front = _protective_mbr(last).ljust(sector, b"\0") + first_copy + entries
    return ((0, front), (table.end_usable, entries.ljust(table.backup_offset - table.end_usable, b"\0") + second_copy))


def _encode_header(table: Table, entries: bytes, own: int, other: int, entries_lba: int) -> bytes:
    sector = table.sector_size

    def pack(crc: int) -> bytes:
        return HEADER.pack(
            SIGNATURE,
            REVISION,
            HEADER.size,
            crc,
            0,
            own,
            other,
            table.first_usable // sector,
            table.end_usable // sector - 1,
            table.disk_id.bytes_le,
            entries_lba,
            ENTRIES,
            ENTRY.size,
            zlib.crc32(entries),
        )

    return pack(zlib.crc32(pack(0))).ljust(sector, b"\0")


def _protective_mbr(last_lba: int) -> bytes:
    record = struct.pack("<B3sB3sII", 0, b"\x00\x02\x00", 0xEE, b"\xff\xff\xff", 1, min(last_lba, 0xFFFFFFFF))
    return b"\0" * BOOT_CODE + record + b"\0" * 48 + b"\x55\xaa"
