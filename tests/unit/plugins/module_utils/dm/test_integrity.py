# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How large a device dm-integrity wants; that it is right is tried on the kernel's own, in tests/integration."""

from __future__ import annotations

import struct

import pytest
from ansible_collections.cvm.fde.plugins.module_utils.dm.integrity import SUPERBLOCK_SIZE, needed
from hypothesis import given
from hypothesis import strategies as st

GOOD = {"magic": b"integrt\0", "version": 5, "interleave": 15, "tag": 32, "sections": 100, "provided": 1 << 20}
GOOD |= {"flags": 0x8, "block": 3}


def superblock(**changes: object) -> bytes:
    fields = GOOD | changes
    packed = struct.pack("<8sBbHIQIB", *(fields[name] for name in GOOD))  # type: ignore[arg-type]
    return packed.ljust(SUPERBLOCK_SIZE, b"\0")


def test_journal_tags_and_data_count() -> None:
    # 100 sections of 264 sectors, 32 areas of 32768 sectors of data with tags of 256 sectors before each.
    assert needed(superblock()) == 8 + 100 * 264 + 32 * (32768 + 256)
    assert needed(superblock(provided=(1 << 20) + 8)) == 8 + 100 * 264 + 33 * 256 + (1 << 20) + 8
    assert needed(superblock(sections=0)) == 8 + 32 * (32768 + 256)


def test_an_old_superblock_has_more_room_for_tags() -> None:
    assert needed(superblock(tag=28, flags=0)) == 8 + 100 * 264 + 32 * (32768 + 256)
    assert needed(superblock(tag=28)) == 8 + 100 * 264 + 32 * (32768 + 224)


@pytest.mark.parametrize(
    "change",
    [
        {"magic": b"integrty"},
        {"version": 0},
        {"interleave": 2},
        {"interleave": -1},
        {"interleave": 32},
        {"tag": 0},
        {"tag": 257},
        {"provided": 0},
        {"block": 4},
    ],
)
def test_what_is_no_superblock_says_nothing(change: dict[str, object]) -> None:
    assert needed(superblock(**change)) is None


@given(st.binary(max_size=SUPERBLOCK_SIZE))
def test_whatever_the_host_writes_is_a_number_or_nothing(tail: bytes) -> None:
    for content in (tail, b"integrt\0" + tail):
        found = needed(content)
        assert found is None or found > 0
