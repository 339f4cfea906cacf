# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a first boot costs is judged by the budgets."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.cvm.fde.tests.bench.boot import budget, consumed

QEMU = {
    "first_boot": {"cpu": 1.01, "memory": 64.0, "kernel": 2.0, "initrd": 13.0, "wall": 9.0},
    "without_agent": {"kernel": 1.5, "initrd": 3.4},
    "initrd": {"with": 30.0, "without": 19.9, "agent": 10.1},
}


def met(result: dict[str, Any]) -> dict[str, bool]:
    return {name: one["met"] for name, one in budget(result).items()}


def test_a_budget_is_met_up_to_its_limit() -> None:
    assert met(QEMU) == {"cpu": False, "memory": True, "initrd": False, "added": False}


def test_the_added_time_is_what_the_boot_takes_more_until_its_root_is_usable() -> None:
    found = budget(QEMU)["added"]
    assert (found["limit"], found["measured"]) == (10.0, 10.1)


def test_what_only_whole_boots_show_is_not_measured_where_nothing_but_the_agent_runs() -> None:
    found = budget({"first_boot": QEMU["first_boot"]})
    assert {name: one["measured"] for name, one in found.items()} == {
        "cpu": 1.01,
        "memory": 64.0,
        "initrd": None,
        "added": None,
    }
    assert [found[name]["met"] for name in ("initrd", "added")] == [None, None]


def test_what_the_agent_used_is_read_from_systemds_own_words() -> None:
    said = "cvm-fde-boot.service: Consumed {} CPU time over 1min 8.542s wall clock time, 48.5M memory peak."
    assert consumed(said.format("1min 24.321s")) == {"cpu": 84.32, "memory": 50.9}
    assert consumed(said.format("940ms")) == {"cpu": 0.94, "memory": 50.9}
    with pytest.raises(ValueError, match="does not say"):
        consumed("")
