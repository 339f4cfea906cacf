# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a sealed image looks like on disk: how it is laid out and how one is recognised."""

from __future__ import annotations

import hashlib
import os
import uuid
from dataclasses import dataclass
from typing import Optional

from ..disk import gpt
from ..disk.esp import read_from_esp
from ..errors import FdeError
from ..verity.superblock import SIZE, Superblock, parse
from .command_line import root_hash_of
from .manifest import UKI_PATH
from .tools import Tools
from .uki import Uki, parse_uki


@dataclass(frozen=True)
class Layout:
    """Partitions and size (bytes) of a sealed disk whose root hash may not be known yet."""

    esp: gpt.Partition
    root: gpt.Partition
    verity: gpt.Partition
    disk_id: uuid.UUID
    disk_size: int
    sector_size: int = 512

    @property
    def table(self) -> gpt.Table:
        """The partition table."""
        return gpt.new_table(self.disk_id, self.disk_size, (self.esp, self.root, self.verity), self.sector_size)


def partition_ids(root_hash: bytes) -> tuple[uuid.UUID, uuid.UUID]:
    """Return the PARTUUIDs of root and root-verity: first and last 128 bits of the root hash.

    Source: Discoverable Partitions Specification; systemd-veritysetup-generator(8).
    """
    return uuid.UUID(bytes=root_hash[:16]), uuid.UUID(bytes=root_hash[-16:])


def lay_out(
    esp_size: int,
    root_size: int,
    verity_size: int,
    root_hash: bytes,
    disk_size: Optional[int] = None,
    sector_size: int = 512,
) -> Layout:
    """Return the layout: ESP, root, root-verity from 1 MiB on, each on a MiB, and nothing else.

    ``sector_size`` is the one of the disks that the image is for: it decides where a table stands. Without
    ``disk_size`` the disk ends at the first whole MiB after the second partition table. Raises ``ValueError`` when the
    disk is too small.
    """
    root_id, verity_id = partition_ids(root_hash)
    esp = gpt.Partition(1, gpt.ESP, derive_uuid(root_hash, "esp"), gpt.MIB, _up(esp_size), name="esp")
    root = gpt.Partition(2, gpt.ROOT_X86_64, root_id, _up(esp.end), root_size, gpt.READ_ONLY, "root")
    hashes = gpt.Partition(
        3, gpt.ROOT_VERITY_X86_64, verity_id, _up(root.end), verity_size, gpt.READ_ONLY, "root-verity"
    )
    minimum = _up(hashes.end + gpt.ENTRIES * gpt.ENTRY.size + sector_size)
    if disk_size is not None and disk_size < minimum:
        raise ValueError(f"the sealed image needs {minimum} bytes, the device has {disk_size}")
    return Layout(esp, root, hashes, derive_uuid(root_hash, "disk"), disk_size or minimum, sector_size)


def derive_uuid(seed: bytes, purpose: str) -> uuid.UUID:
    """Return a UUID that depends on the seed alone, so that the same image gets the same one again."""
    digest = hashlib.sha256(b"cvm.fde " + purpose.encode() + b"\0" + seed).digest()
    return uuid.UUID(bytes=digest[:16], version=4)


def _up(size: int) -> int:
    return -(-size // gpt.MIB) * gpt.MIB


@dataclass(frozen=True)
class SealedImage:
    """A sealed image as it was found; its hash tree was not read."""

    root_hash: bytes
    root: gpt.Partition
    verity: gpt.Partition
    superblock: Superblock
    uki: Uki
    sector_size: int = 512


def read_sealed(tools: Tools, path: str, size: int, scratch: str) -> Optional[SealedImage]:
    """Return the sealed image in a file or device, None when it is something else or does not fit together."""
    try:
        with open(path, "rb") as disk:
            table = gpt.read_table(disk, size, path)
            kinds = [partition.type for partition in table.partitions]
            if kinds != [gpt.ESP, gpt.ROOT_X86_64, gpt.ROOT_VERITY_X86_64]:
                return None
            esp, root, hashes = table.partitions
            disk.seek(hashes.offset)
            superblock = parse(disk.read(SIZE), path)
        target = os.path.join(scratch, "found.efi")
        if not read_from_esp(tools, path, esp.offset, UKI_PATH, target):
            return None
        with open(target, "rb") as file:
            uki = parse_uki(file.read(), path)
        os.unlink(target)
        root_hash = bytes.fromhex(root_hash_of(uki.command_line))
    except (FdeError, ValueError):
        return None
    if (root.id, hashes.id) != partition_ids(root_hash) or superblock.data_size != root.size:
        return None
    return SealedImage(root_hash, root, hashes, superblock, uki, table.sector_size)
