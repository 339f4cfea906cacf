# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A root grows to the end of its volume, and never has a sector that cannot be read."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from ansible_collections.cvm.fde.plugins.module_utils.agent.filling import fill
from ansible_collections.cvm.fde.plugins.module_utils.agent.hydration import Ears
from ansible_collections.cvm.fde.plugins.module_utils.dm import edges, written
from ansible_collections.cvm.fde.plugins.module_utils.dm.device import Device, DeviceMapper
from ansible_collections.cvm.fde.plugins.module_utils.errors import FdeError, Refusal
from ansible_collections.cvm.fde.plugins.module_utils.luks2.area import read_area
from ansible_collections.cvm.fde.plugins.module_utils.luks2.profile import AUTHENTICATED
from ansible_collections.cvm.fde.plugins.module_utils.luks2.volume import attach_with_key, format_volume
from ansible_collections.cvm.fde.plugins.module_utils.runner import Runner

MIB = 1 << 20
FIRST = 128 * MIB // 512
#: xfs refuses to be made smaller than 300 MiB, btrfs to be resized to less than 256.
LEAST = {"xfs": 320 * MIB // 512, "btrfs": 256 * MIB // 512}
MAKE = {
    "ext4": ["mkfs.ext4", "-q", "-b", "4096"],
    "xfs": ["mkfs.xfs", "-q", "-K"],
    "btrfs": ["mkfs.btrfs", "-q", "-K", "--csum", "sha256"],
}
CHECK = {
    "ext4": ["e2fsck", "-fn"],
    "xfs": ["xfs_repair", "-n"],
    "btrfs": ["btrfs", "check", "--readonly", "--check-data-csum"],
}
DEAF = Ears(lambda _: None, lambda _: None)


@dataclass
class Root:
    """An authenticated volume of which only the root's first part was written."""

    runner: Runner
    mapper: DeviceMapper
    volume: Device

    @property
    def path(self) -> str:
        return self.mapper.get("fde-root").path

    def make(self, kind: str) -> None:
        length = LEAST.get(kind, FIRST)
        edges.zero(self.volume.path, [(written.SLICE, length)])
        written.store(self.volume, length)
        written.map_root(self.mapper, "fde-root", self.volume)
        self.runner.run([*MAKE[kind], self.path])

    def read_all(self) -> None:
        self.runner.run(["dd", f"if={self.path}", "of=/dev/null", "bs=1M", "iflag=direct"])


@pytest.fixture
def root(runner: Runner, mapper: DeviceMapper, disk: Callable[..., str], tmp_path: Path) -> Root:
    device = disk(440 * MIB)
    key = bytearray(os.urandom(AUTHENTICATED.volume_key_size))
    uuid = "6a2f0e55-5b7e-4d0e-9d59-1c2f35e7a003"
    format_volume(runner, device, volume_key=key, temporary_key=bytearray(os.urandom(32)), uuid=uuid)
    header = tmp_path / "header"
    read_area(device).store(str(header))
    attach_with_key(runner, "fde-crypt", device, header=str(header), volume_key=key)
    return Root(runner, mapper, mapper.get("fde-crypt"))


@pytest.mark.parametrize("kind", MAKE)
def test_a_root_fills_its_volume_and_all_of_it_can_be_read(root: Root, kind: str) -> None:
    root.make(kind)
    root.runner.run(["mount", "-t", kind, root.path, "/mnt"])
    Path("/mnt/before").write_bytes(b"before" * 9)
    before = os.statvfs("/mnt").f_blocks
    fill(root.mapper, DEAF, mount_point="/mnt", most=100 * MIB // 512)
    assert root.mapper.get("fde-root").size == written.room(root.volume) == written.load(root.volume)
    assert os.statvfs("/mnt").f_blocks > before * 5 // 4
    for number in range(200):
        Path(f"/mnt/directory{number}").mkdir()
        Path(f"/mnt/directory{number}/file").write_bytes(os.urandom(1000 * number))
    os.sync()
    root.read_all()
    if kind == "btrfs":
        done = root.runner.run(["btrfs", "scrub", "start", "-B", "/mnt"])
        assert b"no errors found" in done.stdout
    assert Path("/mnt/before").read_bytes() == b"before" * 9
    root.runner.run(["umount", "/mnt"])
    root.runner.run([*CHECK[kind], root.path])
    root.mapper.remove("fde-root")
    assert written.map_root(root.mapper, "fde-root", root.volume).size == written.room(root.volume)


def test_a_root_device_that_grew_without_its_file_system_is_caught_up_with(root: Root) -> None:
    root.make("ext4")
    root.mapper.remove("fde-root")
    edges.zero(root.volume.path, [(written.SLICE + FIRST, FIRST)])
    written.store(root.volume, 2 * FIRST)
    written.map_root(root.mapper, "fde-root", root.volume)
    root.runner.run(["mount", "-t", "ext4", root.path, "/mnt"])
    before = os.statvfs("/mnt").f_blocks
    told: list[str] = []
    fill(root.mapper, Ears(told.append, told.append), mount_point="/mnt", most=1 << 30)
    assert os.statvfs("/mnt").f_blocks > 5 * before // 2
    left = [int(line.split()[0]) for line in told if "are to be written" in line]
    assert left[0] < 440 - 2 * 128 and left == sorted(left, reverse=True), "what was written is not written again"


@pytest.mark.parametrize("kind", MAKE)
def test_an_older_record_that_is_put_back_mounts_nothing_and_loses_nothing(root: Root, kind: str) -> None:
    root.make(kind)
    root.runner.run(["mount", "-t", kind, root.path, "/mnt"])
    fill(root.mapper, DEAF, mount_point="/mnt")
    Path("/mnt/file").write_bytes(b"kept" * 9999)
    root.runner.run(["umount", "/mnt"])
    root.mapper.remove("fde-root")
    whole = written.load(root.volume)
    written.store(root.volume, LEAST.get(kind, FIRST))
    written.map_root(root.mapper, "fde-root", root.volume)
    with pytest.raises(FdeError):
        root.runner.run(["mount", "-t", kind, root.path, "/mnt"])
    root.mapper.remove("fde-root")
    written.store(root.volume, whole)
    written.map_root(root.mapper, "fde-root", root.volume)
    root.runner.run(["mount", "-t", kind, root.path, "/mnt"])
    assert Path("/mnt/file").read_bytes() == b"kept" * 9999
    root.runner.run(["umount", "/mnt"])


def test_without_that_a_check_of_sound_files_would_fail(root: Root) -> None:
    """What the growth by pieces is for: the fault as it is, on a device that reaches beyond what is written."""
    root.make("ext4")
    root.mapper.remove("fde-root")
    written.store(root.volume, 2 * FIRST)
    written.map_root(root.mapper, "fde-root", root.volume)
    with pytest.raises(FdeError):
        root.read_all()


def test_what_is_no_record_maps_no_root(root: Root) -> None:
    root.make("ext4")
    root.mapper.remove("fde-root")
    for content in (bytes(4096), b"cvm.fde written\0" + bytes(4080), os.urandom(4096)):
        with open(root.volume.path, "r+b", buffering=0) as device:
            device.write(content)
            os.fsync(device.fileno())
        with pytest.raises(FdeError, match="something else is there"):
            written.map_root(root.mapper, "fde-root", root.volume)
    assert root.mapper.find("fde-root") is None


def test_a_volume_that_is_shorter_than_its_record_is_refused(root: Root) -> None:
    written.store(root.volume, written.room(root.volume) + 8)
    with pytest.raises(Refusal) as caught:
        written.map_root(root.mapper, "fde-root", root.volume)
    assert caught.value.code == "device-shrunk"


def test_a_record_that_was_never_written_is_an_error(root: Root) -> None:
    with pytest.raises(FdeError, match="cannot be read"):
        written.load(root.volume)
