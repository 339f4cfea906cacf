# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""CBOR from strangers: the few kinds of item that signed documents are made of, and nothing that is ambiguous.

Libraries take more than is wanted here (a key twice, tags, shared references, floats), so this is our own reading.
Source: RFC 8949, sections 3 (encoding) and 5.6 (keys that occur twice).
"""

from __future__ import annotations

import struct
from typing import Union

from .errors import AppraisalError

#: Deeper than anything we read: a list inside a map is the deepest.
DEPTH_LIMIT = 4
_BREAK = 0xFF
_OPEN = 31
_SIMPLE: dict[int, Union[bool, None]] = {20: False, 21: True, 22: None}

Key = Union[int, str]
Item = Union[int, bytes, str, bool, None, "list[Item]", "dict[Key, Item]"]


def decode(data: bytes, what: str, limit: int, open_map: bool = False) -> Item:
    """Read one item of at most ``limit`` bytes: integers, byte and text strings, lists, maps, true, false and null.

    Refused, by ``AppraisalError``: bytes after the item, a key twice in one map, keys that are neither integer nor
    text, floats, tags, nesting deeper than 4, items of indefinite length. ``open_map`` lets the outermost item, and
    only that, be a map of indefinite length: that is how serde writes a structure.
    """
    if len(data) > limit:
        raise AppraisalError("malformed", f"the {what} is longer than {limit} bytes")
    decoder = _Decoder(data, what)
    item = decoder.item(DEPTH_LIMIT, open_map)
    if decoder.position != len(data):
        raise AppraisalError("malformed", f"{len(data) - decoder.position} bytes follow the {what}")
    return item


def encode_strings(parts: list[Union[bytes, str]]) -> bytes:
    """Return a list of byte and text strings as CBOR, in the shortest form: what a COSE signature is made over."""
    encoded = _head(4, len(parts))
    for part in parts:
        raw = part.encode() if isinstance(part, str) else part
        encoded += _head(3 if isinstance(part, str) else 2, len(raw)) + raw
    return encoded


def _head(major: int, count: int) -> bytes:
    if count < 24:
        return bytes([major << 5 | count])
    for extra, form in ((24, ">BB"), (25, ">BH"), (26, ">BI")):
        if count < 1 << 8 * (struct.calcsize(form) - 1):
            return struct.pack(form, major << 5 | extra, count)
    raise ValueError("longer than 4 GiB")


class _Decoder:
    def __init__(self, data: bytes, what: str) -> None:
        self._data = data
        self._what = what
        self.position = 0

    def _malformed(self, reason: str) -> AppraisalError:
        return AppraisalError("malformed", f"the {self._what} {reason}")

    def _take(self, count: int) -> bytes:
        end = self.position + count
        if end > len(self._data):
            raise self._malformed("ends in the middle of an item")
        piece = self._data[self.position : end]
        self.position = end
        return piece

    def item(self, depth: int, open_map: bool = False) -> Item:
        initial = self._take(1)[0]
        major, extra = initial >> 5, initial & 0x1F
        if major == 7:
            if extra not in _SIMPLE:
                raise self._malformed("has a float or a simple value other than true, false and null")
            return _SIMPLE[extra]
        if extra == _OPEN and major == 5 and open_map:
            return self._map(None, depth)
        if extra >= 28:
            raise self._malformed("has an item of indefinite length")
        argument = extra if extra < 24 else int.from_bytes(self._take(1 << (extra - 24)), "big")
        if major == 0:
            return argument
        if major == 1:
            return -1 - argument
        if major == 2:
            return self._take(argument)
        if major == 3:
            return self._text(argument)
        if major == 4:
            return self._list(argument, depth)
        if major == 5:
            return self._map(argument, depth)
        raise self._malformed("has a tag")

    def _text(self, size: int) -> str:
        try:
            return self._take(size).decode("utf-8")
        except UnicodeDecodeError as error:
            raise self._malformed("has text that is not UTF-8") from error

    def _enter(self, depth: int, count: int) -> int:
        """Return the depth that is left inside. Every item takes a byte, so a count beyond the rest is a lie."""
        if depth == 0:
            raise self._malformed(f"is nested deeper than {DEPTH_LIMIT} levels")
        if count > len(self._data) - self.position:
            raise self._malformed("ends in the middle of an item")
        return depth - 1

    def _list(self, count: int, depth: int) -> Item:
        inner = self._enter(depth, count)
        return [self.item(inner) for _number in range(count)]

    def _map(self, count: Union[int, None], depth: int) -> Item:
        inner = self._enter(depth, 2 * (count or 0))
        found: dict[Key, Item] = {}
        while len(found) != count:
            if count is None and self._data[self.position : self.position + 1] == bytes([_BREAK]):
                self.position += 1
                break
            key = self.item(inner)
            if isinstance(key, bool) or not isinstance(key, (int, str)):
                raise self._malformed("has a key that is neither an integer nor text")
            if key in found:
                raise self._malformed("has a map with the same key twice")
            found[key] = self.item(inner)
        return found
