# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab tells a slow guest from a hung one, and its own processes from others."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import asdict
from fnmatch import fnmatch
from pathlib import Path

import pytest
from ansible_collections.cvm.fde.tests.lab import cache, guest
from ansible_collections.cvm.fde.tests.lab.cache import cached, digest
from ansible_collections.cvm.fde.tests.lab.disks import GIB, DataDisk, Disk, attach
from ansible_collections.cvm.fde.tests.lab.images import Layout
from ansible_collections.cvm.fde.tests.lab.machine import Hardware
from ansible_collections.cvm.fde.tests.lab.process import Background, LabError
from ansible_collections.cvm.fde.tests.lab.serial import SerialLog, Silence
from ansible_collections.cvm.fde.tests.lab.trees import copy_tree, variant

WAITING = b"\r\x1b[K[   \x1b[0;31m*\x1b[0;1;31m*\x1b[0m] (1 of 2) Job dev-x.device/start running (25s / no limit)\r\n"


def test_a_guest_that_keeps_talking_is_never_given_up() -> None:
    silence = Silence(patience=10, now=0)
    assert not any(silence.lasts(size=second, now=second) for second in range(100))


def test_a_guest_that_says_nothing_new_for_too_long_is_given_up() -> None:
    silence = Silence(patience=10, now=0)
    assert [silence.lasts(size=7, now=second) for second in (1, 5, 11, 12)] == [False, False, False, True]


def test_a_boot_is_what_was_said_since_it_began(tmp_path: Path) -> None:
    log = SerialLog(tmp_path / "serial.log")
    for said in (b"first", b"second"):
        log.begin_boot()
        with open(log.path, "ab") as file:
            file.write(said)
    assert log.boot() == "second"
    assert log.find("first") is None


def test_systemds_animation_is_no_progress(tmp_path: Path) -> None:
    log = SerialLog(tmp_path / "serial.log")
    log.begin_boot()
    with open(log.path, "ab") as file:
        file.write(b"\x1b[0mStarting\r\n")
        file.flush()
        before = log.boot()
        file.write(WAITING.replace(b"[   ", b"[    ") + WAITING.replace(b"[   ", b"[    "))
    assert log.boot() == before == "Starting\n"


def test_a_process_that_took_over_an_id_is_not_ours(tmp_path: Path) -> None:
    stranger = subprocess.Popen(["sleep", "60"])
    try:
        remembered = Background(tmp_path / "pid")
        remembered.file.write_text(f"{stranger.pid} 1\n")
        remembered.stop()
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_a_process_is_known_while_it_runs(tmp_path: Path) -> None:
    process = Background(tmp_path / "pid")
    process.start(["sleep", "60"], cwd=tmp_path, output=tmp_path / "log")
    assert process.pid is not None and os.path.exists(f"/proc/{process.pid}")
    process.stop()
    assert process.pid is None


def test_a_thing_is_built_once_and_only_the_newest_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "BUILD", tmp_path)
    made: list[str] = []

    def make(at: Path) -> None:
        made.append(at.name)
        at.write_text("content")

    paths = [cached("a thing", "thing.raw", recipe, make, keep=2) for recipe in ("one", "two", "two", "three")]
    assert len(made) == 3
    assert [path.exists() for path in paths] == [False, True, True, True]


def test_what_was_not_finished_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "BUILD", tmp_path)

    def fail(at: Path) -> None:
        at.write_text("half")
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError):
        cached("a thing", "thing", "one", fail)
    assert cached("a thing", "thing", "one", lambda at: at.mkdir() or None).is_dir()


def test_a_recipe_changes_with_the_name_mode_and_content_of_its_files(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("content")
    seen = [digest(tmp_path)]
    file.write_text("other")
    seen.append(digest(tmp_path))
    file.chmod(0o755)
    seen.append(digest(tmp_path))
    file.rename(tmp_path / "elsewhere")
    seen.append(digest(tmp_path))
    assert len(set(seen)) == 4


@pytest.mark.parametrize("interface", ["virtio", "nvme", "scsi"])
@pytest.mark.parametrize("sector", [512, 4096])
def test_a_disk_is_attached_as_it_was_asked_for(interface: str, sector: int) -> None:
    words = [str(word) for word in attach([(Disk(GIB), "disk.raw"), (Disk(GIB, interface, sector, "one"), "one.raw")])]
    (device,) = [word for word in words if "serial=one" in word]
    assert device.startswith({"virtio": "virtio-blk", "nvme": "nvme,", "scsi": "scsi-hd"}[interface])
    assert f"logical_block_size={sector}" in device
    assert ("virtio-scsi-pci,id=scsi" in words) == (interface == "scsi")
    assert [word for word in words if "bootindex" in word] == [word for word in words if "drive=disk0" in word]


def test_a_disk_is_described_by_one_word() -> None:
    assert DataDisk.parse("2G") == DataDisk(2 * GIB)
    described = DataDisk.parse("512M,serial=a-1,interface=nvme,sector=4096")
    assert described == DataDisk(GIB // 2, "nvme", 4096, "a-1")
    assert described.by_id == "/dev/disk/by-id/nvme-QEMU_NVMe_Ctrl_a-1"


@pytest.mark.parametrize(
    "text", ["", "G", "2", "2G,", "2G,colour=red", "2G,sector=1024", "2G,interface=ide", "2G,serial=a/b"]
)
def test_what_is_no_disk_is_refused_by_a_sentence(text: str) -> None:
    with pytest.raises(LabError, match="disk|serial number"):
        DataDisk.parse(text)


def test_guests_of_other_states_of_the_lab_are_still_guests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guest, "GUESTS", tmp_path)
    for name, content in (
        ("older", '{"cpus": 1, "memory": 512, "port": 7}'),
        ("newer", '{"port": 8, "colour": "red"}'),
        ("broken", "{"),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "guest.json").write_text(content)
    assert [each.name for each in guest.guests()] == ["broken", "newer", "older"]
    assert guest.Guest("older").hardware == Hardware(1, 512, 7)
    assert guest.Guest("newer").hardware == Hardware(port=8)
    with pytest.raises(LabError, match="not readable"):
        assert guest.Guest("broken").hardware


def test_what_a_guest_is_made_of_is_remembered(tmp_path: Path) -> None:
    hardware = Hardware(root=Disk(GIB, "nvme", 4096, "root"), disks=(DataDisk(GIB, "scsi", 512, "one"),), port=9)
    assert Hardware.read(json.loads(json.dumps(asdict(hardware)))) == hardware


def test_a_variant_of_what_is_built_never_pushes_out_another_one() -> None:
    names = [
        variant("sealed", *words) for words in (("forky",), ("trixie",), ("forky", "overlay"), ("trixie", "overlay"))
    ]
    assert names == ["sealed", "trixie-sealed", "overlay-sealed", "trixie-overlay-sealed"]
    assert not [(a, b) for a in names for b in names if a != b and fnmatch(f"{a}-0123", f"{b}-*")]


@pytest.mark.parametrize("sector", [512, 4096])
def test_partitions_begin_and_end_at_sectors_of_the_disk(sector: int) -> None:
    layout = Layout(sector)
    assert layout.root_start % sector == layout.esp_size % sector == 0
    assert f"sector-size: {sector}\nstart={(1 << 20) // sector}," in layout.table("root", "esp")
    assert layout.esp_size // sector > 65525 + 512, "FAT32 has more clusters"


def test_nothing_is_deleted_that_is_mounted_in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tree/dev/shm").mkdir(parents=True)
    monkeypatch.setattr(cache, "_mount_points", lambda: [Path("/"), tmp_path / "tree/dev"])
    with pytest.raises(LabError, match="tree/dev is mounted in it"):
        cache.remove(tmp_path / "tree")
    assert (tmp_path / "tree/dev/shm").is_dir()
    monkeypatch.setattr(cache, "_mount_points", lambda: [Path("/"), tmp_path])
    cache.remove(tmp_path / "tree")
    assert not (tmp_path / "tree").exists()


def test_a_copy_of_a_linked_tree_is_no_link_to_it(tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "base").symlink_to(tmp_path / "shared")
    copy_tree(tmp_path / "base", tmp_path / "copy")
    (tmp_path / "copy/file").write_text("mine")
    assert not (tmp_path / "shared/file").exists()
