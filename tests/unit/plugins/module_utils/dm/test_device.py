# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""dmsetup is never asked to wait for udev, and a device is never left suspended."""

from __future__ import annotations

import pytest
from ansible_collections.cvm.fde.plugins.module_utils.dm.control import DEVICE_SUSPEND, TABLE_CLEAR, Control, request
from ansible_collections.cvm.fde.plugins.module_utils.dm.device import Device, DeviceMapper
from ansible_collections.cvm.fde.plugins.module_utils.dm.table import TableError, zero
from ansible_collections.cvm.fde.plugins.module_utils.errors import FdeError
from ansible_collections.cvm.fde.plugins.module_utils.runner import CommandError, Completed


class Dmsetup:
    """Answers as dmsetup does, and fails at one command where it is told to."""

    def __init__(self, answers=None, fails=""):
        self.answers = answers or {}
        self.fails = fails
        self.calls = []

    def run(self, argv, *, stdin=None, pass_fds=(), env=None, ok=(0,)):
        self.calls.append((argv[1], *argv[3:], *([stdin.decode()] if stdin else [])))
        assert argv[0] == "dmsetup"
        assert argv[2] == "--noudevsync"
        status = 1 if argv[1] == self.fails else 0
        if status:
            self.fails = ""
            raise CommandError(Completed(tuple(argv), status, b"", b"refused"))
        return Completed(tuple(argv), status, self.answers.get(argv[1], b""), b"")

    def find(self, name):
        return name


def test_a_device_is_found_by_its_name(mapped):
    mapped("root", 0, "CRYPT-VERITY-1", 2048, read_only=True)
    mapped("fde-root", 5, suspended=True)
    mapper = DeviceMapper(Dmsetup())
    assert mapper.find("root") == Device("root", 254, 0, "CRYPT-VERITY-1", 2048, False, True)
    assert mapper.get("fde-root") == Device("fde-root", 254, 5, "", 0, True, False)
    assert (mapper.get("fde-root").path, mapper.get("fde-root").number) == ("/dev/dm-5", "254:5")


def test_a_device_that_goes_away_while_it_is_looked_at_is_none(mapped, tmp_path):
    mapped("root", 0)
    (tmp_path / "sys/block/dm-0/dm/uuid").unlink()
    assert DeviceMapper(Dmsetup()).find("root") is None


def test_an_absent_device_is_none_or_an_error(mapped):
    mapped("other", 0)
    mapper = DeviceMapper(Dmsetup())
    assert mapper.find("root") is None
    with pytest.raises(FdeError, match="no such"):
        mapper.get("root")


def test_a_table_travels_by_standard_input(mapped):
    mapped("root", 0)
    dmsetup = Dmsetup()
    DeviceMapper(dmsetup).create("root", zero(8), uuid="CVM-1", read_only=True)
    assert dmsetup.calls == [("create", "--uuid", "CVM-1", "--readonly", "root", "0 8 zero\n")]


class Kernel:
    """Device-mapper's control node; ``refuses`` is how many calls fail from the first on."""

    def __init__(self, refuses: int = 0) -> None:
        self.calls: list[tuple[int, str]] = []
        self._refuses = refuses

    def __call__(self, descriptor: int, number: int, request: bytearray) -> int:
        self.calls.append((number, bytes(request[48:176]).rstrip(b"\0").decode()))
        if len(self.calls) <= self._refuses:
            raise OSError(22, "Invalid argument")
        return 0


def test_a_swap_starts_one_program_before_the_device_is_suspended_and_none_after(tmp_path):
    node = tmp_path / "control"
    node.touch()
    dmsetup, kernel = Dmsetup(), Kernel()
    DeviceMapper(dmsetup, Control(str(node), kernel)).swap("root", zero(8))
    assert dmsetup.calls == [("load", "root", "0 8 zero\n")]
    assert kernel.calls == [(DEVICE_SUSPEND, "root")]


def test_a_swap_that_the_kernel_refuses_lets_the_old_table_go_on(tmp_path):
    node = tmp_path / "control"
    node.touch()
    kernel = Kernel(refuses=1)
    with pytest.raises(FdeError, match="Invalid argument"):
        DeviceMapper(Dmsetup(), Control(str(node), kernel)).swap("root", zero(8))
    assert [number for number, _name in kernel.calls] == [DEVICE_SUSPEND, TABLE_CLEAR, DEVICE_SUSPEND]


def test_the_numbers_are_those_of_the_kernels_header():
    # As strace shows them of dmsetup.
    assert (DEVICE_SUSPEND, TABLE_CLEAR) == (0xC138FD06, 0xC138FD0A)
    assert len(request("x")) == 312


def test_a_table_that_the_kernel_refuses_never_suspends_anything():
    dmsetup = Dmsetup(fails="load")
    with pytest.raises(CommandError):
        DeviceMapper(dmsetup).swap("root", zero(8))
    assert [call[0] for call in dmsetup.calls] == ["load"]


def test_a_status_is_that_of_the_only_target():
    assert DeviceMapper(Dmsetup({"status": b"0 8 clone 8 1/2 rw \n"})).status("root", "clone") == "8 1/2 rw"
    with pytest.raises(FdeError, match="0 targets"):
        DeviceMapper(Dmsetup({"status": b""})).status("root", "clone")
    with pytest.raises(TableError):
        DeviceMapper(Dmsetup({"status": b"0 8 linear x\n"})).status("root", "clone")


def test_the_targets_of_the_kernel_have_versions():
    mapper = DeviceMapper(Dmsetup({"targets": b"clone            v1.0.0\ncrypt            v1.24.0\n"}))
    assert mapper.targets() == {"clone": (1, 0, 0), "crypt": (1, 24, 0)}
