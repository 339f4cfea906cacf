# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PE images: what is measured is what was signed, and nothing malformed is believed."""

from __future__ import annotations

import hashlib
import importlib.util
import random
import struct

import pytest
from ansible_collections.cvm.fde.plugins.module_utils.boot.pe import PeError, parse_pe
from hypothesis import given, settings
from hypothesis import strategies as st

HEADER = 0x80
OPTIONAL = HEADER + 24
TABLE = OPTIONAL + 112 + 8 * 16
CERTIFICATE_ENTRY = OPTIONAL + 112 + 8 * 4


def make_pe(sections: dict[str, bytes], certificate: bytes = b"") -> bytearray:
    """Build an image as ukify lays it out: 512-byte alignment, sections one after the other, certificate at the end."""
    headers = 1024
    image = bytearray(headers)
    image[:2] = b"MZ"
    struct.pack_into("<I", image, 0x3C, HEADER)
    image[HEADER : HEADER + 4] = b"PE\0\0"
    struct.pack_into("<HHIIIHH", image, HEADER + 4, 0x8664, len(sections), 0, 0, 0, 112 + 8 * 16, 0x22E)
    struct.pack_into("<H", image, OPTIONAL, 0x20B)
    struct.pack_into("<II", image, OPTIONAL + 32, 4096, 512)
    struct.pack_into("<I", image, OPTIONAL + 60, headers)
    struct.pack_into("<I", image, OPTIONAL + 108, 16)
    for index, (name, data) in enumerate(sections.items()):
        raw = -(-len(data) // 512) * 512
        entry = struct.pack("<8sIIII", name.encode(), len(data), 0x1000 * (index + 1), raw, len(image))
        image[TABLE + 40 * index : TABLE + 40 * index + 24] = entry
        image += data.ljust(raw, b"\0")
    if certificate:
        length = 8 + len(certificate)
        struct.pack_into("<II", image, CERTIFICATE_ENTRY, len(image), -(-length // 8) * 8)
        image += (struct.pack("<IHH", length, 0x200, 2) + certificate).ljust(-(-length // 8) * 8, b"\0")
    return image


SECTIONS = {".text": b"code" * 300, ".linux": b"kernel" * 999, ".cmdline": b"root=x"}


def test_sections_are_cut_to_what_is_loaded() -> None:
    image = parse_pe(bytes(make_pe(SECTIONS)))
    assert {section.name: section.data for section in image.sections} == SECTIONS
    assert image.section(".cmdline") == b"root=x"
    assert not image.has(".initrd")
    with pytest.raises(PeError, match="0 sections"):
        image.section(".initrd")


def test_a_section_that_is_larger_in_memory_is_what_is_stored() -> None:
    content = make_pe(SECTIONS)
    struct.pack_into("<I", content, TABLE + 8, 1 << 20)
    assert len(parse_pe(bytes(content)).section(".text")) == 1536


def test_signing_and_the_checksum_do_not_change_the_authenticode_digest() -> None:
    plain = parse_pe(bytes(make_pe(SECTIONS)))
    signed = make_pe(SECTIONS, b"signature")
    struct.pack_into("<I", signed, OPTIONAL + 64, 0xDEADBEEF)
    parsed = parse_pe(bytes(signed))
    assert parsed.certificates == (b"signature",)
    assert parsed.authenticode() == plain.authenticode()
    expected = bytes(make_pe(SECTIONS))
    del_checksum = expected[: OPTIONAL + 64] + expected[OPTIONAL + 68 : CERTIFICATE_ENTRY]
    assert plain.authenticode() == hashlib.sha256(del_checksum + expected[CERTIFICATE_ENTRY + 8 :]).digest()


@pytest.mark.parametrize("place", [0x90, 1024, 1024 + 512 * 3 + 5])
def test_every_other_byte_changes_it(place: int) -> None:
    content = make_pe(SECTIONS)
    before = parse_pe(bytes(content)).authenticode()
    content[place] ^= 1
    assert parse_pe(bytes(content)).authenticode() != before


@pytest.mark.skipif(importlib.util.find_spec("pefile") is None, reason="pefile is not installed")
def test_pefile_sees_the_same_sections() -> None:
    import pefile

    content = bytes(make_pe(SECTIONS))
    theirs = pefile.PE(data=content)
    seen = {
        entry.Name.rstrip(b"\0").decode(): entry.get_data(length=entry.Misc_VirtualSize) for entry in theirs.sections
    }
    assert seen == {section.name: section.data for section in parse_pe(content).sections}


@pytest.mark.parametrize(
    ("offset", "form", "value"),
    [
        (0, "<H", 0),
        (0x3C, "<I", 0xFFFFFFF0),
        (HEADER, "<I", 0),
        (HEADER + 6, "<H", 0),
        (HEADER + 6, "<H", 0xFFFF),
        (HEADER + 20, "<H", 8),
        (OPTIONAL, "<H", 0x10B),
        (OPTIONAL + 60, "<I", 16),
        (OPTIONAL + 60, "<I", 1 << 31),
        (OPTIONAL + 108, "<I", 4),
        (OPTIONAL + 108, "<I", 1 << 30),
        (CERTIFICATE_ENTRY, "<I", 512),
        (CERTIFICATE_ENTRY + 4, "<I", 0xFFFFFFF8),
        (TABLE, "<B", 0xFF),
        (TABLE + 16, "<I", 0xFFFFFE00),
        (TABLE + 20, "<I", 0),
        (TABLE + 20, "<I", 1024 + 512),
        (TABLE + 40 + 20, "<I", 1024),
    ],
)
def test_a_malformed_header_is_refused(offset: int, form: str, value: int) -> None:
    content = make_pe(SECTIONS, b"signature")
    struct.pack_into(form, content, offset, value)
    with pytest.raises(PeError):
        parse_pe(bytes(content))


@pytest.mark.parametrize("length", [0, 4, 0xFFFFFFFF])
def test_a_certificate_with_an_impossible_length_is_refused(length: int) -> None:
    content = make_pe(SECTIONS, b"signature")
    struct.pack_into("<I", content, len(content) - 24, length)
    with pytest.raises(PeError, match="impossible length"):
        parse_pe(bytes(content))


@settings(max_examples=300)
@given(st.lists(st.tuples(st.integers(0, 1023), st.integers(0, 255)), max_size=8), st.integers(0, 12000) | st.none())
def test_no_damage_does_anything_but_raise_its_own_error(edits: list[tuple[int, int]], cut: int | None) -> None:
    content = make_pe(SECTIONS, random.Random(1).randbytes(100))
    for offset, value in edits:
        content[offset] = value
    try:
        image = parse_pe(bytes(content[:cut]))
    except PeError:
        return
    assert len(image.authenticode()) == 32
    assert sum(section.raw_size for section in image.sections) <= len(content)
