# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A header of which one copy is whole is mended from it, and nothing else is."""

from __future__ import annotations

import hashlib
import struct

import pytest
from ansible_collections.cvm.fde.plugins.module_utils.luks2.area import HeaderArea
from ansible_collections.cvm.fde.plugins.module_utils.luks2.header import HeaderError
from ansible_collections.cvm.fde.plugins.module_utils.luks2.mending import mended, without_half_enrolments
from hypothesis import given, settings
from hypothesis import strategies as st

AREA = 1 << 20


def area(content: bytes) -> HeaderArea:
    return HeaderArea("/dev/sdx", content.ljust(AREA, b"k"))


def newer(forger, number: int) -> bytes:
    """Return the header with one copy changed by a later update."""
    content = bytearray(forger.genuine())
    start = number * forger.size
    (sequence,) = struct.unpack_from(">Q", content, start + 16)
    struct.pack_into(">Q", content, start + 16, sequence + 1)
    content[start + 448 : start + 512] = bytes(64)
    digest = hashlib.sha256(content[start : start + forger.size]).digest()
    content[start + 448 : start + 480] = digest
    return bytes(content)


def sequence(content: bytes) -> int:
    return area(content).header().binary.sequence_id


def test_a_sound_header_stays_as_it_is(forger):
    sound = area(forger.genuine())
    assert mended(sound) is sound


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("damage", [(0, 4096), (4096, 512), (0, 1)])
def test_a_torn_copy_is_made_from_the_whole_one(forger, number, damage):
    content = bytearray(forger.genuine())
    at, length = damage
    start = number * forger.size + at
    content[start : start + length] = b"\xff" * length
    found = mended(area(bytes(content)))
    assert found.header() == area(forger.genuine()).header()
    whole = forger.size if number == 0 else 0
    assert found.content[whole : whole + forger.size] == forger.genuine()[whole : whole + forger.size]
    assert found.content[2 * forger.size :] == b"k" * (AREA - 2 * forger.size)


@pytest.mark.parametrize("number", [0, 1])
def test_of_two_whole_copies_the_newer_one_counts(forger, number):
    content = newer(forger, number)
    with pytest.raises(HeaderError):
        area(content).header()
    assert mended(area(content)).header().binary.sequence_id == sequence(forger.genuine()) + 1


def test_two_torn_copies_are_not_mended(forger):
    content = bytearray(forger.genuine())
    content[5000] ^= 1
    content[forger.size + 5000] ^= 1
    with pytest.raises(HeaderError):
        mended(area(bytes(content)))


@pytest.mark.parametrize("content", [b"", bytes(AREA), b"LUKS\xba\xbe"])
def test_what_is_no_header_is_not_mended(content):
    with pytest.raises(HeaderError):
        mended(HeaderArea("/dev/sdx", content))


def half(metadata) -> None:
    """What systemd-cryptenroll has written before the token."""
    metadata["keyslots"]["7"] = dict(metadata["keyslots"][next(iter(metadata["keyslots"]))])
    metadata["digests"]["0"]["keyslots"].append("7")


def test_a_keyslot_without_a_token_is_left_out(forger):
    content = forger.edited(half)
    found = without_half_enrolments(area(content))
    assert found.header().metadata == area(forger.genuine()).header().metadata
    assert sequence(found.content) == sequence(content) + 1
    assert found.content[2 * forger.size :] == area(content).content[2 * forger.size :]


def test_a_header_with_a_token_for_each_keyslot_stays_as_it_is(forger):
    sound = area(forger.genuine())
    assert without_half_enrolments(sound) is sound


@pytest.mark.parametrize("named", [None, 7, {}, [7], ["9"], [["0"]]])
def test_what_a_token_names_may_be_anything(forger, named):
    def edit(metadata) -> None:
        half(metadata)
        metadata["tokens"]["9"] = {"type": "foreign", "keyslots": named}
        metadata["digests"]["1"] = {"type": "pbkdf2", "keyslots": named}

    assert "7" not in without_half_enrolments(area(forger.edited(edit))).header().metadata["keyslots"]


def test_a_volume_without_tokens_keeps_its_keyslots(forger):
    bare = area(forger.edited(lambda metadata: metadata.update(tokens={})))
    assert without_half_enrolments(bare) is bare


@settings(max_examples=60)
@given(st.integers(0, (512 << 10) - 1), st.binary(min_size=1, max_size=64), st.integers(0, 1))
def test_whatever_is_torn_the_answer_is_a_sound_header_or_one_kind_of_exception(forger, at, garbage, copies):
    content = bytearray(forger.genuine())
    for start in (at, (at + forger.size) % (2 * forger.size))[: copies + 1]:
        content[start : start + len(garbage)] = garbage
    try:
        found = mended(area(bytes(content[: 2 * forger.size])))
    except HeaderError:
        return
    assert found.header().uuid == area(forger.genuine()).header().uuid
