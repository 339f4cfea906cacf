# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How large a device dm-integrity wants, by its superblock.

Nobody authenticates that superblock, so what is read here only gives a failure its name. Sizes are in sectors of 512
bytes. Source: Linux drivers/md/dm-integrity.c (struct superblock, calculate_journal_section_size,
calculate_device_limits).
"""

from __future__ import annotations

import struct
from typing import Optional

SUPERBLOCK_SIZE = 512
_MAGIC = b"integrt\0"
#: magic, version, log2_interleave_sectors, integrity_tag_size, journal_sections, provided_data_sectors, flags,
#: log2_sectors_per_block.
_SUPERBLOCK = struct.Struct("<8sBbHIQIB")
_SUPERBLOCK_SECTORS = 8
#: A journal section has eight sectors of entries; each has so many bytes beside its commit id.
_ENTRY_SECTORS, _ENTRY_ROOM = 8, 504
#: Tags of an area fill a multiple of so many bytes; superblocks without the flag keep to what was once a mistake.
_PADDING, _OLD_PADDING, _FIXED_PADDING = 8 * 512, 512 << 8, 0x8


def needed(superblock: bytes) -> Optional[int]:
    """Return the least length of the device that a superblock describes, None where there is none that is sound.

    It is for tags that lie between the data, and a journal without a code of its own: how LUKS2 makes them.
    """
    if len(superblock) < _SUPERBLOCK.size:
        return None
    magic, version, interleave, tag, sections, provided, flags, block = _SUPERBLOCK.unpack_from(superblock)
    if magic != _MAGIC or version < 1 or not 3 <= interleave <= 31 or block > 3 or not 0 < tag <= 256 or not provided:
        return None
    entry = -(-(8 + 8 * (1 << block) + tag) // 8) * 8
    entries = _ENTRY_ROOM // entry * _ENTRY_SECTORS
    section = (entries << block) + _ENTRY_SECTORS
    padding = _PADDING if flags & _FIXED_PADDING else _OLD_PADDING
    tags = -(-(tag << (interleave - block)) // padding) * padding // 512
    area, offset = divmod(provided - 1, 1 << interleave)
    start = _SUPERBLOCK_SECTORS + section * sections
    return int(start + area * ((1 << interleave) + tags) + tags + offset + 1)
