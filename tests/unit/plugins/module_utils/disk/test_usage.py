# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A disk or image in use is noticed; the kernel's files are played in a directory."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from unittest import mock

import pytest
from ansible_collections.cvm.fde.plugins.module_utils.disk.usage import use_of


@pytest.fixture
def kernel(tmp_path: Path) -> Path:
    """A machine with the disk 254:0 (vda) that has the partition 254:1 (vda1)."""
    disk = tmp_path / "sys/block/vda"
    for path, number in ((disk, "254:0"), (disk / "vda1", "254:1")):
        (path / "holders").mkdir(parents=True)
        (path / "dev").write_text(f"{number}\n")
    (disk / "vda1/partition").write_text("1\n")
    (tmp_path / "sys/dev/block").mkdir(parents=True)
    (tmp_path / "sys/dev/block/254:0").symlink_to(disk)
    (tmp_path / "mountinfo").write_text("22 1 8:1 / / rw - ext4 /dev/sda1 rw\n")
    (tmp_path / "swaps").write_text("Filename Type Size Used Priority\n")
    return tmp_path


def use(kernel: Path) -> str | None:
    status = mock.Mock(st_mode=stat.S_IFBLK | 0o660, st_rdev=os.makedev(254, 0))
    with mock.patch("os.stat", return_value=status):
        return use_of("/dev/vda", str(kernel / "sys"), str(kernel / "mountinfo"), str(kernel / "swaps"))


def test_an_idle_disk_is_not_in_use(kernel: Path) -> None:
    assert use(kernel) is None


def test_a_mounted_partition_is_found(kernel: Path) -> None:
    (kernel / "mountinfo").write_text("30 1 254:1 / /mnt/here rw - ext4 /dev/vda1 rw\n")
    assert use(kernel) == "/dev/vda1 is mounted at /mnt/here"


def test_a_mapping_on_a_partition_is_found(kernel: Path) -> None:
    (kernel / "sys/block/vda/vda1/holders/dm-0").write_text("")
    assert use(kernel) == "/dev/dm-0 is set up on it"


def test_swap_is_found(kernel: Path) -> None:
    (kernel / "swaps").write_text("Filename Type Size Used Priority\n/dev/vda1 partition 1 0 -2\n")
    assert use(kernel) == "/dev/vda1 is used for swap"


def test_a_loop_device_on_a_file_is_found(tmp_path: Path) -> None:
    image = tmp_path / "image.raw"
    image.write_bytes(b"")
    assert use_of(str(image), str(tmp_path / "sys")) is None
    loop = tmp_path / "sys/block/loop3/loop"
    loop.mkdir(parents=True)
    (loop / "backing_file").write_text(f"{image}\n")
    (tmp_path / "link").symlink_to(image)
    assert use_of(str(tmp_path / "link"), str(tmp_path / "sys")) == "loop device /dev/loop3 is attached to it"
