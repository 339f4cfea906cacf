# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""File systems are told by their superblock, and a damaged one is noticed."""

from __future__ import annotations

import random
import struct

import pytest
from ansible_collections.cvm.fde.plugins.module_utils.disk.file_system import PROBE_SIZE, FileSystem, identify


def ext4(state: int = 1, incompat: int = 0x2C2, blocks: int = 1000, shift: int = 2) -> bytes:
    block = bytearray(1024)
    struct.pack_into("<I", block, 0x04, blocks)
    struct.pack_into("<I", block, 0x18, shift)
    struct.pack_into("<I", block, 0x30, 1_700_000_000)
    struct.pack_into("<HH", block, 0x38, 0xEF53, state)
    struct.pack_into("<I", block, 0x60, incompat)
    block[0x68:0x78] = bytes(range(16))
    return bytes(1024) + bytes(block) + bytes(PROBE_SIZE - 2048)


def test_a_clean_ext4_has_a_size_and_no_damage() -> None:
    found = identify(ext4())
    assert found is not None
    assert (found.type, found.size, found.written, found.damage) == ("ext4", 4_096_000, 1_700_000_000, "")
    assert found.block_size == 4096


@pytest.mark.parametrize(
    ("start", "damage"),
    [
        (ext4(incompat=0x2C6), "journal needs recovery"),
        (ext4(state=0), "not unmounted cleanly"),
        (ext4(state=3), "errors"),
        (ext4(blocks=0), "not valid"),
        (ext4(shift=40), "not valid"),
    ],
)
def test_a_damaged_ext4_says_what_is_wrong(start: bytes, damage: str) -> None:
    found = identify(start)
    assert found is not None
    assert damage in found.damage


def test_without_extents_it_is_not_ext4() -> None:
    found = identify(ext4(incompat=0x02))
    assert found is not None
    assert found.type == "ext2"


def test_others_are_named() -> None:
    assert identify(b"XFSB" + bytes(PROBE_SIZE)) == FileSystem("xfs")
    assert identify(bytes(0x10040) + b"_BHRfS_M" + bytes(100)) == FileSystem("btrfs")
    assert identify(b"LUKS\xba\xbe" + bytes(PROBE_SIZE)) == FileSystem("crypto_LUKS")


def test_noise_is_nothing_and_never_raises() -> None:
    noise = random.Random(0)
    assert identify(b"") is None
    assert all(identify(noise.randbytes(length)) is None for length in (1, 1023, 1100, 5000))
