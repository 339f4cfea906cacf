# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The fleet's report as a task of Ansible's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HOSTS = ["web0", "web1"]


def report(folder: Path, *options: str, **arguments: Any) -> str:
    """Report on two hosts that nobody attested, after a task whose result is no attestation's; return what is said."""
    tasks = [
        {"ansible.builtin.debug": {"msg": "no report"}, "register": "said"},
        {"cvm.fde.fleet_report": {"hosts": HOSTS, "require": "nothing", **arguments}, "run_once": True},
    ]
    (folder / "play.json").write_text(json.dumps([{"hosts": "all", "gather_facts": False, "tasks": tasks}]))
    program = Path(sys.executable).with_name("ansible-playbook")
    done = subprocess.run(
        [program, "-i", ",".join(HOSTS) + ",", "play.json", *options],
        cwd=folder,
        env={**os.environ, "ANSIBLE_LOCAL_TEMP": str(folder / "tmp"), "ANSIBLE_HOME": str(folder / "home")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_check_mode_says_that_the_report_would_be_written(tmp_path: Path) -> None:
    path = tmp_path / "reports/report.json"
    assert "changed=1" in report(tmp_path, "--check", path=str(path))
    assert not path.parent.exists()
    assert "changed=1" in report(tmp_path, path=str(path))
    assert [host["verdict"] for host in json.loads(path.read_text())["hosts"]] == ["unknown", "unknown"]
    assert "changed=1" not in report(tmp_path)


@pytest.mark.parametrize("variable", ["said", "nowhere"])
def test_a_host_whose_result_is_no_attestations_is_unknown(tmp_path: Path, variable: str) -> None:
    assert report(tmp_path, variable=variable).count("the host could not be asked") == len(HOSTS)
