# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A copied root grows to the end of its volume, of which most sectors were never written and cannot be read."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from ansible_collections.cvm.fde.plugins.module_utils.agent import strategy_copy
from ansible_collections.cvm.fde.plugins.module_utils.disk import growth
from ansible_collections.cvm.fde.plugins.module_utils.dm import edges
from ansible_collections.cvm.fde.plugins.module_utils.dm.device import DeviceMapper
from ansible_collections.cvm.fde.plugins.module_utils.luks2.area import read_area
from ansible_collections.cvm.fde.plugins.module_utils.luks2.profile import AUTHENTICATED
from ansible_collections.cvm.fde.plugins.module_utils.luks2.volume import attach_with_key, format_volume
from ansible_collections.cvm.fde.plugins.module_utils.runner import Runner

MIB, GIB = 1 << 20, 1 << 30


def copied(runner: Runner, mapper: DeviceMapper, disk: Callable[..., str], image: Path, size: int) -> tuple[str, int]:
    """Copy an image into a new authenticated volume and return the volume's device and its length in bytes."""
    device = disk(size)
    key = bytearray(os.urandom(AUTHENTICATED.volume_key_size))
    temporary = bytearray(os.urandom(32))
    uuid = "6a2f0e55-5b7e-4d0e-9d59-1c2f35e7a003"
    format_volume(runner, device, volume_key=key, temporary_key=temporary, uuid=uuid)
    header = image.with_suffix(".header")
    read_area(device).store(str(header))
    attach_with_key(runner, "fde-crypt", device, header=str(header), volume_key=key)
    length = sum(target.length for target in mapper.table("fde-crypt")) // edges.BLOCK * edges.BLOCK
    path = mapper.get("fde-crypt").path
    edges.write(path, length)
    strategy_copy.copy_verified(str(image), path, length * 512, lambda _: None)
    return path, length * 512


@pytest.mark.parametrize(
    ("options", "size"),
    [
        ("-O ^resize_inode", 9 * GIB),
        ("-O ^resize_inode,^flex_bg", 9 * GIB),
        ("-E resize=200000", 17 * GIB),
        ("-O meta_bg,^resize_inode", 9 * GIB),
        ("-O meta_bg,^resize_inode,^sparse_super", 9 * GIB),
        ("-O ^resize_inode -G 64", 17 * GIB),
        ("-G 64", 9 * GIB),
        ("-G 1", 3 * GIB),
        ("-O bigalloc", 9 * GIB),
    ],
)
def test_nothing_is_read_while_growing_that_was_never_written(
    runner: Runner, mapper: DeviceMapper, disk: Callable[..., str], tmp_path: Path, options: str, size: int
) -> None:
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.truncate(64 * MIB)
    runner.run(["mkfs.ext4", "-q", "-b", "4096", *options.split(), str(image)])
    path, length = copied(runner, mapper, disk, image, size)
    runner.run(["mount", "-t", "ext4", "-o", "errors=remount-ro", path, "/mnt"])
    # What was read ahead while the copy was verified is no error.
    runner.run(["dmesg", "--clear"])
    grown = growth.grow("/mnt", "ext4", path, length)
    assert grown > size * 9 // 10
    Path("/mnt/large").write_bytes(os.urandom(64) * (MIB // 2))
    for number in range(200):
        Path(f"/mnt/directory{number}").mkdir()
    runner.run(["umount", "/mnt"])
    log = runner.run(["dmesg"]).stdout.decode()
    assert [line for line in log.splitlines() if "AEAD ERROR" in line or "EXT4-fs error" in line] == []
    # It reads ahead too.
    runner.run(["e2fsck", "-fn", path])
