# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The guest is what the other tests rely on."""

from __future__ import annotations

import os
import subprocess
import threading

from ansible_collections.cvm.fde.plugins.module_utils.agent.process import SubprocessRunner
from ansible_collections.cvm.fde.plugins.module_utils.dm.device import DeviceMapper
from ansible_collections.cvm.fde.plugins.module_utils.dm.table import Other


def test_the_guest_is_root_with_the_targets_we_build_on() -> None:
    targets = subprocess.run(["dmsetup", "targets"], check=True, capture_output=True, text=True).stdout
    names = {line.split()[0] for line in targets.splitlines()}
    assert os.geteuid() == 0
    assert {"crypt", "integrity", "verity", "clone", "linear", "zero", "flakey", "snapshot"} <= names


def test_a_device_that_somebody_looks_at_for_a_moment_is_removed(
    mapper: DeviceMapper, runner: SubprocessRunner
) -> None:
    """As udev does with every device that was just made."""
    looking = os.open(mapper.create("looked-at", (Other(0, 8, "zero", ""),)).path, os.O_RDONLY)
    assert runner.run(["dmsetup", "remove", "--noudevsync", "looked-at"], ok=()).status != 0, "it is not busy"
    look = threading.Timer(1, os.close, (looking,))
    look.start()
    mapper.remove("looked-at")
    look.join()
    assert mapper.find("looked-at") is None
