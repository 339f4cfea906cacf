# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is told of a device: whether it is blank, whose unfinished work is on it, and what was left set up on it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.cvm.fde.plugins.module_utils.errors import FdeError
from ansible_collections.cvm.fde.plugins.module_utils.luks2.method import Recovery, Tpm2
from ansible_collections.cvm.fde.plugins.module_utils.runner import Completed
from ansible_collections.cvm.fde.plugins.module_utils.volume import strays as found_strays
from ansible_collections.cvm.fde.plugins.module_utils.volume.device import HEAD, SAMPLES, STEP, TAIL, blank, places
from ansible_collections.cvm.fde.plugins.module_utils.volume.erasure import mark, marked
from ansible_collections.cvm.fde.plugins.module_utils.volume.machine import missing, missing_tpm
from ansible_collections.cvm.fde.plugins.module_utils.volume.wanted import Wanted

MIB = 1 << 20
TIB = 1 << 40
UUID = "6a2f0e55-5b7e-4d0e-9d59-1c2f35e7a001"


def sparse(path: Path, size: int, *written: tuple[int, bytes]) -> str:
    with path.open("wb") as file:
        file.truncate(size)
        for at, content in written:
            file.seek(at)
            file.write(content)
    return str(path)


@pytest.mark.parametrize("size", [4096, MIB, MIB + 512, 5 * MIB, 300 * MIB, 321 * MIB + 4096, 10 << 30, TIB, 20 * TIB])
def test_what_is_looked_at_covers_both_ends_and_the_middle(size: int) -> None:
    looked = list(places(size))
    assert all(at >= 0 and at + length <= size and 0 < length <= MIB for at, length in looked)
    ends = [0]
    for at, length in looked:
        # Nothing between two looks is longer than a step.
        assert 0 <= at - ends[-1] < STEP
        ends.append(at + length)
    assert ends[-1] == size
    if size > HEAD + TAIL + SAMPLES * 4096:
        assert len(looked) >= SAMPLES


@pytest.mark.parametrize("at", [0, 700_000, MIB - 1, 63 * MIB, 64 * MIB - 1])
def test_a_single_byte_makes_no_small_device_blank(tmp_path: Path, at: int) -> None:
    assert blank(sparse(tmp_path / "blank", 64 * MIB), 64 * MIB)
    assert not blank(sparse(tmp_path / "disk", 64 * MIB, (at, b"x")), 64 * MIB)


@pytest.mark.parametrize(
    "at", [100 * MIB, HEAD - 4096, HEAD + 12345, TIB // 3, TIB - TAIL - STEP + 1, TIB - TAIL, TIB - 1]
)
def test_data_without_a_name_are_found_anywhere_on_a_large_device(tmp_path: Path, at: int) -> None:
    content = b"x" * min(STEP, TIB - at) if HEAD <= at < TIB - TAIL else b"x"
    assert not blank(sparse(tmp_path / "disk", TIB, (at, content)), TIB)


def test_a_device_that_cannot_be_read_is_not_blank(tmp_path: Path) -> None:
    with pytest.raises(FdeError, match="whether it is blank cannot be read"):
        blank(str(tmp_path), 64 * MIB)


def test_a_mark_names_one_volume_and_nothing_else_is_a_mark() -> None:
    block = mark(UUID)
    assert len(block) == 4096 and marked(block) == UUID and marked(block + b"what follows") == UUID
    for other in (b"", bytes(4096), block[:-1], block[:-1] + b"x", block.replace(b"6a2f", b"6A2F"), b"x" + block[:-1]):
        assert marked(other) is None


def machine_with(sys: Path, node: Path, holders: dict[str, dict[str, str]]) -> None:
    """Make the part of /sys that says what is set up on a device; holders by device, with their names."""
    number = os.stat(node).st_rdev
    below = sys / "dev/block" / f"{os.major(number)}:{os.minor(number)}"
    for device, names in holders.items():
        directory = below if device == "disk" else sys / "class/block" / device
        (directory / "holders").mkdir(parents=True)
        for kernel_name, name in names.items():
            (directory / "holders" / kernel_name).touch()
            if name:
                (sys / "class/block" / kernel_name / "dm").mkdir(parents=True)
                (sys / "class/block" / kernel_name / "dm/name").write_text(name + "\n")


@pytest.mark.parametrize(
    ("holders", "expected"),
    [
        ({}, ()),
        ({"disk": {"dm-0": "data"}}, ()),
        ({"disk": {"dm-0": "data_dif"}, "dm-0": {"dm-1": "data"}}, ()),
        ({"disk": {"dm-0": "data_dif"}}, ("data_dif",)),
        (
            {"disk": {"dm-0": "temporary-cryptsetup-41_dif"}, "dm-0": {"dm-1": "temporary-cryptsetup-41"}},
            ("temporary-cryptsetup-41", "temporary-cryptsetup-41_dif"),
        ),
        ({"disk": {"dm-0": f"temporary-cryptsetup-{UUID}_dif"}}, (f"temporary-cryptsetup-{UUID}_dif",)),
        (
            # The upper one has no table yet, so it is no holder of anything.
            {
                "disk": {"dm-0": f"temporary-cryptsetup-{UUID}_dif"},
                "elsewhere": {"dm-1": f"temporary-cryptsetup-{UUID}", "dm-2": "somebody"},
            },
            (f"temporary-cryptsetup-{UUID}", f"temporary-cryptsetup-{UUID}_dif"),
        ),
        ({"disk": {"dm-0": "temporary-cryptsetup-41_dif"}, "dm-0": {"dm-1": "somebody"}}, ()),
        ({"disk": {"dm-0": "temporary-cryptsetup-"}}, ()),
        ({"disk": {"dm-0": "other_dif"}}, ()),
        ({"disk": {"md127": ""}}, ()),
        ({"disk": {"dm-0": "data_dif", "md127": ""}}, ()),
    ],
)
def test_only_what_cryptsetup_leaves_behind_is_a_stray(
    tmp_path: Path, holders: dict[str, dict[str, str]], expected: tuple[str, ...]
) -> None:
    node = tmp_path / "disk"
    node.touch()
    machine_with(tmp_path / "sys", node, holders)
    assert found_strays.strays("data", str(node), tmp_path / "sys") == expected


@pytest.mark.parametrize(
    ("device", "missing"),
    [
        ("auto", "tpmrm0"),
        ("/dev/tpmrm1", "tpmrm1"),
        ("device:/dev/tpmrm1", "tpmrm1"),
        ("device", "tpmrm0"),
        ("device:", "tpmrm0"),
        ("swtpm:path=/run/tpm", None),
    ],
)
def test_a_tpm_that_is_not_there_is_missed_by_its_node(tmp_path: Path, device: str, missing: str | None) -> None:
    assert missing_tpm(device, tmp_path) == (None if missing is None else str(tmp_path / missing))
    for name in ("tpmrm0", "tpmrm1"):
        (tmp_path / name).touch()
    assert missing_tpm(device, tmp_path) is None


@dataclass(frozen=True)
class Programs:
    """The programs of a machine: all are there, and systemd-cryptenroll says what version it is."""

    told: bytes

    def find(self, name: str) -> str | None:
        return f"/usr/bin/{name}"

    def run(self, argv: Sequence[str], **_options: Any) -> Completed:
        assert list(argv) == ["systemd-cryptenroll", "--version"]
        return Completed(tuple(argv), 0, self.told, b"")


@pytest.mark.parametrize(
    ("told", "lacks"),
    [
        (b"systemd 252 (252-55.el9_7.7)\n+PAM +AUDIT\n", "systemd 256 (it has 252)"),
        (b"systemd 255 (255.4-1ubuntu8)\n", "systemd 256 (it has 255)"),
        (b"", "systemd 256 (it has 0)"),
        (b"systemd 256~rc1 (256~rc1-1)\n", None),
        (b"systemd 257 (257-13.el10)\n", None),
    ],
)
def test_a_systemd_that_cannot_enrol_what_is_wanted_is_missed_before_anything_is_done(
    tmp_path: Path, told: bytes, lacks: str | None
) -> None:
    listing = tmp_path / os.uname().release / "modules.builtin"
    listing.parent.mkdir()
    listing.write_text("kernel/drivers/md/dm-crypt.ko\nkernel/drivers/md/dm-integrity.ko\n")
    volume = Wanted("data", "/dev/vdb", unlock=(Tpm2((7,)),))
    assert missing(Programs(told), volume, tmp_path) == (() if lacks is None else (lacks,))
    # Nothing else is asked of it.
    assert missing(Programs(told), replace(volume, unlock=(Recovery(),)), tmp_path) == ()
