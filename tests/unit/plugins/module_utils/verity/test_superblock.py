# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The superblock is the one that veritysetup writes, and hostile ones are refused."""

from __future__ import annotations

import os
import random
import struct
import uuid
from pathlib import Path

import pytest
from ansible_collections.cvm.fde.plugins.module_utils.boot.tools import Tools
from ansible_collections.cvm.fde.plugins.module_utils.errors import FdeError
from ansible_collections.cvm.fde.plugins.module_utils.runner import CommandError, Runner
from ansible_collections.cvm.fde.plugins.module_utils.verity.hash_tree import format_tree, verify_tree
from ansible_collections.cvm.fde.plugins.module_utils.verity.superblock import Superblock, encode, parse
from hypothesis import given
from hypothesis import strategies as st

BLOCK = Superblock(uuid.UUID(int=7), "sha256", 4096, 4096, 486400, bytes(range(32)))


def test_a_superblock_reads_back() -> None:
    assert parse(encode(BLOCK), "x") == BLOCK
    assert len(encode(BLOCK)) == 512


def test_sizes_follow_from_the_blocks() -> None:
    assert BLOCK.levels == (3800, 30, 1)
    assert BLOCK.area_size == 15695872
    assert BLOCK.data_size == 1992294400


@pytest.mark.parametrize(
    ("offset", "form", "value"),
    [
        (0, "<Q", 0),
        (8, "<I", 2),
        (12, "<I", 0),
        (32, "<I", 0x31616873),
        (64, "<I", 512),
        (68, "<I", 1 << 31),
        (72, "<Q", 0),
        (72, "<Q", 1 << 63),
        (80, "<H", 257),
        (80, "<H", 8),
    ],
)
def test_what_a_sealed_image_never_has_is_refused(offset: int, form: str, value: int) -> None:
    block = bytearray(encode(BLOCK))
    struct.pack_into(form, block, offset, value)
    with pytest.raises(FdeError):
        parse(bytes(block), "x")


@given(st.binary(max_size=600))
def test_noise_raises_its_own_error(noise: bytes) -> None:
    for block in (noise, encode(BLOCK)[:32] + noise):
        try:
            parse(block, "x")
        except FdeError:
            continue


@pytest.mark.skipif(not os.path.exists("/usr/sbin/veritysetup"), reason="veritysetup is not installed")
def test_veritysetup_agrees_and_a_changed_block_does_not_verify(tmp_path: Path, direct_runner: Runner) -> None:
    data, target = tmp_path / "data", tmp_path / "hashes"
    data.write_bytes(random.Random(1).randbytes(300 * 4096))
    wanted = Superblock(uuid.UUID(int=7), "sha256", 4096, 4096, 300, bytes(32))
    tools = Tools(direct_runner)
    root_hash = format_tree(tools, str(data), str(target), wanted)
    assert target.read_bytes()[:512] == encode(wanted)
    assert target.stat().st_size == wanted.area_size
    assert sorted(tmp_path.iterdir()) == [data, target]
    verify_tree(tools, str(data), str(target), root_hash)
    changed = bytearray(data.read_bytes())
    changed[200 * 4096] ^= 1
    data.write_bytes(changed)
    with pytest.raises(CommandError):
        verify_tree(tools, str(data), str(target), root_hash)
