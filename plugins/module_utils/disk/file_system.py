# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tell which file system a device holds, from its superblock alone.

Source: kernel Documentation/filesystems/ext4/super.rst, fs/xfs/libxfs/xfs_format.h, fs/btrfs/ctree.h.
"""

from __future__ import annotations

import struct
import uuid
from dataclasses import dataclass
from typing import Optional

#: How much of the device's begin is looked at.
PROBE_SIZE = 72 * 1024

EXT4_CLEAN = 0x0001
EXT4_ERRORS = 0x0002
EXT4_NEEDS_RECOVERY = 0x0004
EXT4_EXTENTS = 0x0040

OTHER_SIGNATURES = (
    ("xfs", 0, b"XFSB"),
    ("btrfs", 0x10040, b"_BHRfS_M"),
    ("crypto_LUKS", 0, b"LUKS\xba\xbe"),
    ("LVM2_member", 0x218, b"LVM2 001"),
    ("squashfs", 0, b"hsqs"),
    ("erofs", 1024, b"\xe2\xe1\xf5\xe0"),
    ("vfat", 0x52, b"FAT32   "),
    ("vfat", 0x36, b"FAT16   "),
)


@dataclass(frozen=True)
class FileSystem:
    """What a superblock says. ``size`` and ``block_size`` in bytes, ``written`` in seconds since 1970; 0 where they are
    not read.
    """

    type: str
    size: int = 0
    uuid: Optional[uuid.UUID] = None
    written: int = 0
    #: Why it must not be used as it is; empty when it was cleanly unmounted.
    damage: str = ""
    block_size: int = 0


def identify(start: bytes) -> Optional[FileSystem]:
    """Return the file system whose first bytes (``PROBE_SIZE`` of them) are given, None when it is not known."""
    ext4 = _ext4(start[1024:2048])
    if ext4 is not None:
        return ext4
    for name, offset, signature in OTHER_SIGNATURES:
        if start[offset : offset + len(signature)] == signature:
            return FileSystem(name)
    return None


def _ext4(block: bytes) -> Optional[FileSystem]:
    if len(block) < 1024 or block[0x38:0x3A] != b"\x53\xef":
        return None
    blocks_low, shift, written, state, incompat = (
        struct.unpack_from("<I", block, 0x04)[0],
        struct.unpack_from("<I", block, 0x18)[0],
        struct.unpack_from("<I", block, 0x30)[0],
        struct.unpack_from("<H", block, 0x3A)[0],
        struct.unpack_from("<I", block, 0x60)[0],
    )
    blocks = blocks_low | struct.unpack_from("<I", block, 0x150)[0] << 32 if incompat & 0x80 else blocks_low
    if shift > 6 or not blocks:
        return FileSystem("ext4", damage="its superblock is not valid")
    damage = ""
    if incompat & EXT4_NEEDS_RECOVERY:
        damage = "its journal needs recovery: it was not unmounted cleanly"
    elif state & EXT4_ERRORS:
        damage = "it is marked as having errors"
    elif not state & EXT4_CLEAN:
        damage = "it was not unmounted cleanly"
    name = "ext4" if incompat & EXT4_EXTENTS else "ext2"
    size = 1024 << shift
    return FileSystem(name, blocks * size, uuid.UUID(bytes=block[0x68:0x78]), written, damage, size)
