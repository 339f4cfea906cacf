# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""CBOR that strangers send is read in one way only, or refused."""

from __future__ import annotations

import contextlib

import pytest
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.cbor import decode, encode_strings
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.errors import AppraisalError
from hypothesis import given
from hypothesis import strategies as st

LIMIT = 4096


@pytest.mark.parametrize(
    ("raw", "item"),
    [
        ("00", 0),
        ("1818", 24),
        ("1bffffffffffffffff", 2**64 - 1),
        ("3822", -35),
        ("43010203", b"\x01\x02\x03"),
        ("6449455446", "IETF"),
        ("62c3bc", "\u00fc"),
        ("83010203", [1, 2, 3]),
        ("a201020304", {1: 2, 3: 4}),
        ("a26161016162820203", {"a": 1, "b": [2, 3]}),
        ("f4", False),
        ("f5", True),
        ("f6", None),
    ],
)
def test_what_documents_are_made_of_is_read(raw: str, item: object) -> None:
    assert decode(bytes.fromhex(raw), "item", LIMIT) == item


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        ("", "nothing"),
        ("0000", "bytes after the item"),
        ("a2010201ff", "the break of an open map in a closed one"),
        ("a201020103", "a key twice"),
        ("a2616101616102", "a text key twice"),
        ("a141aa01", "a key of bytes"),
        ("a1f501", "a key that is true"),
        ("a1f601", "a key that is null"),
        ("a1810001", "a key that is a list"),
        ("5f4101ff", "bytes of indefinite length"),
        ("7f6161ff", "text of indefinite length"),
        ("9f01ff", "a list of indefinite length"),
        ("bf0102ff", "a map of indefinite length where none may be"),
        ("1c", "a reserved length"),
        ("18", "a length that is cut off"),
        ("4301", "bytes that are cut off"),
        ("9affffffff00", "more entries than bytes"),
        ("baffffffff0000", "more pairs than bytes"),
        ("5bffffffffffffffff00", "a length of 16 EiB"),
        ("61ff", "text that is not UTF-8"),
        ("c001", "a tag"),
        ("d2844000", "the tag of COSE_Sign1"),
        ("f7", "undefined"),
        ("f93c00", "a float"),
        ("fb3ff0000000000000", "a double"),
        ("ff", "a break alone"),
        ("818181818100", "five levels"),
    ],
)
def test_what_is_ambiguous_or_broken_is_refused(raw: str, why: str) -> None:
    with pytest.raises(AppraisalError, match="malformed"):
        decode(bytes.fromhex(raw), "item", LIMIT)


def test_a_structure_as_serde_writes_it_is_read_where_it_is_allowed() -> None:
    assert decode(bytes.fromhex("bf01a10203ff"), "item", LIMIT, open_map=True) == {1: {2: 3}}


@pytest.mark.parametrize("raw", ["bf01bf0203ffff", "bf0102", "bf01ff", "bf01020103ff", "81bf0102ff"])
def test_only_the_outermost_map_may_be_open_and_it_must_be_whole(raw: str) -> None:
    with pytest.raises(AppraisalError, match="malformed"):
        decode(bytes.fromhex(raw), "item", LIMIT, open_map=True)


def test_the_size_is_looked_at_first() -> None:
    with pytest.raises(AppraisalError, match="longer than 16 bytes"):
        decode(b"\x58\x1f" + bytes(31), "item", 16)


@given(st.binary(max_size=300), st.booleans())
def test_any_bytes_are_an_item_or_the_one_error(raw: bytes, open_map: bool) -> None:
    with contextlib.suppress(AppraisalError):
        decode(raw, "item", LIMIT, open_map)


@given(st.lists(st.binary(max_size=70_000) | st.text(max_size=300), max_size=30))
def test_what_is_written_is_read_again(parts: list) -> None:
    assert decode(encode_strings(parts), "item", 1 << 22) == parts
