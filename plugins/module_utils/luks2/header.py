# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A strict reader of LUKS2 headers, from bytes alone.

Both binary headers and both JSON areas must be sound and say the same: libcryptsetup falls back to the second copy, and
repairs the first from it, when the first is damaged. Nothing is repaired here, and nothing is accepted that
libcryptsetup's more lenient JSON parser could read otherwise. What a sound header may *contain* is another question
(``policy.py``).

Source: LUKS2 On-Disk Format Specification 1.1.4, sections 2 and 3.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import struct
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Mapping, NoReturn, Union

from ..errors import Refusal

MAGIC = b"LUKS\xba\xbe"
SECONDARY_MAGIC = b"SKUL\xba\xbe"
#: The sizes of one binary header with its JSON area that the specification allows; the second copy follows the first.
SIZES = tuple(0x4000 << power for power in range(9))

_BINARY_SIZE = 4096
_BINARY = struct.Struct(">6sHQQ48s32s64s40s48sQ184s64s")
_CHECKSUM = slice(448, 512)
#: Updates count from 1; half of the number range is a forgery that would make a genuine update overflow.
_MAX_SEQUENCE_ID = 1 << 62
_MAX_INTEGER = (1 << 63) - 1
#: Nesting, values, and bytes of a name: several times what eight keyslots with their tokens and event logs need, and
#: so little that whoever looks at each of them is done soon.
_MAX_DEPTH = 16
_MAX_VALUES = 4096
_MAX_NAME = 64
#: The most entries of a section, which are numbered from 0. Source: libcryptsetup, lib/luks2/luks2.h.
_MAX_ENTRIES = {"keyslots": 32, "tokens": 32, "segments": 32, "digests": 8}
_SECTIONS = (*_MAX_ENTRIES, "config")
#: What matters for the structure of JSON, and what is escaped; nothing of it overlaps, so one pass finds it all.
_MARKS = re.compile(rb'\\.|["\[\]{},]', re.DOTALL)


class Defect(str, Enum):
    """Why bytes are not a sound LUKS2 header."""

    TRUNCATED = "truncated"
    MAGIC = "magic"
    VERSION = "version"
    SIZE = "size"
    OFFSET = "offset"
    CHECKSUM_ALGORITHM = "checksum-algorithm"
    CHECKSUM = "checksum"
    SEQUENCE_ID = "sequence-id"
    TEXT = "text"
    PADDING = "padding"
    JSON_ENCODING = "json-encoding"
    JSON_SYNTAX = "json-syntax"
    JSON_DUPLICATE = "json-duplicate-key"
    JSON_DEPTH = "json-depth"
    JSON_SIZE = "json-size"
    JSON_NUMBER = "json-number"
    JSON_TRAILING = "json-trailing"
    JSON_SECTIONS = "json-sections"
    COPIES_DISAGREE = "copies-disagree"


class HeaderError(Refusal):
    """The bytes are not a sound LUKS2 header; ``defect`` says why and ``code`` is ``luks2-`` with the same word."""

    def __init__(self, subject: str, defect: Defect, detail: str) -> None:
        super().__init__(
            f"luks2-{defect.value}",
            subject,
            f"its LUKS2 header is malformed ({detail})",
            "Damage or tampering explains this; open the volume with a header backup that you trust",
        )
        self.defect = defect


@dataclass(frozen=True)
class BinaryHeader:
    """One of the two copies of the binary header. Sizes and offsets in bytes."""

    size: int
    sequence_id: int
    label: str
    uuid: str
    subsystem: str
    offset: int


@dataclass(frozen=True)
class Header:
    """A sound header: both copies agree. ``metadata`` is the JSON object, judged by nobody yet."""

    binary: BinaryHeader
    metadata: Mapping[str, Any] = field(repr=False)

    @property
    def uuid(self) -> str:
        return self.binary.uuid

    @classmethod
    def parse(cls, content: Union[bytes, bytearray], *, subject: str = "header") -> Header:
        """Read the header at the start of ``content``. Raises ``HeaderError`` and nothing else."""
        reader = _Reader(subject)
        area = bytes(content[: 2 * SIZES[-1]])
        first = reader.binary(area, 0, MAGIC)
        second = reader.binary(area, first.size, SECONDARY_MAGIC)
        first_text = reader.json_text(area, first)
        second_text = reader.json_text(area, second)
        for name in ("size", "sequence_id", "label", "uuid", "subsystem"):
            if getattr(first, name) != getattr(second, name):
                reader.fail(Defect.COPIES_DISAGREE, f"the copies differ in {name}")
        if first_text != second_text:
            reader.fail(Defect.COPIES_DISAGREE, "the copies differ in their JSON")
        return cls(first, reader.metadata(first_text))


class _Reader:
    """Reads parts of a header and names the subject in what it raises."""

    def __init__(self, subject: str) -> None:
        self._subject = subject

    def fail(self, defect: Defect, detail: str) -> NoReturn:
        raise HeaderError(self._subject, defect, detail)

    def binary(self, area: bytes, offset: int, magic: bytes) -> BinaryHeader:
        """Read and check the copy at ``offset``, its checksum included."""
        copy = "first copy" if offset == 0 else "second copy"
        block = area[offset : offset + _BINARY_SIZE]
        if len(block) < _BINARY_SIZE:
            self.fail(Defect.TRUNCATED, f"the {copy} ends after {len(block)} bytes")
        found = _BINARY.unpack_from(block)
        (found_magic, version, size, sequence_id, label, algorithm, _salt, uuid, subsystem, at, padding, _checksum) = (
            found
        )
        if found_magic != magic:
            self.fail(Defect.MAGIC, f"the {copy} has another magic number")
        if version != 2:
            self.fail(Defect.VERSION, f"the {copy} has version {version}")
        if size not in SIZES:
            self.fail(Defect.SIZE, f"the {copy} claims a size of {size} bytes")
        if at != offset:
            self.fail(Defect.OFFSET, f"the {copy} claims to lie at byte {at}")
        if offset + size > len(area):
            self.fail(Defect.TRUNCATED, f"the {copy} is longer than the device")
        if algorithm.rstrip(b"\0") != b"sha256":
            self.fail(Defect.CHECKSUM_ALGORITHM, f"the {copy} is not checked by SHA-256")
        self._checksum(area[offset : offset + size], copy)
        if not _blank(padding) or not _blank(block[_BINARY.size :]):
            self.fail(Defect.PADDING, f"the padding of the {copy} is not empty")
        if not 0 < sequence_id <= _MAX_SEQUENCE_ID:
            self.fail(Defect.SEQUENCE_ID, f"the {copy} has sequence id {sequence_id}")
        return BinaryHeader(size, sequence_id, self._text(label), self._text(uuid), self._text(subsystem), at)

    def _checksum(self, copy_area: bytes, copy: str) -> None:
        digest = hashlib.sha256(copy_area[: _CHECKSUM.start])
        digest.update(bytes(64))
        digest.update(copy_area[_CHECKSUM.stop :])
        if not hmac.compare_digest(copy_area[_CHECKSUM], digest.digest() + bytes(32)):
            self.fail(Defect.CHECKSUM, f"the checksum of the {copy} is wrong")

    def _text(self, content: bytes) -> str:
        text, _end, rest = content.partition(b"\0")
        if not _blank(rest) or len(text) == len(content) or not all(32 <= byte < 127 for byte in text):
            self.fail(Defect.TEXT, "a text of the binary header is not printable or not terminated")
        return text.decode("ascii")

    def json_text(self, area: bytes, copy: BinaryHeader) -> bytes:
        """Return the JSON of a copy; all that follows it must be zero."""
        content = area[copy.offset + _BINARY_SIZE : copy.offset + copy.size]
        text, end, rest = content.partition(b"\0")
        if not end:
            self.fail(Defect.JSON_TRAILING, "the JSON fills its area without an end")
        if not _blank(rest):
            self.fail(Defect.JSON_TRAILING, "the JSON area goes on after its end")
        return text

    def metadata(self, text: bytes) -> Mapping[str, Any]:
        """Parse the JSON and check that it has exactly the sections of LUKS2, each an object."""
        parsed = self._json(text)
        if not isinstance(parsed, dict) or set(parsed) != set(_SECTIONS):
            self.fail(Defect.JSON_SECTIONS, "the JSON does not have exactly the five sections of LUKS2")
        for section in _SECTIONS:
            entries = parsed[section]
            if not isinstance(entries, dict):
                self.fail(Defect.JSON_SECTIONS, f"section '{section}' is not an object")
            if section != "config":
                self._entries(section, entries)
        return parsed

    def _entries(self, section: str, entries: Mapping[str, Any]) -> None:
        for name, entry in entries.items():
            most = _MAX_ENTRIES[section]
            if not re.fullmatch(r"0|[1-9][0-9]?", name) or int(name) >= most:
                self.fail(Defect.JSON_SECTIONS, f"section '{section}' has an entry that is not a number below {most}")
            if not isinstance(entry, dict) or not isinstance(entry.get("type"), str):
                self.fail(Defect.JSON_SECTIONS, f"entry {name} of section '{section}' is not an object with a type")

    def _json(self, text: bytes) -> Any:
        if not text.startswith(b"{") or not text.rstrip(b" \t\r\n").endswith(b"}"):
            self.fail(Defect.JSON_SYNTAX, "the JSON is not an object")
        try:
            decoded = text.decode("utf-8")
        except UnicodeDecodeError:
            self.fail(Defect.JSON_ENCODING, "the JSON is not UTF-8")
        self._measure(text)
        # json-c ends a string at an escaped NUL, and half a surrogate pair has no UTF-8.
        if re.search(r"\\u(0000|[dD][89a-fA-F])", decoded):
            self.fail(Defect.JSON_ENCODING, "the JSON escapes a character that no text has")
        try:
            return json.loads(
                decoded,
                object_pairs_hook=self._object,
                parse_int=self._integer,
                parse_float=self._not_a_number,
                parse_constant=self._not_a_number,
            )
        except json.JSONDecodeError as error:
            raise HeaderError(self._subject, Defect.JSON_SYNTAX, f"JSON: {error.msg} at {error.pos}") from None

    def _measure(self, text: bytes) -> None:
        """Bound nesting and number of values in one pass, before the parser makes objects of them."""
        depth = values = 0
        quoted = False
        for mark in _MARKS.finditer(text):
            found = mark[0]
            if found == b'"':
                quoted = not quoted
            elif quoted:
                continue
            elif found in (b"[", b"{"):
                depth += 1
                values += 1
            elif found in (b"]", b"}"):
                depth -= 1
            elif found == b",":
                values += 1
            else:
                self.fail(Defect.JSON_SYNTAX, "JSON: an escape outside of a text")
            if depth > _MAX_DEPTH:
                self.fail(Defect.JSON_DEPTH, f"the JSON nests deeper than {_MAX_DEPTH}")
            if values > _MAX_VALUES:
                self.fail(Defect.JSON_SIZE, f"the JSON has more than {_MAX_VALUES} values")

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            self.fail(Defect.JSON_DUPLICATE, "an object of the JSON has a key twice")
        if any(len(name) > _MAX_NAME for name in result):
            self.fail(Defect.JSON_SIZE, f"the JSON has a name of more than {_MAX_NAME} characters")
        return result

    def _integer(self, digits: str) -> int:
        # json-c reads "-0" as a floating-point number.
        if not re.fullmatch(r"0|-?[1-9][0-9]{0,18}", digits) or not -_MAX_INTEGER <= int(digits) <= _MAX_INTEGER:
            self.fail(Defect.JSON_NUMBER, "a number of the JSON does not fit into 64 bits")
        return int(digits)

    def _not_a_number(self, _text: str) -> NoReturn:
        self.fail(Defect.JSON_NUMBER, "the JSON has a number that is not an integer")


def _blank(content: bytes) -> bool:
    return content.count(0) == len(content)
