# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether firmware takes the EFI system partition for what it is."""

from __future__ import annotations

import shutil
import struct
from pathlib import Path

import pytest
from ansible_collections.cvm.fde.plugins.module_utils.boot.tools import Tools
from ansible_collections.cvm.fde.plugins.module_utils.disk.esp import CLUSTERS, make_esp, min_size
from ansible_collections.cvm.fde.plugins.module_utils.runner import Runner

MIB = 1 << 20


def clusters(image: Path) -> int:
    """Return how many clusters a FAT32 has, by which firmware tells it from a FAT16."""
    boot = image.read_bytes()[:512]
    sector, per_cluster, reserved, tables = struct.unpack_from("<HBHB", boot, 11)
    total, table = struct.unpack_from("<II", boot, 32)
    assert sector * total <= image.stat().st_size
    return int(total - reserved - tables * table) // per_cluster


needs_tools = pytest.mark.skipif(
    shutil.which("mcopy") is None or shutil.which("mkfs.vfat", path="/usr/sbin:/sbin") is None,
    reason="mtools and dosfstools are not installed",
)


@needs_tools
@pytest.mark.parametrize("sector", [512, 4096])
@pytest.mark.parametrize("more", [0, 1, 31, 200])
def test_firmware_takes_it_for_a_fat32_from_its_least_size_on(
    sector: int, more: int, tmp_path: Path, direct_runner: Runner
) -> None:
    (tmp_path / "kernel").write_bytes(b"kernel")
    size = (-(-min_size(sector) // MIB) + more) * MIB
    tools = Tools(direct_runner)
    make_esp(tools, str(tmp_path / "esp"), size, 1, str(tmp_path / "kernel"), "/EFI/BOOT/BOOTX64.EFI", 0, sector)
    assert clusters(tmp_path / "esp") >= CLUSTERS


@needs_tools
def test_smaller_ones_would_be_too_small_for_large_sectors(tmp_path: Path, direct_runner: Runner) -> None:
    with open(tmp_path / "esp", "wb") as image:
        image.truncate(256 * MIB)
    direct_runner.run(["mkfs.vfat", "-F", "32", "-S", "4096", str(tmp_path / "esp")])
    assert min_size(4096) > 256 * MIB and clusters(tmp_path / "esp") < CLUSTERS
