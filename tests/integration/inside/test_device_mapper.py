# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The guest is what the other tests rely on."""

from __future__ import annotations

import os
import subprocess


def test_the_guest_is_root_with_the_targets_we_build_on() -> None:
    targets = subprocess.run(["dmsetup", "targets"], check=True, capture_output=True, text=True).stdout
    names = {line.split()[0] for line in targets.splitlines()}
    assert os.geteuid() == 0
    assert {"crypt", "integrity", "verity", "clone", "linear", "zero", "flakey", "snapshot"} <= names
