# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A copy of the used blocks is the whole file system."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from pathlib import Path

import pytest
from ansible_collections.cvm.fde.plugins.module_utils.disk.allocation import (
    Extent,
    read_while_growing,
    runs,
    used_extents,
)
from hypothesis import given
from hypothesis import strategies as st

MIB = 1 << 20
TOOL = shutil.which("mkfs.ext4", path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
needs_tools = pytest.mark.skipif(TOOL is None, reason="mkfs.ext4 is not installed")


def make(image: Path, tree: Path, *options: str, size: int = 300 * MIB) -> None:
    with image.open("wb") as file:
        file.truncate(size)
    subprocess.run([str(TOOL), "-q", "-d", str(tree), *options, str(image)], check=True)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    generator = random.Random(1)
    top = tmp_path / "tree"
    for number in range(40):
        directory = top / f"d{number % 7}"
        directory.mkdir(parents=True, exist_ok=True)
        (directory / f"f{number}").write_bytes(generator.randbytes(generator.randrange(1, 400_000)))
    return top


@needs_tools
@pytest.mark.parametrize(
    "options",
    [
        ("-b", "4096"),
        ("-b", "1024"),
        ("-b", "4096", "-O", "^64bit"),
        ("-b", "4096", "-O", "^flex_bg"),
        ("-b", "4096", "-O", "^sparse_super,^resize_inode"),
        ("-b", "4096", "-O", "^uninit_bg,^metadata_csum"),
        ("-b", "4096", "-g", "2048"),
    ],
)
def test_nothing_but_zeros_is_left_out(tmp_path: Path, tree: Path, options: tuple[str, ...]) -> None:
    image = tmp_path / "image"
    make(image, tree, *options)
    content = image.read_bytes()
    with image.open("rb") as file:
        extents = used_extents(file.fileno(), len(content))
    copied = bytearray(len(content))
    for extent in extents:
        copied[extent.offset : extent.end] = content[extent.offset : extent.end]
    assert copied == content
    assert sum(extent.length for extent in extents) < len(content) * 2 // 3, "most of it is free"
    assert all(one.end < other.offset for one, other in zip(extents, extents[1:]))


@needs_tools
@pytest.mark.parametrize("options", [("-O", "bigalloc"), ("-O", "meta_bg,^resize_inode"), ("-O", "sparse_super2")])
def test_of_a_feature_that_is_not_understood_everything_is_used(
    tmp_path: Path, tree: Path, options: tuple[str, ...]
) -> None:
    image = tmp_path / "image"
    make(image, tree, *options)
    with image.open("rb") as file:
        assert used_extents(file.fileno(), 300 * MIB) == (Extent(0, 300 * MIB),)


@needs_tools
def test_what_lies_behind_the_file_system_is_used(tmp_path: Path, tree: Path) -> None:
    image = tmp_path / "image"
    make(image, tree)
    with image.open("rb") as file:
        assert used_extents(file.fileno(), 301 * MIB)[-1].end == 301 * MIB


@needs_tools
def test_the_start_of_every_new_group_is_read_while_growing(tmp_path: Path, tree: Path) -> None:
    image = tmp_path / "image"
    make(image, tree, "-b", "4096")
    with image.open("rb") as file:
        extents = read_while_growing(file.fileno(), 1024 * MIB)
    assert [extent.offset // MIB for extent in extents] == [384, 512, 640, 768, 896, 1023]
    assert extents[-1].end == 1024 * MIB
    assert all(128 << 10 <= extent.length < 8 * MIB for extent in extents[:-1]), "bitmaps, and copies of descriptors"


@needs_tools
def test_nothing_is_written_into_a_file_system_that_has_grown_already(tmp_path: Path, tree: Path) -> None:
    """It is asked at every boot, and the last block may hold a file by then."""
    image = tmp_path / "image"
    make(image, tree, "-b", "4096")
    with image.open("rb") as file:
        assert read_while_growing(file.fileno(), 300 * MIB) == ()
        assert read_while_growing(file.fileno(), 300 * MIB + 4095) == ()


@needs_tools
@pytest.mark.parametrize(
    ("options", "bitmaps"),
    [
        ("^resize_inode", 2 * 16),
        ("meta_bg,^resize_inode", 2 * 16),
        ("^flex_bg", 2 * 16),
    ],
)
def test_descriptors_and_bitmaps_of_new_groups_are_read_wherever_they_lie(
    tmp_path: Path, tree: Path, options: str, bitmaps: int
) -> None:
    image = tmp_path / "image"
    make(image, tree, "-b", "4096", "-O", options)
    with image.open("rb") as file:
        extents = read_while_growing(file.fileno(), 1024 * MIB)
    assert [extent.offset // MIB for extent in extents] == [384, 512, 640, 768, 896, 1023]
    assert all(extent.length >= (1 + bitmaps) * 4096 for extent in extents[:-1])


@needs_tools
def test_as_many_bitmaps_are_read_as_the_file_system_packs_together(tmp_path: Path, tree: Path) -> None:
    image = tmp_path / "image"
    make(image, tree, "-b", "4096", "-G", "64")
    with image.open("rb") as file:
        extents = read_while_growing(file.fileno(), 1024 * MIB)
    assert all(extent.length >= (1 + 2 * 64) * 4096 for extent in extents[:-1])


@needs_tools
def test_what_linux_does_not_grow_needs_nothing(tmp_path: Path, tree: Path) -> None:
    image = tmp_path / "image"
    make(image, tree, "-b", "4096", "-O", "sparse_super2")
    with image.open("rb") as file:
        assert read_while_growing(file.fileno(), 1024 * MIB) == ()


@needs_tools
def test_groups_of_clusters_are_larger(tmp_path: Path, tree: Path) -> None:
    image = tmp_path / "image"
    make(image, tree, "-b", "4096", "-O", "bigalloc")
    with image.open("rb") as file:
        extents = read_while_growing(file.fileno(), 8192 * MIB)
    assert [extent.offset // MIB for extent in extents] == [2048, 4096, 6144, 8191]


@pytest.mark.parametrize("packed", [0, 5, 31, 255])
def test_a_hostile_superblock_asks_for_no_more_than_a_group(tmp_path: Path, packed: int) -> None:
    block = bytearray(1024)
    block[0x04:0x08] = (4096).to_bytes(4, "little")
    block[0x18:0x1C] = (2).to_bytes(4, "little")
    block[0x20:0x24] = (32768).to_bytes(4, "little")
    block[0x38:0x3A] = b"\x53\xef"
    block[0x60:0x64] = (0x200).to_bytes(4, "little")
    block[0x174] = packed
    image = tmp_path / "image"
    image.write_bytes(bytes(1024) + block)
    os.truncate(image, 16 * MIB)
    with image.open("rb") as file:
        extents = read_while_growing(file.fileno(), 1024 * MIB)
    assert extents and all(extent.end <= 1024 * MIB for extent in extents)


def test_another_file_system_uses_everything(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(MIB))
    with image.open("rb") as file:
        assert used_extents(file.fileno(), MIB) == (Extent(0, MIB),)


@given(st.binary(max_size=64), st.integers(min_value=0, max_value=600))
def test_runs_are_the_ones_of_a_bitmap(bitmap: bytes, length: int) -> None:
    found = set()
    for start, end in runs(bitmap, length):
        assert start < end
        found |= set(range(start, end))
    assert found == {at for at in range(min(length, 8 * len(bitmap))) if bitmap[at // 8] >> at % 8 & 1}
