# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The superblock that ``veritysetup`` writes before a hash tree.

Source: cryptsetup lib/verity/verity.c, struct verity_sb (512 bytes, little endian).
"""

from __future__ import annotations

import struct
import uuid
from dataclasses import dataclass

from ..errors import FdeError

SIZE = 512
MAGIC = b"verity\0\0"
_LAYOUT = struct.Struct("<8sII16s32sIIQH6x256s168x")
MAX_SALT = 256
DIGEST_SIZES = {"sha256": 32}


@dataclass(frozen=True)
class Superblock:
    """The parameters of a hash tree. Block sizes in bytes."""

    uuid: uuid.UUID
    algorithm: str
    data_block_size: int
    hash_block_size: int
    data_blocks: int
    salt: bytes

    @property
    def data_size(self) -> int:
        """Bytes of data that the tree covers."""
        return self.data_blocks * self.data_block_size

    @property
    def levels(self) -> tuple[int, ...]:
        """Hash blocks of each level, from the leaves to the single top block."""
        per_block = self.hash_block_size // DIGEST_SIZES[self.algorithm]
        levels = []
        count = self.data_blocks
        while True:
            count = -(-count // per_block)
            levels.append(count)
            if count <= 1:
                return tuple(levels)

    @property
    def area_size(self) -> int:
        """Bytes that superblock (padded to one hash block) and tree take."""
        return (1 + sum(self.levels)) * self.hash_block_size


def encode(superblock: Superblock) -> bytes:
    """Return the 512 bytes of a superblock."""
    return _LAYOUT.pack(
        MAGIC,
        1,
        1,
        superblock.uuid.bytes,
        superblock.algorithm.encode(),
        superblock.data_block_size,
        superblock.hash_block_size,
        superblock.data_blocks,
        len(superblock.salt),
        superblock.salt,
    )


def parse(block: bytes, subject: str) -> Superblock:
    """Parse the first 512 bytes of a hash device. Raises ``FdeError`` for anything but what a sealed image has."""

    def bad(cause: str) -> FdeError:
        return FdeError(subject, cause, "Seal the image again")

    if len(block) < SIZE or block[:8] != MAGIC:
        raise bad("there is no verity superblock")
    _magic, version, hash_type, ident, name, data_size, hash_size, blocks, salt_size, salt = _LAYOUT.unpack_from(block)
    algorithm = name.rstrip(b"\0").decode("ascii", "replace")
    if version != 1 or hash_type != 1 or algorithm not in DIGEST_SIZES:
        raise bad("the verity superblock has a version, type or algorithm that is not accepted")
    if data_size != 4096 or hash_size != 4096 or not 1 <= blocks <= 1 << 40:
        raise bad("the verity superblock has block sizes or a block count that is not accepted")
    if salt_size > MAX_SALT or any(salt[salt_size:]):
        raise bad("the verity superblock has an impossible salt")
    return Superblock(uuid.UUID(bytes=ident), algorithm, data_size, hash_size, blocks, salt[:salt_size])
