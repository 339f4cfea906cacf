# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How the finished root is announced to udev."""

from __future__ import annotations

from typing import Any, Callable

import pytest
from ansible_collections.cvm.fde.plugins.module_utils.agent import boot, partition
from ansible_collections.cvm.fde.plugins.module_utils.agent.configuration import Configuration, Strategy
from ansible_collections.cvm.fde.plugins.module_utils.agent.machine import PATHS, Machine
from ansible_collections.cvm.fde.plugins.module_utils.runner import Completed


class Udev:
    """Notes what udev is asked; device-mapper has the root as dm-7."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, ...]] = []

    def run(self, argv: Any, **_options: Any) -> Completed:
        self.asked.append(tuple(argv))
        return Completed(tuple(argv), 0, b"", b"")

    def find(self, name: str) -> str:
        return name


def machine(udev: Udev, strategy: Strategy) -> Machine:
    configuration = Configuration(bytes(32), strategy)
    return Machine(udev, configuration, b"", None, (), PATHS)  # type: ignore[arg-type]


@pytest.mark.parametrize("strategy", [Strategy.CLONE, Strategy.COPY])
def test_udev_is_sent_to_the_kernels_node_because_the_link_is_its_own_work(
    strategy: Strategy, monkeypatch: pytest.MonkeyPatch, mapped: Callable[..., None]
) -> None:
    monkeypatch.setattr(partition, "udev_runs", lambda: True)
    mapped("fde-root", 7)
    udev = Udev()
    boot._announce(machine(udev, strategy))
    trigger, wait = udev.asked
    assert trigger == ("udevadm", "trigger", "--action=change", "/dev/dm-7")
    assert wait[:2] == ("udevadm", "wait") and wait[-1] == "/dev/mapper/fde-root"


@pytest.mark.parametrize("strategy", [Strategy.OVERLAY, Strategy.EPHEMERAL])
def test_a_root_that_is_no_device_of_ours_is_not_announced(strategy: Strategy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partition, "udev_runs", lambda: True)
    udev = Udev()
    boot._announce(machine(udev, strategy))
    assert udev.asked == []
