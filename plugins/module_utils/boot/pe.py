# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Parse PE images strictly and compute their Authenticode digest.

Only 64-bit images (PE32+), the only ones that a 64-bit firmware loads. Sections must lie one after the other as
linkers and ukify write them, so that firmware, ``sbsign`` and we hash the same bytes.

Source: Microsoft PE/COFF specification; "Windows Authenticode Portable Executable Signature Format"; edk2
SecurityPkg/Library/DxeTpm2MeasureBootLib/DxeTpm2MeasureBootLib.c.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass

from ..errors import FdeError

MAX_SECTIONS = 96
PE32_PLUS = 0x20B
CERTIFICATE_DIRECTORY = 4
PKCS_SIGNED_DATA = 0x0002


class PeError(FdeError):
    """The image is not a PE image of the form that is accepted."""

    def __init__(self, subject: str, cause: str) -> None:
        super().__init__(subject, cause, "Build the image again with ukify")


@dataclass(frozen=True)
class Section:
    """A section: ``data`` is what is loaded and measured, that is ``min(raw size, virtual size)`` bytes."""

    name: str
    data: bytes
    offset: int
    raw_size: int


@dataclass(frozen=True)
class PeImage:
    """A parsed image with what Authenticode leaves out of its digest."""

    content: bytes
    sections: tuple[Section, ...]
    checksum_offset: int
    certificate_entry_offset: int
    #: Where the attribute certificates begin; the end of the file when there are none.
    certificates_offset: int
    certificates: tuple[bytes, ...]

    def section(self, name: str) -> bytes:
        """Return the content of the only section of that name. Raises ``PeError`` when there is not exactly one."""
        found = [section.data for section in self.sections if section.name == name]
        if len(found) != 1:
            raise PeError(name, f"the image has {len(found)} sections of that name instead of one")
        return found[0]

    def has(self, name: str) -> bool:
        """Tell whether there is a section of that name."""
        return any(section.name == name for section in self.sections)

    def authenticode(self, bank: str = "sha256") -> bytes:
        """Return the Authenticode digest, which firmware checks against signatures and measures in PCR 4."""
        digest = hashlib.new(bank)
        view = memoryview(self.content)
        digest.update(view[: self.checksum_offset])
        digest.update(view[self.checksum_offset + 4 : self.certificate_entry_offset])
        digest.update(view[self.certificate_entry_offset + 8 : self.certificates_offset])
        return digest.digest()


def parse_pe(content: bytes, subject: str = "PE image") -> PeImage:
    """Parse an image. Raises ``PeError`` for anything truncated, overlapping or ambiguous."""
    try:
        return _parse(content, subject)
    except struct.error as error:
        raise PeError(subject, "the image is truncated") from error


def _parse(content: bytes, subject: str) -> PeImage:
    if content[:2] != b"MZ":
        raise PeError(subject, "this is not a PE image")
    header = struct.unpack_from("<I", content, 0x3C)[0]
    if not 0x40 <= header <= len(content) - 24 or content[header : header + 4] != b"PE\0\0":
        raise PeError(subject, "the image has no PE header")
    count, optional_size = struct.unpack_from("<H12xH", content, header + 6)
    optional = header + 24
    magic = struct.unpack_from("<H", content, optional)[0]
    headers_size = struct.unpack_from("<I", content, optional + 60)[0]
    directories = struct.unpack_from("<I", content, optional + 108)[0]
    if magic != PE32_PLUS:
        raise PeError(subject, "the image is not a 64-bit one")
    if directories <= CERTIFICATE_DIRECTORY or directories > 16 or optional_size != 112 + 8 * directories:
        raise PeError(subject, "the image's optional header has an impossible size")
    table = optional + optional_size
    if not 1 <= count <= MAX_SECTIONS or not table + 40 * count <= headers_size <= len(content):
        raise PeError(subject, "the image's section table has an impossible size")
    entry = optional + 112 + 8 * CERTIFICATE_DIRECTORY
    start, size = struct.unpack_from("<II", content, entry)
    end_of_image = start if size else len(content)
    if size and (start % 8 or start < headers_size or start + size != len(content)):
        raise PeError(subject, "the image's certificates are not at its end")
    return PeImage(
        content=content,
        sections=_sections(content, table, count, headers_size, end_of_image, subject),
        checksum_offset=optional + 64,
        certificate_entry_offset=entry,
        certificates_offset=end_of_image,
        certificates=_certificates(content, start, size, subject) if size else (),
    )


def _sections(content: bytes, table: int, count: int, begin: int, end: int, subject: str) -> tuple[Section, ...]:
    found = []
    for index in range(count):
        raw_name, virtual_size, _address, raw_size, offset = struct.unpack_from("<8sIIII", content, table + 40 * index)
        try:
            name = raw_name.rstrip(b"\0").decode("ascii")
        except UnicodeDecodeError as error:
            raise PeError(subject, "a section has a name that is not ASCII") from error
        if raw_size and (offset < begin or offset + raw_size > end):
            raise PeError(subject, f"section {name} lies outside the image")
        data = content[offset : offset + min(virtual_size, raw_size)] if raw_size else b""
        found.append(Section(name, data, offset, raw_size))
    stored = sorted((section for section in found if section.raw_size), key=lambda section: section.offset)
    position = begin
    for section in stored:
        # Firmware hashes the sections, not what may lie between them; a gap would be outside the signature.
        if section.offset != position:
            raise PeError(subject, f"section {section.name} does not follow the one before it")
        position += section.raw_size
    return tuple(found)


def _certificates(content: bytes, start: int, size: int, subject: str) -> tuple[bytes, ...]:
    found = []
    position = start
    while position < start + size:
        length, _revision, kind = struct.unpack_from("<IHH", content, position)
        if length < 8 or position + length > start + size:
            raise PeError(subject, "an attribute certificate has an impossible length")
        if kind == PKCS_SIGNED_DATA:
            found.append(content[position + 8 : position + length])
        position += -(-length // 8) * 8
    return tuple(found)
