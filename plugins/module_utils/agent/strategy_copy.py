# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Strategy ``copy``: the whole image is in the volume before the root is used for the first time.

Blocks are read from the verity device, never from the partition below it, so every one of them is verified when it is
copied. Afterwards the volume is read again from the disk and compared. A copy that was cut off is not resumed: the
anchor still says ``initializing``, so volume, key and copy are made anew.
"""

from __future__ import annotations

import hashlib
import mmap
import os
from typing import Callable, Iterator, Optional

from ..codes import Code, refuse
from ..dm import clone, edges, written
from ..dm.table import SECTOR
from ..errors import FdeError
from .console import say
from .machine import IMAGE, VOLUME, Machine
from .strategy import ROOT, Assembled, room_for_image, unreadable_image

_CHUNK = 4 << 20
#: Bytes between two lines that say how far the copy is.
_STRIDE = 128 << 20


class Copied:
    """A linear device over the volume."""

    has_volume = True
    any_image = False
    device: Optional[str] = ROOT
    mapping: Optional[str] = clone.NAMES.root

    def mount_point(self, machine: Machine) -> Optional[str]:
        """Return the root: it is the volume's file system."""
        del machine
        return "/"

    def minimum(self, machine: Machine) -> int:
        """Return the least size of the partition in bytes."""
        return room_for_image(machine)

    def first(self, machine: Machine) -> bool:
        """Copy the image into the new volume and verify the copy. Raises ``FdeError``."""
        image, volume = machine.mapper.get(IMAGE), machine.mapper.get(VOLUME)
        if image.size > written.room(volume):
            raise refuse(
                Code.DEVICE_SHRUNK,
                "encrypted volume",
                f"the image's root has {image.size * SECTOR} bytes, there is room for {written.room(volume) * SECTOR}",
            )
        copy_verified(image.path, volume.path, written.SLICE, say)
        written.store(volume, image.size)
        written.map_root(machine.mapper, clone.NAMES.root, volume)
        return True

    def later(self, machine: Machine, complete: bool) -> Assembled:
        """Map the volume; there is nothing else to it."""
        del complete
        written.map_root(machine.mapper, clone.NAMES.root, machine.mapper.get(VOLUME))
        return Assembled(True, "a plain encrypted volume")

    def mountable(self, machine: Machine, complete: bool) -> Optional[str]:
        """Return the root, made read-only."""
        del complete
        volume = machine.mapper.get(VOLUME)
        return written.map_root(machine.mapper, clone.NAMES.root, volume, read_only=True).path


def copy_verified(source: str, target: str, offset: int, tell: Callable[[str], None]) -> None:
    """Copy all of ``source`` to sector ``offset`` of ``target``, and compare it with what is on the disk then.

    Raises ``FdeError`` when the image cannot be read, and when the target reads back otherwise.
    """
    with open(source, "rb", buffering=0) as image, open(target, "r+b", buffering=0) as volume:
        size = image.seek(0, os.SEEK_END)
        wanted = hashlib.sha256()
        for at, length in _chunks(size, "copied", tell):
            chunk = _read(image.fileno(), source, at, length)
            wanted.update(chunk)
            edges.put(volume.fileno(), chunk, offset + at // SECTOR)
        os.fsync(volume.fileno())
    try:
        found = _digest(target, offset, _chunks(size, "verified", tell))
    except OSError as error:
        raise FdeError(target, f"the copy cannot be read back: {error.strerror}", "Check the disk") from error
    if found != wanted.digest():
        raise FdeError(target, "the copy reads back otherwise than it was written", "Check the disk")


def _read(device: int, path: str, at: int, length: int) -> bytes:
    """Read from the image; before a block that cannot be read the kernel gives less than it was asked for."""
    chunk = b""
    while len(chunk) < length:
        try:
            piece = os.pread(device, length - len(chunk), at + len(chunk))
        except OSError as error:
            raise unreadable_image(path, error) from error
        if not piece:
            raise FdeError("the verified image", f"it ends at byte {at + len(chunk)}", "Deploy the image again")
        chunk += piece
    return chunk


def _digest(path: str, offset: int, chunks: Iterator[tuple[int, int]]) -> bytes:
    """Return the digest of what is on the disk, not of what the page cache still has."""
    digest = hashlib.sha256()
    device = os.open(path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
    try:
        with mmap.mmap(-1, _CHUNK) as buffer, memoryview(buffer) as whole:
            for at, size in chunks:
                with whole[:size] as piece:
                    digest.update(piece[: os.preadv(device, [piece], offset * SECTOR + at)])
    finally:
        os.close(device)
    return digest.digest()


def _chunks(length: int, done: str, tell: Callable[[str], None]) -> Iterator[tuple[int, int]]:
    """Yield offset and length of what is worked on at once, and tell how far that has come."""
    for at in range(0, length, _CHUNK):
        if at % _STRIDE == 0:
            tell(f"{at >> 20} of {length >> 20} MiB of the image are {done}")
        yield at, min(_CHUNK, length - at)
