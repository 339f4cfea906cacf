# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read and copy the parts of a file or device that are not zeros."""

from __future__ import annotations

import errno
import hashlib
import os
from dataclasses import dataclass
from typing import Iterator

CHUNK = 256 * 1024
_ZEROS = bytes(CHUNK)


@dataclass(frozen=True)
class Content:
    """What a range holds: a digest that does not depend on its holes, and how many bytes are not in zero chunks."""

    digest: bytes
    stored: int


def chunks(fd: int, offset: int, size: int) -> Iterator[tuple[int, bytes]]:
    """Yield (position within the range, bytes) of every chunk of ``CHUNK`` bytes that holds something else than zeros.

    Holes of a file are not read. Raises ``EOFError`` when the file ends before the range does.
    """
    position = 0
    while position < size:
        position = _next_data(fd, offset + position, offset + size) - offset
        if position >= size:
            return
        position -= position % CHUNK
        length = min(CHUNK, size - position)
        data = os.pread(fd, length, offset + position)
        if len(data) != length:
            raise EOFError(f"the file ends {length - len(data)} bytes before byte {offset + position + length}")
        if data != _ZEROS[:length]:
            yield position, data
        position += length


def _next_data(fd: int, position: int, end: int) -> int:
    try:
        return min(os.lseek(fd, position, os.SEEK_DATA), end)
    except OSError as error:
        if error.errno == errno.ENXIO:  # only a hole is left, or the file ended
            return end if os.lseek(fd, 0, os.SEEK_END) >= end else position
        return position  # block devices and some file systems do not know their holes


def read_content(fd: int, offset: int, size: int) -> Content:
    """Digest a range: SHA-256 over its size and, for each chunk that is not zero, its position and bytes."""
    return _digest(size, chunks(fd, offset, size))


def copy(source: int, offset: int, size: int, target: int, target_offset: int) -> Content:
    """Copy a range into a target that reads as zeros there already, leaving holes; return what was copied."""

    def copied() -> Iterator[tuple[int, bytes]]:
        for position, data in chunks(source, offset, size):
            _write(target, data, target_offset + position)
            yield position, data

    return _digest(size, copied())


def _digest(size: int, parts: Iterator[tuple[int, bytes]]) -> Content:
    digest = hashlib.sha256(b"cvm.fde content\0" + size.to_bytes(8, "big"))
    stored = 0
    for position, data in parts:
        digest.update(position.to_bytes(8, "big"))
        digest.update(data)
        stored += len(data)
    return Content(digest.digest(), stored)


def _write(fd: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view = view[written:]
        offset += written


def overwrite(source: int, size: int, target: int) -> None:
    """Copy the whole of a file over a device, zeros too: what is on the device now must not stay."""
    for position in range(0, size, CHUNK):
        _write(target, os.pread(source, min(CHUNK, size - position), position), position)
