# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which blocks of a device its file system uses, so that a copy can leave out the rest.

Of ext4 the block bitmaps are read; any other file system, and ext4 with a feature that is not known here, counts as
using everything. Source: kernel Documentation/filesystems/ext4 (super, group_descr, bitmaps, special features).
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass, replace
from typing import Iterable, Iterator, Optional

_META_GROUPS = 0x10
_PACKED = 0x200
_SIXTY_FOUR = 0x80
_SPARSE_SUPER = 0x1
_BIGALLOC = 0x200
_SPARSE_SUPER_2 = 0x200
_UNINITIALIZED = 0x2
#: Groups that Linux makes at once when a file system grows, unless the file system packs more of them together; and the
#: most that it does.
_BATCH, _LARGEST_BATCH = 16, 16384
#: Used blocks that lie this close together, in bytes, are copied in one go with what is between them.
_GAP = 64 << 10


@dataclass(frozen=True)
class Extent:
    """A piece of a device, in bytes."""

    offset: int
    length: int

    @property
    def end(self) -> int:
        """The first byte after it."""
        return self.offset + self.length


@dataclass(frozen=True)
class _Layout:
    """What the superblock says; ``first`` is the block with the superblock of small blocks, else 0."""

    blocks: int
    first: int
    block_size: int
    per_group: int
    inodes_per_group: int
    inode_size: int
    descriptor_size: int
    reserved: int
    sparse: bool
    #: Groups whose bitmaps and tables lie together (flex_bg).
    packed: int
    #: Descriptors that are spread over the groups (meta_bg), clusters of blocks, or but two copies of the superblock.
    spread: bool
    clusters: bool
    two_copies: bool

    @property
    def groups(self) -> int:
        return -(-(self.blocks - self.first) // self.per_group)

    @property
    def table_blocks(self) -> int:
        """Blocks of the group descriptors."""
        return -(-self.groups * self.descriptor_size // self.block_size)

    @property
    def inode_blocks(self) -> int:
        return -(-self.inodes_per_group * self.inode_size // self.block_size)

    def start(self, group: int) -> int:
        return self.first + group * self.per_group

    def length(self, group: int) -> int:
        return min(self.per_group, self.blocks - self.start(group))


@dataclass(frozen=True)
class _Group:
    number: int
    block_bitmap: int
    inode_bitmap: int
    inode_table: int
    uninitialized: bool


def used_extents(device: int, size: int) -> tuple[Extent, ...]:
    """Return the pieces of the first ``size`` bytes that the file system on a device uses, in order and apart.

    What lies beyond the end of the file system counts as used too.
    """
    layout = _layout(os.pread(device, 1024, 1024), size)
    if layout is None or layout.spread or layout.clusters or layout.two_copies:
        return (Extent(0, size),)
    groups = tuple(_groups(device, layout))
    blocks = _blocks(device, layout, groups)
    pieces = [(0, layout.first), *blocks, (layout.blocks, -(-size // layout.block_size))]
    return tuple(_joined(pieces, layout.block_size, size))


def read_while_growing(device: int, size: int) -> tuple[Extent, ...]:
    """Return the pieces beyond the end of the file system that ext4 reads before it writes when it grows to ``size``.

    Linux reads the bitmaps of new groups although it has just flagged them as never written (``ext4_setup_new_descs``).
    They lie at the start of the group with which it begins a batch, behind a copy of superblock and descriptors, or
    behind the block of descriptors that a group has when there is no room for more of them in front: Linux then spreads
    them by itself (``ext4_convert_meta_bg``), and reads that block too. Which groups those are depends on the version,
    so the start of every new group is returned, and the last block. With but two copies of the superblock Linux grows
    nothing.
    """
    layout = _layout(os.pread(device, 1024, 1024), size)
    if layout is None or layout.two_copies:
        return ()
    grown = replace(layout, blocks=size // layout.block_size)
    if grown.blocks <= layout.blocks:
        # It has grown already, and what is in its last block is somebody's.
        return ()
    pieces = [(grown.blocks - 1, grown.blocks)]
    for group in range(layout.groups, grown.groups):
        start = grown.start(group)
        copy = 1 + layout.table_blocks + layout.reserved if _has_superblock(group, layout.sparse) else 0
        # One block of descriptors, then bitmaps of blocks and of inodes.
        length = min(copy + 1 + 2 * max(layout.packed, _BATCH), layout.per_group)
        pieces.append((start, min(start + length, grown.blocks)))
    return tuple(_joined(pieces, layout.block_size, size))


def _layout(block: bytes, size: int) -> Optional[_Layout]:
    """Return the layout of an ext4 file system from its superblock, None for anything that is not understood."""
    if len(block) < 1024 or block[0x38:0x3A] != b"\x53\xef":
        return None
    compatible, incompatible, read_only = struct.unpack_from("<III", block, 0x5C)
    low, shift = struct.unpack_from("<I", block, 0x04)[0], struct.unpack_from("<I", block, 0x18)[0]
    wide = bool(incompatible & _SIXTY_FOUR)
    found = _Layout(
        blocks=low | (struct.unpack_from("<I", block, 0x150)[0] << 32 if wide else 0),
        first=struct.unpack_from("<I", block, 0x14)[0],
        block_size=1024 << min(shift, 6),
        per_group=struct.unpack_from("<I", block, 0x20)[0],
        inodes_per_group=struct.unpack_from("<I", block, 0x28)[0],
        inode_size=struct.unpack_from("<H", block, 0x58)[0],
        descriptor_size=struct.unpack_from("<H", block, 0xFE)[0] if wide else 32,
        reserved=struct.unpack_from("<H", block, 0xCE)[0],
        sparse=bool(read_only & _SPARSE_SUPER),
        packed=min(1 << min(block[0x174], 31), _LARGEST_BATCH) if incompatible & _PACKED else 1,
        spread=bool(incompatible & _META_GROUPS),
        clusters=bool(read_only & _BIGALLOC),
        two_copies=bool(compatible & _SPARSE_SUPER_2),
    )
    cluster = struct.unpack_from("<I", block, 0x1C)[0] - shift if found.clusters else 0
    bits = 8 * found.block_size << max(0, min(cluster, 20))
    sound = 0 < found.per_group <= bits and found.descriptor_size >= 32 and found.first <= 1
    return found if sound and found.blocks * found.block_size <= size else None


def _groups(device: int, layout: _Layout) -> Iterator[_Group]:
    at = (layout.first + 1) * layout.block_size
    table = os.pread(device, layout.groups * layout.descriptor_size, at)
    for number in range(layout.groups):
        entry = table[number * layout.descriptor_size : (number + 1) * layout.descriptor_size]
        low = struct.unpack_from("<III", entry)
        high = struct.unpack_from("<III", entry, 0x20) if len(entry) >= 64 else (0, 0, 0)
        places = [one | other << 32 for one, other in zip(low, high)]
        flags = struct.unpack_from("<H", entry, 0x12)[0]
        yield _Group(number, places[0], places[1], places[2], bool(flags & _UNINITIALIZED))


def _blocks(device: int, layout: _Layout, groups: Iterable[_Group]) -> list[tuple[int, int]]:
    """Return the used blocks as pieces [start, end), unordered."""
    found: list[tuple[int, int]] = []
    for group in groups:
        # A bitmap that was never written says nothing of the metadata, which may lie in any group.
        found += [(group.block_bitmap, group.block_bitmap + 1), (group.inode_bitmap, group.inode_bitmap + 1)]
        found.append((group.inode_table, group.inode_table + layout.inode_blocks))
        start = layout.start(group.number)
        if _has_superblock(group.number, layout.sparse):
            found.append((start, start + 1 + layout.table_blocks + layout.reserved))
        if not group.uninitialized:
            bitmap = os.pread(device, layout.block_size, group.block_bitmap * layout.block_size)
            found += [(start + one, start + end) for one, end in runs(bitmap, layout.length(group.number))]
    return found


def _has_superblock(group: int, sparse: bool) -> bool:
    if not sparse or group <= 1:
        return True
    for base in (3, 5, 7):
        power = base
        while power < group:
            power *= base
        if power == group:
            return True
    return False


def runs(bitmap: bytes, length: int) -> Iterator[tuple[int, int]]:
    """Yield the pieces [start, end) of ones among the first ``length`` bits, the lowest bit of a byte first."""
    number = int.from_bytes(bitmap, "little") & ((1 << length) - 1)
    at = 0
    while number:
        skip = (number & -number).bit_length() - 1
        number >>= skip
        ones = (~number & (number + 1)).bit_length() - 1
        yield at + skip, at + skip + ones
        number >>= ones
        at += skip + ones


def _joined(pieces: Iterable[tuple[int, int]], block_size: int, size: int) -> Iterator[Extent]:
    start = end = -1
    for one, other in sorted(piece for piece in pieces if piece[0] < piece[1]):
        if start < 0:
            start, end = one, other
        elif one * block_size <= end * block_size + _GAP:
            end = max(end, other)
        else:
            yield Extent(start * block_size, (end - start) * block_size)
            start, end = one, other
    if start >= 0:
        yield Extent(start * block_size, min(end * block_size, size) - start * block_size)
