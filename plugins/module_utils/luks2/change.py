# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Changing a header: on a copy in RAM, judged, pinned, and only then written to the disk.

A program that changes a header on the disk reads it there first, and the disk belongs to the attacker; and whatever it
writes is not pinned yet, so a power cut in between leaves a volume that nobody may open. So programs work on a draft.
The caller pins its digest as the next one and keeps a copy of it, stores it, and pins it as the current one. A torn
store is neither the one nor the other: the copy is then written again, which is safe whatever the disk says, because
the digest of the copy is pinned.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Iterator

from ..errors import FdeError
from .area import HeaderArea, read_area

#: What is compared and written at once, in bytes: no disk tears less, and direct reads are aligned to it.
BLOCK = 4096
#: Bytes that every disk writes as a whole or not at all.
_SECTOR = 512
#: What helps a root volume whose header is half written.
BY_COPY = "Check the disk, then start the machine again, or commit the header: either writes the saved copy of it"


@dataclass(frozen=True)
class Draft:
    """A copy of the header area of ``device`` in a file that programs take for the device."""

    device: str
    path: str
    size: int

    def area(self) -> HeaderArea:
        """Return what the draft has become. Raises ``FdeError`` when it cannot be read."""
        return HeaderArea(self.device, read_area(self.path, self.size).content)


@contextmanager
def draft(area: HeaderArea, directory: str) -> Iterator[Draft]:
    """Yield a draft with the bytes of ``area`` in a new file of ``directory``, which must lie in RAM (tmpfs).

    The file is for root only, and gone afterwards. Raises ``OSError`` when it cannot be made.
    """
    descriptor, path = tempfile.mkstemp(prefix="header-", dir=directory)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(area.content)
        yield Draft(area.device, path, len(area.content))
    finally:
        os.unlink(path)


@dataclass(frozen=True)
class Write:
    """Bytes that go to a device at once; a multiple of ``BLOCK``, but for the end of the area."""

    offset: int
    content: bytes


def writes(old: HeaderArea, new: HeaderArea) -> list[Write]:
    """Return what turns ``old`` into ``new``, in order: keyslots, then the second copy of the header, then the first.

    Only blocks that differ are written; neighbours go together. Raises ``HeaderError`` when ``new`` is not sound, and
    ``ValueError`` when the areas have different sizes.
    """
    if len(old.content) != len(new.content):
        raise ValueError("a header area never changes its size")
    copy = new.header().binary.size
    parts = (range(2 * copy, len(new.content), BLOCK), range(copy, 2 * copy, BLOCK), range(0, copy, BLOCK))
    return [write for part in parts for write in _runs(old.content, new.content, part)]


def _runs(old: bytes, new: bytes, part: range) -> Iterator[Write]:
    start = None
    for at in [*part, part.stop]:
        changed = at != part.stop and old[at : at + BLOCK] != new[at : at + BLOCK]
        if changed and start is None:
            start = at
        elif not changed and start is not None:
            yield Write(start, new[start:at])
            start = None


def store(device: str, old: HeaderArea, new: HeaderArea, remedy: str = BY_COPY) -> None:
    """Write ``new`` over ``old`` on a device, which may be open, and read it back from the disk itself.

    ``remedy`` says what repairs a header that is written only in part.
    Raises ``FdeError`` when the device does not hold ``old`` (nothing was written then), when a write fails, or when it
    reads back otherwise; ``HeaderError`` when ``new`` is not sound.
    """
    planned = writes(old, new)
    if on_disk(device, len(old.content)) != old.content:
        raise FdeError(
            device,
            "its LUKS2 header changed while it was being worked on",
            "Nothing was written; let no other program work on the volume, and run again",
        )
    try:
        # It may be open, and device-mapper then owns it: no exclusive access. Every write is on the disk at its end.
        descriptor = os.open(device, os.O_WRONLY | os.O_SYNC | os.O_CLOEXEC)
        try:
            for write in planned:
                _write(descriptor, write)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise FdeError(device, f"its LUKS2 header could not be written: {error.strerror}", remedy) from error
    if on_disk(device, len(new.content)) != new.content:
        raise FdeError(device, "its LUKS2 header reads back otherwise than it was written", remedy)


def is_mixture(found: bytes, old: bytes, new: bytes) -> bool:
    """Return whether every sector is that of one of two headers."""
    if not len(found) == len(old) == len(new):
        return False
    return all(
        found[at : at + _SECTOR] in (old[at : at + _SECTOR], new[at : at + _SECTOR])
        for at in range(0, len(found), _SECTOR)
    )


def redo(device: str, saved: HeaderArea) -> None:
    """Write the saved copy of a header over what an interrupted ``store`` left; raises what ``store`` does.

    The caller has compared the digest of ``saved`` with the pinned ones.
    """
    store(device, HeaderArea(device, on_disk(device, len(saved.content))), saved)


def _write(descriptor: int, write: Write) -> None:
    done = 0
    while done < len(write.content):
        done += os.pwrite(descriptor, write.content[done:], write.offset + done)


def on_disk(device: str, size: int) -> bytes:
    """Return the first bytes as the disk gives them, past the page cache where the device allows it."""
    try:
        descriptor = os.open(device, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
    except OSError:
        # A file of a file system that has no direct access: there is no disk below that it could differ from.
        return read_area(device, size).content
    try:
        with mmap.mmap(-1, -(-size // BLOCK) * BLOCK) as buffer:
            length = os.preadv(descriptor, [buffer], 0)
            return buffer[: min(length, size)]
    except OSError as error:
        raise FdeError(
            device, f"its LUKS2 header cannot be read: {error.strerror}", "Check the disk and its connection"
        ) from error
    finally:
        os.close(descriptor)
