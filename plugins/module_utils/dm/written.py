# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How far an authenticated volume is written.

A sector that nobody has written yet has no tag, and to read it is an error. A file system does not do that, but others
read what lies beside its blocks: ``e2fsck`` through the page cache, whose large folios fail as a whole (Linux >= 6.15),
``btrfs scrub`` by whole stripes. They report sound data as unreadable, and a repair would throw it away. So a root
device ends where its volume is written, and grows with it: nobody can reach a sector that cannot be read.

The volume begins with a record of how long the root device may be: what it says is written, and on the disk. It is
replaced in one sector, which dm-integrity's journal makes whole. A host that puts an older record back shortens the
device, and a file system that is longer than its device is not mounted.

Layout version 1: the record's slice is 1 MiB long; in its first block 16 bytes that name it and the length in sectors
of 512 bytes as a little-endian 64-bit number, then zeros. All sizes and offsets are in such sectors.
"""

from __future__ import annotations

import mmap
import os
import struct

from ..codes import Code, refuse
from . import edges
from .device import Device, DeviceMapper
from .table import SECTOR, Linear

#: The record's slice. What is written by its means begins behind it, or behind what a strategy has there of its own.
SLICE = edges.MEBIBYTE
_NAME = b"cvm.fde written\0"
_RECORD = struct.Struct("<16sQ")
_BLOCK = edges.BLOCK * SECTOR


def room(volume: Device, start: int = SLICE) -> int:
    """Return how long a device from ``start`` to the end of a volume can be, in whole blocks."""
    return max(0, volume.size - start) // edges.BLOCK * edges.BLOCK


def store(volume: Device, length: int) -> None:
    """Record that ``length`` sectors behind the strategy's start are written. Raises ``OSError``."""
    block = memoryview(mmap.mmap(-1, _BLOCK))
    _RECORD.pack_into(block, 0, _NAME, length)
    with edges.opened(volume.path) as device:
        edges.put(device, block, 0)


def load(volume: Device, start: int = SLICE) -> int:
    """Return the recorded length. Raises ``Refusal`` for what is no record, and when the volume is shorter."""
    with mmap.mmap(-1, _BLOCK) as block:
        descriptor = os.open(volume.path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
        try:
            size = os.preadv(descriptor, [block], 0)
        except OSError as error:
            raise refuse(Code.WRITTEN_RECORD, volume.name, f"it cannot be read: {error.strerror}") from error
        finally:
            os.close(descriptor)
        content = block[:size]
    name, length = _RECORD.unpack_from(content.ljust(_BLOCK, b"\0"))
    if name != _NAME or any(content[_RECORD.size :]) or length <= 0 or length % edges.BLOCK:
        raise refuse(Code.WRITTEN_RECORD, volume.name, "something else is there")
    if length > room(volume, start):
        raise refuse(
            Code.DEVICE_SHRUNK,
            volume.name,
            f"the root has {length * SECTOR} bytes, there is room for {room(volume, start) * SECTOR}",
        )
    return int(length)


def map_root(mapper: DeviceMapper, name: str, volume: Device, *, start: int = SLICE, read_only: bool = False) -> Device:
    """Make the device ``name`` over what is written of a volume. Raises as ``load`` does."""
    return mapper.create(name, (Linear(0, load(volume, start), volume.number, start),), read_only=read_only)
