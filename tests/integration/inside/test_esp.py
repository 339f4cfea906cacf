# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The agent's files on the EFI system partition, whose FAT has no journal."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from ansible_collections.cvm.fde.plugins.module_utils.agent.esp import DIRECTORY, EfiPartition
from ansible_collections.cvm.fde.plugins.module_utils.agent.process import SubprocessRunner

MIB = 1 << 20
NAME, SIZE = "header.next", 3 * MIB


@pytest.fixture
def torn(runner: SubprocessRunner, disk: Callable[..., str]) -> EfiPartition:
    """An EFI system partition with a file of ours, of whose chain of clusters a power cut left the beginning."""
    device = disk(64 * MIB)
    runner.run(["mkfs.vfat", "-F", "16", device])
    efi = EfiPartition(runner, device)
    efi.write(NAME, os.urandom(SIZE))
    with open(device, "r+b") as file:
        # Microsoft FAT specification, section 3.1: where the tables are, and how large.
        sector, reserved, tables, sectors = struct.unpack("<H1xHB5xH", file.read(24)[11:])
        for table in range(tables):
            file.seek((reserved + table * sectors + 1) * sector)
            file.write(bytes((sectors - 1) * sector))
        file.flush()
        os.fsync(file.fileno())
    return efi


def test_a_file_that_a_power_cut_tore_is_written_anew(torn: EfiPartition) -> None:
    content = os.urandom(SIZE)
    torn.write(NAME, content)
    assert torn.read(NAME, SIZE + 1) == content
    torn.remove(NAME)
    assert torn.read(NAME, SIZE) is None


def test_a_file_system_as_linux_mounts_it_would_be_read_only_from_then_on(torn: EfiPartition, tmp_path: Path) -> None:
    torn.runner.run(["mount", "-t", "vfat", torn.device, str(tmp_path)])
    try:
        (tmp_path / DIRECTORY / NAME).unlink()
        with pytest.raises(OSError) as told:
            (tmp_path / DIRECTORY / NAME).write_bytes(b"")
        assert told.value.errno == errno.EROFS
    finally:
        torn.runner.run(["umount", str(tmp_path)])
