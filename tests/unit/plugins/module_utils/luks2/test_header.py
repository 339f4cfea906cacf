# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Only a sound LUKS2 header is read, and whatever else it is, the answer is one kind of exception."""

from __future__ import annotations

import hashlib
import json
import struct

import pytest
from ansible_collections.cvm.fde.plugins.module_utils.luks2.header import SIZES, Defect, Header, HeaderError
from hypothesis import given, settings
from hypothesis import strategies as st

UUID = "6a2f0e55-5b7e-4d0e-9d59-1c2f35e7a003"


def _defect(content: bytes) -> Defect:
    with pytest.raises(HeaderError) as caught:
        Header.parse(content, subject="/dev/sdx")
    assert caught.value.subject == "/dev/sdx"
    assert caught.value.code == f"luks2-{caught.value.defect.value}"
    return caught.value.defect


def test_headers_of_cryptsetup_2_6_to_2_8_are_read(forger, genuine_name):
    header = Header.parse(forger.genuine(genuine_name))
    assert (header.uuid, header.binary.label, header.binary.subsystem) == (UUID, "", "")
    assert header.binary.size == forger.size
    assert header.metadata == forger.metadata(forger.genuine(genuine_name))


def test_what_follows_the_header_does_not_matter(forger):
    assert Header.parse(forger.genuine() + b"keyslots").uuid == UUID


def test_a_forgery_with_nothing_changed_is_still_sound(forger):
    assert Header.parse(forger.edited(lambda metadata: None)).uuid == UUID


@pytest.mark.parametrize("length", [0, 1, 4095, 4096, 100_000, (256 << 10) - 1, 256 << 10, (512 << 10) - 1])
def test_a_device_that_ends_inside_the_header_is_refused(forger, length):
    assert _defect(forger.genuine()[:length]) is Defect.TRUNCATED


@pytest.mark.parametrize("copy", [0, 1])
@pytest.mark.parametrize(
    ("changes", "defect"),
    [
        ({0: b"LUKS\xba\xbf"}, Defect.MAGIC),
        ({0: b"SKULLS"}, Defect.MAGIC),
        ({6: b"\0\1"}, Defect.VERSION),
        ({6: b"\0\3"}, Defect.VERSION),
        ({8: struct.pack(">Q", 0)}, Defect.SIZE),
        ({8: struct.pack(">Q", 0x4001)}, Defect.SIZE),
        ({8: struct.pack(">Q", 0x800000)}, Defect.SIZE),
        ({8: b"\xff" * 8}, Defect.SIZE),
        ({256: struct.pack(">Q", 4096)}, Defect.OFFSET),
        ({72: b"sha1".ljust(32, b"\0")}, Defect.CHECKSUM_ALGORITHM),
        ({72: b"sha256\0x".ljust(32, b"\0")}, Defect.CHECKSUM_ALGORITHM),
        ({72: b"SHA256".ljust(32, b"\0")}, Defect.CHECKSUM_ALGORITHM),
        ({72: b" sha256".ljust(32, b"\0")}, Defect.CHECKSUM_ALGORITHM),
        ({72: b"sha512".ljust(32, b"\0")}, Defect.CHECKSUM_ALGORITHM),
        ({72: b"crc32c".ljust(32, b"\0")}, Defect.CHECKSUM_ALGORITHM),
        ({72: bytes(32)}, Defect.CHECKSUM_ALGORITHM),
        ({256: b"\xff" * 8}, Defect.OFFSET),
        ({16: bytes(8)}, Defect.SEQUENCE_ID),
        ({16: struct.pack(">Q", (1 << 62) + 1)}, Defect.SEQUENCE_ID),
        ({16: b"\xff" * 8}, Defect.SEQUENCE_ID),
        ({24: b"a\0b"}, Defect.TEXT),
        ({24: b"x" * 48}, Defect.TEXT),
        ({168: b"\x1b[2J"}, Defect.TEXT),
        ({208: "ü".encode()}, Defect.TEXT),
        ({24: b"\x7f"}, Defect.TEXT),
        ({24: b"\x9b2J"}, Defect.TEXT),
        ({24: b"a\nb"}, Defect.TEXT),
        ({264: b"x"}, Defect.PADDING),
        ({600: b"x"}, Defect.PADDING),
    ],
)
def test_a_binary_header_that_is_not_as_specified_is_refused(forger, copy, changes, defect):
    assert _defect(forger.with_bytes(changes, copies=(copy,))) is defect


def test_a_size_that_is_allowed_but_not_true_is_refused(forger):
    for size in SIZES:
        if size != forger.size:
            expected = {Defect.TRUNCATED, Defect.CHECKSUM, Defect.MAGIC}
            assert _defect(forger.with_bytes({8: struct.pack(">Q", size)})) in expected


@pytest.mark.parametrize("copy", [0, 1])
@pytest.mark.parametrize("offset", [20, 110, 448, 480, 5000, 200_000])
def test_a_flipped_bit_anywhere_is_a_wrong_checksum(forger, copy, offset):
    content = bytearray(forger.genuine())
    content[copy * forger.size + offset] ^= 4
    assert _defect(bytes(content)) is Defect.CHECKSUM


@pytest.mark.parametrize(
    "changes",
    [
        {16: struct.pack(">Q", 1 << 40)},
        {24: b"other\0"},
        {168: UUID.replace("6a", "6b").encode()},
        {208: b"other\0"},
    ],
    ids=["newer sequence id", "label", "uuid", "subsystem"],
)
def test_copies_that_disagree_are_refused_and_not_repaired(forger, changes):
    assert _defect(forger.with_bytes(changes, copies=(1,))) is Defect.COPIES_DISAGREE
    assert _defect(forger.with_bytes(changes, copies=(0,))) is Defect.COPIES_DISAGREE


def test_a_second_copy_with_other_json_is_refused(forger):
    other = forger.metadata(forger.genuine())
    other["segments"]["0"]["encryption"] = "cipher_null-ecb"
    assert _defect(forger.with_json(json.dumps(other).encode(), copies=(1,))) is Defect.COPIES_DISAGREE


def test_a_destroyed_copy_is_not_replaced_by_the_other(forger):
    content = forger.genuine()
    assert _defect(bytes(forger.size) + content[forger.size :]) is Defect.MAGIC
    assert _defect(content[: forger.size] + bytes(forger.size)) is Defect.MAGIC


@pytest.mark.parametrize(
    ("text", "defect"),
    [
        (b"", Defect.JSON_SYNTAX),
        (b"null", Defect.JSON_SYNTAX),
        (b"[]", Defect.JSON_SYNTAX),
        (b"{", Defect.JSON_SYNTAX),
        (b"{}x", Defect.JSON_SYNTAX),
        (b"{}{}", Defect.JSON_SYNTAX),
        (b"{'a': 1}", Defect.JSON_SYNTAX),
        (b'{"a": 1, /* */ "b": 2}', Defect.JSON_SYNTAX),
        (b'{"a": "\n"}', Defect.JSON_SYNTAX),
        (b'{"a": "\xff"}', Defect.JSON_ENCODING),
        (b'{"a": "\\u0000"}', Defect.JSON_ENCODING),
        (b'{"a": "\\ud800"}', Defect.JSON_ENCODING),
        (b'{"a": 1.5}', Defect.JSON_NUMBER),
        (b'{"a": 1e3}', Defect.JSON_NUMBER),
        (b'{"a": NaN}', Defect.JSON_NUMBER),
        (b'{"a": -Infinity}', Defect.JSON_NUMBER),
        (b'{"a": 9223372036854775808}', Defect.JSON_NUMBER),
        (b'{"a": ' + b"9" * 5000 + b"}", Defect.JSON_NUMBER),
        (b'{"a": -9223372036854775808}', Defect.JSON_NUMBER),
        (b'{"a": 18446744073709551616}', Defect.JSON_NUMBER),
        (b'{"a": -0}', Defect.JSON_NUMBER),
        (b'{"a": -0.0}', Defect.JSON_NUMBER),
        (b'{"a": 01}', Defect.JSON_SYNTAX),
        (b'{"a": +1}', Defect.JSON_SYNTAX),
        (b'{"a": 0x10}', Defect.JSON_SYNTAX),
        (b'{"a": 1_000}', Defect.JSON_SYNTAX),
        ('{"a": １}'.encode(), Defect.JSON_SYNTAX),
        ('{"a": ٣}'.encode(), Defect.JSON_SYNTAX),
        (b'{"a": True}', Defect.JSON_SYNTAX),
        (b'{"a": 1,}', Defect.JSON_SYNTAX),
        (b'{"a": [1,]}', Defect.JSON_SYNTAX),
        (b'{\\"a": 1}', Defect.JSON_SYNTAX),
        (b'\xef\xbb\xbf{"a": 1}', Defect.JSON_SYNTAX),
        (b'{"a": "\xed\xa0\x80"}', Defect.JSON_ENCODING),
        (b'{"a": "\\ud83d\\ude00"}', Defect.JSON_ENCODING),
        (b'{"a": "\xc0\x80"}', Defect.JSON_ENCODING),
        (b'{"a": 1, "a": 2}', Defect.JSON_DUPLICATE),
        (b'{"a": {"b": 1, "\\u0062": 2}}', Defect.JSON_DUPLICATE),
        (b'{"a": ' + b"[" * 17 + b"]" * 17 + b"}", Defect.JSON_DEPTH),
        (b'{"a": ' + b"[" * 100_000 + b"}", Defect.JSON_DEPTH),
        (b"{}", Defect.JSON_SECTIONS),
        (b'{"keyslots":[],"tokens":{},"segments":{},"digests":{},"config":{}}', Defect.JSON_SECTIONS),
        (b'{"keyslots":{},"tokens":{},"segments":{},"digests":{},"config":{},"x":{}}', Defect.JSON_SECTIONS),
        (b'{"keyslots":{"00":{"type":""}},"tokens":{},"segments":{},"digests":{},"config":{}}', Defect.JSON_SECTIONS),
        (b'{"keyslots":{"-1":{"type":""}},"tokens":{},"segments":{},"digests":{},"config":{}}', Defect.JSON_SECTIONS),
        (b'{"keyslots":{"0":{}},"tokens":{},"segments":{},"digests":{},"config":{}}', Defect.JSON_SECTIONS),
        (b'{"keyslots":{"0":1},"tokens":{},"segments":{},"digests":{},"config":{}}', Defect.JSON_SECTIONS),
    ],
)
def test_json_that_two_parsers_could_read_differently_is_refused(forger, text, defect):
    assert _defect(forger.with_json(text)) is defect


@pytest.mark.parametrize(("section", "most"), [("keyslots", 32), ("tokens", 32), ("segments", 32), ("digests", 8)])
def test_entries_are_numbered_below_what_libcryptsetup_knows(forger, section, most):
    def numbered(name: str) -> bytes:
        return forger.edited(lambda metadata: metadata[section].update({name: {"type": "x"}}))

    assert str(most - 1) in Header.parse(numbered(str(most - 1))).metadata[section]
    for name in (str(most), "999", "01", "+1", " 1", "1\n", "1.0", "٣", "１", "", "0x1"):
        assert _defect(numbered(name)) is Defect.JSON_SECTIONS


_LARGE = (4 << 20) - 4096 - 64


@pytest.mark.parametrize(
    ("text", "defect"),
    [
        (b"{" + b'\\"' * (_LARGE // 2) + b"}", Defect.JSON_SYNTAX),
        (b"{" + b'"' * _LARGE + b"}", Defect.JSON_SYNTAX),
        (b'{"' + b'\\"' * (_LARGE // 2) + b"}", Defect.JSON_SYNTAX),
        (b'{"a":"' + b"\\\\" * (_LARGE // 2) + b'"}', Defect.JSON_SECTIONS),
        (b'{"a":"' + b"\\/" * (_LARGE // 2) + b'"}', Defect.JSON_SECTIONS),
        (b"{" + b" " * _LARGE + b"}", Defect.JSON_SECTIONS),
        (b'{"a":' + b"9" * _LARGE + b"}", Defect.JSON_NUMBER),
        (b'{"a":0.' + b"9" * _LARGE + b"}", Defect.JSON_NUMBER),
        (b'{"a":[' + b"0," * (_LARGE // 2) + b"0]}", Defect.JSON_SIZE),
        (b'{"a":[' + b"{}," * (_LARGE // 3) + b"0]}", Defect.JSON_SIZE),
        (b'{"a":[' + b"[]" * (_LARGE // 2) + b"]}", Defect.JSON_SIZE),
        (b'{"a":' + b"[" * _LARGE + b"}", Defect.JSON_DEPTH),
        (b'{"' + b"a" * _LARGE + b'":0}', Defect.JSON_SIZE),
    ],
    ids=lambda value: value[:9].decode() if isinstance(value, bytes) else value.value,
)
def test_the_largest_header_costs_no_more_than_one_look_at_each_byte(forger, text, defect):
    assert _defect(forger.with_large_json(text)) is defect


def test_a_text_may_hold_what_structures_json(forger):
    text = '{}[],"\\' * 4000

    def edit(metadata):
        metadata["tokens"]["7"] = {"type": "other", "text": text}

    assert Header.parse(forger.edited(edit)).metadata["tokens"]["7"]["text"] == text


def test_a_second_copy_of_another_size_is_refused(forger):
    # Sound by itself, at the place that the first copy names, and not the same header.
    large, small = forger.with_large_json(b"{}", 64 << 10), forger.with_large_json(b"{}", 16 << 10)
    second = bytearray(large[64 << 10 :])
    second[256:264] = struct.pack(">Q", 16 << 10)
    second[448:512] = bytes(64)
    second[448:480] = hashlib.sha256(second).digest()
    assert _defect(small[: 16 << 10] + bytes(second)) is Defect.COPIES_DISAGREE


def test_the_highest_sequence_id_that_can_still_be_updated_is_read(forger):
    assert Header.parse(forger.with_bytes({16: struct.pack(">Q", 1 << 62)})).binary.sequence_id == 1 << 62


def test_json_without_an_end_is_refused(forger):
    assert _defect(forger.with_json(b"{" + b" " * (forger.size - 4098) + b"}")) is Defect.JSON_TRAILING


def test_bytes_behind_the_json_are_refused(forger):
    text = json.dumps(forger.metadata(forger.genuine())).encode()
    assert _defect(forger.with_json(text + b"\0\0{}")) is Defect.JSON_TRAILING


@given(content=st.binary(max_size=9000))
def test_any_bytes_are_read_or_refused(content):
    with pytest.raises(HeaderError):
        Header.parse(content)


@settings(max_examples=200)
@given(data=st.data())
def test_a_header_changed_anywhere_is_read_or_refused(forger, data):
    content = bytearray(forger.genuine())
    for _change in range(data.draw(st.integers(1, 4))):
        # Most of a header is zero; the changes go where something is, half of them with checksums made right.
        start = data.draw(st.sampled_from([0, forger.size])) + data.draw(st.integers(0, 8000))
        value = data.draw(st.binary(min_size=1, max_size=16))
        content[start : start + len(value)] = value
    sealed = forger.sealed(content) if data.draw(st.booleans()) else bytes(content)
    try:
        Header.parse(sealed)
    except HeaderError as error:
        assert isinstance(error.defect, Defect)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(max_size=8), children, max_size=4),
    max_leaves=20,
)


@settings(max_examples=200)
@given(metadata=_JSON, ascii_only=st.booleans())
def test_any_json_is_read_or_refused(forger, metadata, ascii_only):
    text = json.dumps(metadata, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    with pytest.raises(HeaderError):
        Header.parse(forger.with_json(text[:100_000]))
