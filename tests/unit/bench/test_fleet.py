# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The fleet's benchmark runs on a fleet of two, and accounts for both sides."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from ansible_collections.cvm.fde.plugins.module_utils.tpm.esys import tss
from ansible_collections.cvm.fde.tests.bench.fleet import compared, table

NEEDED = ("swtpm_setup", "tpm2_checkquote", "openssl")


@pytest.mark.skipif(tss is None, reason="tpm2-pytss is not installed")
def test_a_fleet_of_two_is_measured_in_both_ways(tmp_path: Path) -> None:
    missing = [program for program in NEEDED if shutil.which(program) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")
    found = compared(2, 2, tmp_path, 1)
    for side in ("attest", "by_hand"):
        assert found[side]["control_node_cpu_s"] > 0
        assert found[side]["hosts_cpu_s"] > 0
        assert found[side]["memory_mib"] > found[side]["main_mib"] / 2 > 0
    lines = table(found).splitlines()
    assert lines[0].startswith("2 hosts (1 by hand), 2 forks")
    assert len(lines[2].rsplit(None, 2)) == 3
