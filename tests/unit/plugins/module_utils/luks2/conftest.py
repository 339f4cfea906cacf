# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Genuine headers, and a forger that changes them and makes their checksums right again."""

from __future__ import annotations

import copy
import functools
import hashlib
import json
import lzma
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

FIXTURES = Path(__file__).with_name("fixtures")
GENUINE = {path.stem: path for path in sorted(FIXTURES.glob("*.xz"))}
#: Made by cryptsetup as well, and nothing that may ever be opened.
HOSTILE = {path.stem: path for path in sorted(FIXTURES.glob("hostile/*.xz"))}


@functools.cache
def _unpacked(path: Path) -> bytes:
    return lzma.decompress(path.read_bytes())


class Forger:
    """Someone who can write to the disk and knows the format."""

    #: Size of one copy in all genuine headers here.
    size = 256 << 10

    def genuine(self, name: str = "2.8.8-root") -> bytes:
        """Return both copies of a header that cryptsetup made; see tests/integration/inside/make_headers.py."""
        return _unpacked(GENUINE[name])

    def hostile(self, name: str) -> bytes:
        """Return a sound header of a volume that nobody should open; see make_hostile_headers.py."""
        return _unpacked(HOSTILE[name])

    def metadata(self, content: bytes) -> dict[str, Any]:
        """Return the JSON of the first copy."""
        return json.loads(content[4096 : self.size].rstrip(b"\0"))

    def edited(self, edit: Callable[[dict[str, Any]], object], content: bytes | None = None) -> bytes:
        """Return a header with changed JSON in both copies, everything else sound."""
        content = self.genuine() if content is None else content
        metadata = copy.deepcopy(self.metadata(content))
        edit(metadata)
        return self.with_json(json.dumps(metadata).encode(), content=content)

    def with_json(self, text: bytes, *, copies: tuple[int, ...] = (0, 1), content: bytes | None = None) -> bytes:
        """Return a header with other bytes as JSON."""
        content = bytearray(self.genuine() if content is None else content)
        for number in copies:
            start = number * self.size
            content[start + 4096 : start + self.size] = text.ljust(self.size - 4096, b"\0")
        return self.sealed(content)

    def with_bytes(self, changes: Mapping[int, bytes], *, copies: tuple[int, ...] = (0, 1)) -> bytes:
        """Return a header with other bytes at offsets in the binary header."""
        content = bytearray(self.genuine())
        for number in copies:
            for offset, value in changes.items():
                start = number * self.size + offset
                content[start : start + len(value)] = value
        return self.sealed(content)

    def with_large_json(self, text: bytes, size: int = 4 << 20) -> bytes:
        """Return a header of another size, the largest there is, with other bytes as JSON."""
        genuine, content = self.genuine(), bytearray(2 * size)
        for number in (0, 1):
            start = number * size
            content[start : start + 4096] = genuine[number * self.size :][:4096]
            content[start + 8 : start + 16] = struct.pack(">Q", size)
            content[start + 256 : start + 264] = struct.pack(">Q", start)
            content[start + 4096 : start + size] = text.ljust(size - 4096, b"\0")
        return self.sealed(content, size)

    def sealed(self, content: bytearray, size: int | None = None) -> bytes:
        """Return the content with right checksums."""
        size = self.size if size is None else size
        for start in (0, size):
            content[start + 448 : start + 512] = bytes(64)
            content[start + 448 : start + 480] = hashlib.sha256(content[start : start + size]).digest()
        return bytes(content)


@pytest.fixture(scope="session")
def forger() -> Forger:
    return Forger()


@pytest.fixture(params=GENUINE)
def genuine_name(request: pytest.FixtureRequest) -> str:
    return str(request.param)
