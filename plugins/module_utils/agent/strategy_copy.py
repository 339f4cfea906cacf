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
from typing import Callable, Optional, Sequence

from ..codes import Code, refuse
from ..disk.allocation import Extent, used_extents
from ..dm import clone, edges
from ..dm.table import SECTOR, Linear
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

    def minimum(self, machine: Machine) -> int:
        """Return the least size of the partition in bytes."""
        return room_for_image(machine)

    def first(self, machine: Machine) -> bool:
        """Copy the image into the new volume and verify the copy. Raises ``FdeError``."""
        source = machine.mapper.get(IMAGE).path
        length = _map(machine)
        target = machine.mapper.get(clone.NAMES.root).path
        edges.write(target, length // SECTOR)
        copy_verified(source, target, length, say)
        return True

    def later(self, machine: Machine, complete: bool) -> Assembled:
        """Map the volume; there is nothing else to it."""
        del complete
        _map(machine)
        return Assembled(True, "a plain encrypted volume")

    def mountable(self, machine: Machine, complete: bool) -> Optional[str]:
        """Return the volume: its file system begins where it begins."""
        del complete
        return machine.mapper.get(VOLUME).path


def _map(machine: Machine) -> int:
    """Make the root device over all of the volume and return its length in bytes."""
    below = machine.mapper.get(VOLUME)
    length = below.size // edges.BLOCK * edges.BLOCK
    machine.mapper.create(clone.NAMES.root, (Linear(0, length, below.number, 0),))
    return length * SECTOR


def copy_verified(source: str, target: str, room: int, tell: Callable[[str], None]) -> None:
    """Copy the blocks that the file system on ``source`` uses to ``target`` and compare them with what is on the disk.

    Raises ``Refusal`` when the source does not fit into ``room`` bytes, ``FdeError`` when the target reads back
    otherwise.
    """
    with open(source, "rb", buffering=0) as image:
        size = image.seek(0, os.SEEK_END)
        if size > room:
            raise refuse(
                Code.DISK_TOO_SMALL, "encrypted volume", f"the image's root has {size} bytes, there is room for {room}"
            )
        extents = used_extents(image.fileno(), size)
        with open(target, "r+b", buffering=0) as volume:
            tell(f"copying {sum(extent.length for extent in extents) >> 20} MiB of the image's {size >> 20} MiB")
            wanted = _copy(image.fileno(), volume.fileno(), extents, tell)
            os.fsync(volume.fileno())
        tell("verifying the copy")
        try:
            found = _digest(target, extents)
        except OSError as error:
            raise FdeError(target, f"the copy cannot be read back: {error.strerror}", "Check the disk") from error
        if found != wanted:
            raise FdeError(target, "the copy reads back otherwise than it was written", "Check the disk")


def _copy(source: int, target: int, extents: Sequence[Extent], tell: Callable[[str], None]) -> bytes:
    digest, done, told = hashlib.sha256(), 0, 0
    for at, size in _chunks(extents):
        chunk = os.pread(source, size, at)
        if len(chunk) != size:
            raise FdeError("the verified image", f"it ends at byte {at + len(chunk)}", "Deploy the image again")
        digest.update(chunk)
        _write(target, chunk, at)
        done += size
        if done >= told + _STRIDE:
            told = done
            tell(f"{done >> 20} MiB are copied")
    return digest.digest()


def _digest(path: str, extents: Sequence[Extent]) -> bytes:
    """Return the digest of what is on the disk.

    The page cache is left out: it reads ahead, in folios that reach into blocks which were never written, and then what
    was written beside them cannot be read either.
    """
    digest = hashlib.sha256()
    device = os.open(path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
    try:
        with mmap.mmap(-1, _CHUNK) as buffer, memoryview(buffer) as whole:
            for at, size in _chunks(extents):
                with whole[:size] as piece:
                    digest.update(piece[: os.preadv(device, [piece], at)])
    finally:
        os.close(device)
    return digest.digest()


def _chunks(extents: Sequence[Extent]) -> Sequence[tuple[int, int]]:
    return [(at, min(_CHUNK, extent.end - at)) for extent in extents for at in range(extent.offset, extent.end, _CHUNK)]


def _write(device: int, content: bytes, at: int) -> None:
    view = memoryview(content)
    while view:
        written = os.pwrite(device, view, at)
        view, at = view[written:], at + written
