# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A header of which a power cut left one whole copy.

A program that changes a header on the disk writes the first copy and then the second. Cut off in between, it leaves two
that differ, or one that is torn; libcryptsetup then goes by the newer whole one. The same is done here, on the bytes in
memory, for a volume that somebody with its recovery key wants back. The host can make any such state: what comes out
is judged as every other header is.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import replace
from typing import Optional

from .area import HeaderArea
from .header import MAGIC, SECONDARY_MAGIC, SIZES, Header, HeaderError

#: Where a copy holds its own offset and its checksum (LUKS2 On-Disk Format Specification 1.1.4, section 2.1).
_OFFSET = 256
_CHECKSUM = slice(448, 512)


def mended(area: HeaderArea) -> HeaderArea:
    """Return the area with both copies of its header like the newer whole one; a sound header is returned as it is.

    Raises ``HeaderError`` where no copy is whole.
    """
    try:
        area.header()
        return area
    except HeaderError:
        whole = [found for size in SIZES for at in (0, size) if (found := _from(area, size, at)) is not None]
        if not whole:
            raise
    return max(whole, key=lambda found: found.header().binary.sequence_id)


def _from(area: HeaderArea, size: int, at: int) -> Optional[HeaderArea]:
    """Return the area with the copy of ``size`` bytes at ``at`` in both places, None unless that copy is whole."""
    other, magic = (size, SECONDARY_MAGIC) if at == 0 else (0, MAGIC)
    if len(area.content) < 2 * size:
        return None
    copy = bytearray(area.content[at : at + size])
    copy[: len(magic)] = magic
    struct.pack_into(">Q", copy, _OFFSET, other)
    copy[_CHECKSUM] = bytes(64)
    copy[_CHECKSUM] = hashlib.sha256(copy).digest() + bytes(32)
    made = replace(area, content=area.content[:other] + bytes(copy) + area.content[other + size :])
    try:
        return made if Header.parse(made.content).binary.size == size else None
    except HeaderError:
        return None
