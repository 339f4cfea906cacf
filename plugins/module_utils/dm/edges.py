# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Writing to a device whose sectors cannot be read before they are written, and which of them others look at.

udev and mount look for signatures at both ends and give up at the first error. Sizes and offsets are in sectors of 512
bytes.
"""

from __future__ import annotations

import mmap
import os
from contextlib import contextmanager
from typing import Callable, Iterable, Iterator, Union

from .table import SECTOR

MEBIBYTE = 2048
#: Sectors of a block of 4 KiB, the smallest piece of an authenticated device.
BLOCK = 8
#: libblkid reads up to 4 MiB and a block (the second LUKS2 header) from the start and 3087 sectors (Promise RAID) from
#: the end.
FRONT = 5 * MEBIBYTE
BACK = 2 * MEBIBYTE


def zero(path: str, places: Iterable[tuple[int, int]], between: Callable[[], None] = lambda: None) -> None:
    """Write zeros to places of a device, each a start and a length in whole blocks; ``between`` is called before each
    MiB. Raises ``OSError``.
    """
    zeros = memoryview(mmap.mmap(-1, MEBIBYTE * SECTOR))
    with opened(path) as device:
        for start, length in places:
            for at in range(start, start + length, MEBIBYTE):
                between()
                put(device, zeros[: (start + length - at) * SECTOR], at)


@contextmanager
def opened(path: str) -> Iterator[int]:
    """Yield a descriptor of a device, past the page cache; what was written is on the disk afterwards."""
    descriptor = os.open(path, os.O_RDWR | os.O_DIRECT | os.O_CLOEXEC)
    try:
        yield descriptor
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def put(device: int, content: Union[bytes, memoryview], sector: int) -> None:
    """Write all of ``content`` from ``sector`` on."""
    view, at = memoryview(content), sector * SECTOR
    while view:
        written = os.pwrite(device, view, at)
        view, at = view[written:], at + written
