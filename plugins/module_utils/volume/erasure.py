# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Overwriting: what is where a volume will be made, and the keys of a volume that shall never be opened again.

Without its keyslots a volume is random data for ever. That they are gone is read back from the disk itself, past the
page cache. It is the disk of now that is proven: whoever copied it before still has that copy.
"""

from __future__ import annotations

import mmap
import os
import re
from typing import Iterator, Optional

from ..errors import FdeError
from ..runner import Runner

_CHUNK = 1 << 20
_BLOCK = 4096
#: Bytes in which all keyslots of any LUKS2 volume lie: two headers of 4 MiB each, and 128 MiB of keyslots at the most
#: (cryptsetup, lib/luks2/luks2.h). Another program's volume may have them farther behind than ours, and what its own
#: header says of that need not be true.
_KEYS = (8 + 128) << 20
_MARK = b"cvm.fde unfinished volume %s\n"


def mark(uuid: str) -> bytes:
    """Return the first block of a device whose volume is being made or erased.

    It is written before anything else, so that a run that was cut short is known by something that no other disk has.
    """
    return _MARK % uuid.encode() + bytes(_BLOCK - len(_MARK % uuid.encode()))


def marked(content: bytes) -> Optional[str]:
    """Return the UUID of the unfinished volume that the first block of a device names."""
    match = re.match(_MARK % rb"([0-9a-f-]{36})", content)
    return match[1].decode() if match is not None and content[:_BLOCK] == mark(match[1].decode()) else None


def clear(node: str, size: int, uuid: str) -> None:
    """Mark a device as an unfinished volume, and overwrite the rest of both its ends with zeros.

    The header area and one MiB behind it lie in the beginning, backup partition tables and RAID headers at the end.
    """
    with _Direct(node) as device:
        device.write(0, mark(uuid))
        device.flush()
        for at, length in _pieces(size):
            device.write_zeros(at, length)


def _pieces(size: int) -> Iterator[tuple[int, int]]:
    end = size // _BLOCK * _BLOCK
    beginning = min(9 * _CHUNK, end)
    yield max(beginning, end - _CHUNK), min(_CHUNK, end - beginning)
    for at in range(beginning - _CHUNK, 0, -_CHUNK):
        yield at, _CHUNK
    yield _BLOCK, _CHUNK - _BLOCK


def destroy(node: str, size: int, uuid: str) -> None:
    """Overwrite all that may hold keys on a device of ``size`` bytes, and read it back; a mark is left in front.

    Raises ``FdeError`` when anything else is left.
    """
    end = min(size, _KEYS)
    with _Direct(node) as device:
        device.write(0, mark(uuid))
        device.flush()
        for at in range(_BLOCK, end, _CHUNK):
            device.write_zeros(at, min(_CHUNK, end - at))
    _prove(node, size, mark(uuid))


def ended(node: str, size: int) -> bool:
    """Return whether nothing at all is left where keys may be, the mark neither. Raises ``FdeError``."""
    end = min(size, _KEYS)
    try:
        with open(node, "rb", buffering=0) as file:
            return not any(os.pread(file.fileno(), _CHUNK, at).strip(b"\0") for at in range(0, end, _CHUNK))
    except OSError as error:
        raise FdeError(
            node, f"what is left of it cannot be read: {error.strerror}", "Check the disk and its connection"
        ) from error


def unmark(node: str, size: int) -> None:
    """Remove the mark, the last that is left of a volume, and look once more. Raises ``FdeError``."""
    with _Direct(node) as device:
        device.write_zeros(0, _BLOCK)
    _prove(node, size, b"")


def discard(runner: Runner, node: str, size: int, uuid: str) -> None:
    """Tell the disk that nothing behind what was overwritten is needed, where it can be told, and look once more.

    What was overwritten is left as it is: what a disk returns for discarded blocks is its own choice.
    """
    if size > _KEYS:
        runner.run(["blkdiscard", "--force", "--offset", str(_KEYS), node], ok=())
    _prove(node, size, mark(uuid))


def _prove(node: str, size: int, first: bytes) -> None:
    """Raise ``FdeError`` unless a device begins with ``first``, and nothing else is where keys may be."""
    end = min(size, _KEYS)
    with _Direct(node) as device:
        for at in range(0, end, _CHUNK):
            length = min(_CHUNK, end - at)
            if device.read(at, length) != (first if at == 0 else b"").ljust(length, b"\0"):
                raise FdeError(
                    node,
                    f"it gives back something else than was written, within the MiB at byte {at}",
                    "Do not trust that its keys are gone; destroy or return the disk",
                )


class _Direct:
    """A device without the page cache. All places and lengths are multiples of the sector size."""

    def __init__(self, node: str) -> None:
        self._node = node

    def __enter__(self) -> _Direct:
        # Exclusive: the kernel refuses where a file system or device-mapper has it.
        flags = os.O_RDWR | os.O_DIRECT | os.O_EXCL | os.O_CLOEXEC
        self._descriptor = os.open(self._node, flags)
        self._buffer = mmap.mmap(-1, _CHUNK)
        return self

    def __exit__(self, *_error: object) -> None:
        try:
            os.fsync(self._descriptor)
        finally:
            os.close(self._descriptor)
            self._buffer.close()

    def write_zeros(self, at: int, length: int) -> None:
        self.write(at, bytes(length))

    def write(self, at: int, content: bytes) -> None:
        self._buffer[: len(content)] = content
        with memoryview(self._buffer) as view, view[: len(content)] as piece:
            if os.pwrite(self._descriptor, piece, at) != len(content):
                raise OSError(f"only a part of {len(content)} bytes was written")

    def flush(self) -> None:
        os.fsync(self._descriptor)

    def read(self, at: int, length: int) -> bytes:
        with memoryview(self._buffer) as view, view[:length] as piece:
            done = os.preadv(self._descriptor, [piece], at)
            return bytes(piece[:done])
