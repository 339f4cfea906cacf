# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the boot reads: lines of others stay, our own are there once, and pins survive what interrupts their writing."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Optional

import pytest
from ansible_collections.cvm.fde.plugins.module_utils.agent.process import SubprocessRunner
from ansible_collections.cvm.fde.plugins.module_utils.errors import FdeError
from ansible_collections.cvm.fde.plugins.module_utils.runner import CommandError, Completed
from ansible_collections.cvm.fde.plugins.module_utils.volume import persistence
from ansible_collections.cvm.fde.plugins.module_utils.volume import pin as pins
from ansible_collections.cvm.fde.plugins.module_utils.volume.device import is_stable
from ansible_collections.cvm.fde.plugins.module_utils.volume.file_system import prepared_places
from ansible_collections.cvm.fde.plugins.module_utils.volume.machine import kernel_has
from ansible_collections.cvm.fde.plugins.module_utils.volume.opening import options
from ansible_collections.cvm.fde.plugins.module_utils.volume.persistence import (
    BootEntry,
    crypttab_line,
    escape_path,
    fstab_line,
    wanted_files,
)
from ansible_collections.cvm.fde.plugins.module_utils.volume.pin import Escrow, Pin, PinState
from ansible_collections.cvm.fde.plugins.module_utils.volume.places import Places
from ansible_collections.cvm.fde.plugins.module_utils.volume.wanted import FileSystemType, Mount

UUID = "6a2f0e55-5b7e-4d0e-9d59-1c2f35e7a001"
DEVICE = "/dev/disk/by-id/virtio-DATA1"
OPTIONS = options("data", tpm2=True, tpm2_device="auto", key_id="aa" * 32, nofail=True)
ENTRY = BootEntry("data", DEVICE, OPTIONS, "ext4", Mount("/srv/data", ("noatime",)))


@pytest.fixture
def root(tmp_path: Path) -> Places:
    (tmp_path / "etc").mkdir()
    return Places(tmp_path)


def test_the_lines_are_those_of_systemds_own_tables() -> None:
    assert crypttab_line(ENTRY) == (
        f"data {DEVICE} - luks,header=/run/cvm-fde/volumes/data.header,tpm2-device=auto,headless=yes,tries=1,"
        f"fixate-volume-key={'aa' * 32},nofail\n"
    )
    assert fstab_line(ENTRY) == (
        "/dev/mapper/data /srv/data ext4 noatime,nofail,x-systemd.requires=systemd-cryptsetup@data.service 0 2\n"
    )
    assert fstab_line(replace(ENTRY, mount=None)) is None
    asked = options("data", tpm2=False, tpm2_device="auto", key_id=None)
    assert asked == ("luks", "header=/run/cvm-fde/volumes/data.header")


@pytest.mark.parametrize("value", ["a,b", "a b", "", "a\nb", 'a"b'])
def test_an_option_cannot_become_two(value: str) -> None:
    with pytest.raises(FdeError):
        options("data", tpm2=True, tpm2_device=value, key_id=None)


FSTAB = "# static\nUUID=1 / ext4 defaults 0 1\n/dev/mapper/other /other xfs defaults 0 0"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (None, "{line}"),
        ("", "{line}"),
        (FSTAB, FSTAB + "\n{line}"),
        (FSTAB + "\n/dev/mapper/data /old ext4 defaults 0 0\n#end\n", FSTAB + "\n{line}#end\n"),
        ("/dev/mapper/data /a x\n/dev/mapper/data /b x\n", "{line}"),
    ],
)
def test_lines_of_others_stay_and_ours_is_there_once(root: Places, before: Optional[str], after: str) -> None:
    if before is not None:
        root.fstab.write_text(before)
    files = wanted_files(root, "data", ENTRY)
    files.write(root)
    assert root.fstab.read_text() == after.format(line=fstab_line(ENTRY))
    assert wanted_files(root, "data", ENTRY).differing(root) == ()
    wanted_files(root, "data", None).write(root)
    assert "data" not in root.fstab.read_text() and "data" not in root.crypttab.read_text()
    assert wanted_files(root, "data", None).differing(root) == ()


def test_a_line_of_somebody_else_for_the_same_name_is_an_error(root: Places) -> None:
    root.crypttab.write_text("data /dev/sdb none luks\n")
    with pytest.raises(FdeError, match="not this collection's"):
        wanted_files(root, "data", ENTRY)


@pytest.mark.parametrize(
    "written", ["/srv/data", "/srv/data/", "//srv//data", "/srv/./data", "/srv/x/../data", r"/srv/d\141ta"]
)
def test_a_mount_point_of_somebody_else_is_an_error(root: Places, written: str) -> None:
    root.fstab.write_text(f"/dev/sdb1 {written} ext4 defaults 0 0\n")
    with pytest.raises(FdeError, match="it mounts /dev/sdb1 at /srv/data"):
        wanted_files(root, "data", ENTRY)


def test_the_units_run_the_checks_before_and_after_the_opening(root: Places) -> None:
    wanted_files(root, "data", ENTRY).write(root)
    unit = (root.units / "cvm-fde-header@.service").read_text()
    assert "Before=systemd-cryptsetup@%i.service" in unit and "agent.pyz volume header %i" in unit
    drop_in = (root.units / "systemd-cryptsetup@data.service.d/cvm-fde.conf").read_text()
    assert "Requires=cvm-fde-header@data.service" in drop_in and "agent.pyz volume check data" in drop_in
    device = (root.units / "cvm-fde-header@data.service.d/device.conf").read_text()
    assert "BindsTo=dev-disk-by\\x2did-virtio\\x2dDATA1.device" in device


def test_a_policy_that_lies_on_another_file_system_is_mounted_before_the_opening(root: Places) -> None:
    wanted_files(root, "data", replace(ENTRY, reads=("/var/lib/systemd/pcrlock.json",))).write(root)
    drop_in = (root.units / "systemd-cryptsetup@data.service.d/cvm-fde.conf").read_text()
    unit, _, service = drop_in.partition("[Service]")
    assert "RequiresMountsFor=/var/lib/systemd/pcrlock.json\n" in unit and service
    wanted_files(root, "data", ENTRY).write(root)
    assert "RequiresMountsFor" not in (root.units / "systemd-cryptsetup@data.service.d/cvm-fde.conf").read_text()


@pytest.mark.parametrize(
    ("path", "escaped"),
    [("/", "-"), ("/dev//sda/", "dev-sda"), ("/.x/y", "\\x2ex-y"), ("/a.b/é", "a.b-\\xc3\\xa9")],
)
def test_paths_become_names_of_units(path: str, escaped: str) -> None:
    assert escape_path(path) == escaped


PIN = Pin("data", UUID, DEVICE, PinState.READY, "authenticated", True, "ext4", 1 << 30, ("SERIAL",), "aa", "bb", "cc")


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"escrow": Escrow("dd", "ee", "ff")},
        {"escrow": Escrow("dd", "ee", "ff"), "pending": Escrow("1", "2", "3", ("4", "5"))},
    ],
)
def test_what_is_known_of_recovery_keys_comes_back_as_it_was(tmp_path: Path, keys: dict[str, Escrow]) -> None:
    pins.save(tmp_path / "pin", PIN.having(**keys))
    assert pins.load(tmp_path / "pin") == PIN.having(**keys)


def test_a_pin_of_an_older_version_knows_no_device_and_no_keyslot(tmp_path: Path) -> None:
    path = tmp_path / "pin"
    pins.save(path, PIN)
    older = json.loads(path.read_text())
    del older["identity"], older["pending"]
    path.write_text(json.dumps({**older, "escrow": {"digest": "dd", "confirmed": True}}))
    assert pins.load(path) == PIN.having(identity=(), escrow=Escrow("dd"))


def test_a_pin_comes_back_as_it_was_and_only_root_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "new" / "data.json"
    assert pins.load(path) is None
    pins.save(path, PIN)
    assert pins.load(path) == PIN and PIN.digests == ("aa", "bb")
    assert path.stat().st_mode & 0o777 == 0o600
    pins.forget(path)
    pins.forget(path)
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"{}", b"null", b'{"version": 2}', b'{"version": 1, "escrow": null, "state": "open"}', b"\xff"],
)
def test_a_pin_that_cannot_be_understood_is_an_error_and_not_an_absent_one(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "data.json"
    path.write_bytes(content)
    with pytest.raises(FdeError, match="is not a volume's state"):
        pins.load(path)


def test_an_unknown_field_of_a_pin_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "data.json"
    pins.save(path, PIN)
    path.write_text(json.dumps({**json.loads(path.read_text()), "more": 1}))
    with pytest.raises(FdeError):
        pins.load(path)


def test_only_names_of_udev_are_stable() -> None:
    assert is_stable("/dev/disk/by-id/x") and is_stable("/dev/mapper/vg-lv")
    assert not is_stable("/dev/sdb") and not is_stable("/dev/vdb1")


@pytest.mark.parametrize("kind", FileSystemType)
@pytest.mark.parametrize("size", [32 << 20, (404 << 20) + 4096, 1 << 40])
def test_what_is_prepared_is_aligned_inside_the_volume_and_little(kind: FileSystemType, size: int) -> None:
    prepared = list(prepared_places(size, kind))
    assert all(at % 4096 == 0 and length % 4096 == 0 and 0 <= at <= size - length for at, length in prepared)
    assert sum(length for _at, length in prepared) <= (8 << 20) + size // 32768 + 4096
    # libblkid looks for a second LUKS2 header there, and gives up on everything where it cannot read.
    assert any(at <= 4 << 20 < at + length for at, length in prepared)


def test_parts_of_the_kernel_are_found_however_they_are_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = tmp_path / os.uname().release
    directory.mkdir()
    assert not kernel_has("dm-nothing", tmp_path)
    (directory / "modules.dep").write_text("kernel/drivers/md/dm-nothing.ko.xz: kernel/a.ko\n")
    (directory / "modules.builtin").write_text("kernel/crypto/something128.ko\n")
    assert kernel_has("dm-nothing", tmp_path) and kernel_has("something128", tmp_path)


class BusySystemd(SubprocessRunner):
    """systemctl of a systemd that reads its tables for others, so many times; the genuine one has no such switch."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.left = times

    def run(self, argv: Sequence[str], **options: Any) -> Completed:
        assert argv == ["systemctl", "daemon-reload"]
        self.left -= 1
        if self.left < 0:
            return Completed(tuple(argv), 0, b"", b"")
        raise CommandError(Completed(tuple(argv), 1, b"", b"Reload daemon failed: Transport endpoint is not connected"))


def test_systemd_is_asked_again_when_it_drops_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(persistence, "_PAUSE", 0.0)
    systemd = BusySystemd(4)
    persistence.reload(systemd)
    assert systemd.left == -1
    with pytest.raises(CommandError, match="Transport endpoint is not connected"):
        persistence.reload(BusySystemd(5))
