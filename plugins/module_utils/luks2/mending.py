# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A header that a foreign program was changing on the disk when the power was cut.

It writes the first copy and then the second. Cut off in between, it leaves two that differ, or one that is torn;
libcryptsetup then goes by the newer whole one. And systemd-cryptenroll makes a keyslot first and its token afterwards.
Both are mended here, on the bytes in memory, for a volume that somebody with its recovery key wants back. The host can
make any such state: what comes out is judged as every other header is.
"""

from __future__ import annotations

import copy
import hashlib
import json
import struct
from dataclasses import replace
from typing import Any, Optional

from .area import HeaderArea
from .header import MAGIC, SECONDARY_MAGIC, SIZES, Header, HeaderError

#: Where a copy holds the number of its update, its own offset and its checksum, and where its JSON begins.
#: Source: LUKS2 On-Disk Format Specification 1.1.4, section 2.1.
_SEQUENCE, _OFFSET = 16, 256
_JSON = 4096
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


def without_half_enrolments(area: HeaderArea) -> HeaderArea:
    """Return the area without keyslots that no token names; a root volume has none such, and stays as it is.

    Raises ``HeaderError`` where the header is not sound.
    """
    header = area.header()
    metadata: dict[str, Any] = copy.deepcopy(dict(header.metadata))
    named = {name for token in metadata["tokens"].values() for name in _names(token)}
    half = set(metadata["keyslots"]) - named
    if not half or not named:
        return area
    for name in half:
        del metadata["keyslots"][name]
    for digest in metadata["digests"].values():
        digest["keyslots"] = [name for name in _names(digest) if name not in half]
    size = header.binary.size
    text = json.dumps(metadata, separators=(",", ":")).encode()
    if len(text) >= size - _JSON:
        return area
    content = bytearray(area.content)
    for at in (0, size):
        struct.pack_into(">Q", content, at + _SEQUENCE, header.binary.sequence_id + 1)
        content[at + _JSON : at + size] = text.ljust(size - _JSON, b"\0")
        content[at : at + size] = _sealed(content[at : at + size])
    return replace(area, content=bytes(content))


def _names(entry: dict[str, Any]) -> list[str]:
    """Return the keyslots that a token or a digest names; what is no name is left to the allow-list."""
    found = entry.get("keyslots")
    return [name for name in found if isinstance(name, str)] if isinstance(found, list) else []


def _sealed(content: bytearray) -> bytes:
    """Return one copy with its checksum."""
    content[_CHECKSUM] = bytes(64)
    content[_CHECKSUM] = hashlib.sha256(content).digest() + bytes(32)
    return bytes(content)


def _from(area: HeaderArea, size: int, at: int) -> Optional[HeaderArea]:
    """Return the area with the copy of ``size`` bytes at ``at`` in both places, None unless that copy is whole."""
    other, magic = (size, SECONDARY_MAGIC) if at == 0 else (0, MAGIC)
    if len(area.content) < 2 * size:
        return None
    twin = bytearray(area.content[at : at + size])
    twin[: len(magic)] = magic
    struct.pack_into(">Q", twin, _OFFSET, other)
    made = replace(area, content=area.content[:other] + _sealed(twin) + area.content[other + size :])
    try:
        return made if Header.parse(made.content).binary.size == size else None
    except HeaderError:
        return None
