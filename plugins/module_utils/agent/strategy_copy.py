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
from ..dm import clone, written
from ..dm.table import SECTOR
from ..errors import FdeError
from .console import say
from .machine import IMAGE, VOLUME, Machine
from .strategy import ROOT, Assembled, room_for_image

_CHUNK = 4 << 20
#: Bytes between two lines that say how far the copy is.
_STRIDE = 1 << 30


class Copied:
    """A linear device over the volume."""

    has_volume = True
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
                Code.DISK_TOO_SMALL,
                "encrypted volume",
                f"the image's root has {image.size * SECTOR} bytes, there is room for {written.room(volume) * SECTOR}",
            )
        written.store(volume, image.size)
        copy_verified(image.path, written.map_root(machine.mapper, clone.NAMES.root, volume).path, say)
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


def copy_verified(source: str, target: str, tell: Callable[[str], None]) -> None:
    """Copy all of ``source`` to ``target``, which is as long, and compare it with what is on the disk then.

    Raises ``FdeError`` when the target reads back otherwise.
    """
    with open(source, "rb", buffering=0) as image, open(target, "r+b", buffering=0) as volume:
        size = image.seek(0, os.SEEK_END)
        tell(f"copying the {size >> 20} MiB of the image")
        wanted = _copy(image.fileno(), volume.fileno(), size, tell)
        os.fsync(volume.fileno())
    tell("verifying the copy")
    try:
        found = _digest(target, size)
    except OSError as error:
        raise FdeError(target, f"the copy cannot be read back: {error.strerror}", "Check the disk") from error
    if found != wanted:
        raise FdeError(target, "the copy reads back otherwise than it was written", "Check the disk")


def _copy(source: int, target: int, length: int, tell: Callable[[str], None]) -> bytes:
    digest, told = hashlib.sha256(), 0
    for at, size in _chunks(length):
        chunk = os.pread(source, size, at)
        if len(chunk) != size:
            raise FdeError("the verified image", f"it ends at byte {at + len(chunk)}", "Deploy the image again")
        digest.update(chunk)
        _write(target, chunk, at)
        if at + size >= told + _STRIDE:
            told = at + size
            tell(f"{told >> 20} MiB are copied")
    return digest.digest()


def _digest(path: str, length: int) -> bytes:
    """Return the digest of what is on the disk, not of what the page cache still has."""
    digest = hashlib.sha256()
    device = os.open(path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
    try:
        with mmap.mmap(-1, _CHUNK) as buffer, memoryview(buffer) as whole:
            for at, size in _chunks(length):
                with whole[:size] as piece:
                    digest.update(piece[: os.preadv(device, [piece], at)])
    finally:
        os.close(device)
    return digest.digest()


def _chunks(length: int) -> Iterator[tuple[int, int]]:
    return ((at, min(_CHUNK, length - at)) for at in range(0, length, _CHUNK))


def _write(device: int, content: bytes, at: int) -> None:
    view = memoryview(content)
    while view:
        written = os.pwrite(device, view, at)
        view, at = view[written:], at + written
