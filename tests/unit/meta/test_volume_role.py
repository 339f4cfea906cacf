# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the role ``volume`` installs on which system."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from ansible_collections.cvm.fde.tests.lab.ansible import SETTINGS

ROLE = Path(__file__).resolve().parents[3] / "roles/volume"
NAMES = yaml.safe_load((ROLE / "vars/main.yml").read_text())["volume_package_names"]
OPTIONS = yaml.safe_load((ROLE / "meta/argument_specs.yml").read_text())["argument_specs"]["main"]["options"]


@pytest.mark.parametrize("family", NAMES)
def test_a_family_has_the_packages_of_every_file_system(family: str) -> None:
    kinds = OPTIONS["volume_list"]["options"]["file_system"]["choices"]
    assert set(NAMES[family]) == {"every", "tpm2", *kinds}
    listed = {kind: NAMES[family][kind] for kind in NAMES[family] if kind != "none"}
    assert all(names and all(isinstance(name, str) for name in names) for names in listed.values())
    assert NAMES[family]["none"] == []


def test_an_unknown_family_is_told_what_to_install(tmp_path: Path) -> None:
    volume = {"name": "data", "device": "/dev/disk/by-id/none"}
    tasks = [
        {"ansible.builtin.set_fact": {"os_family": "Suse", "cacheable": True}},
        {"ansible.builtin.include_role": {"name": "cvm.fde.volume"}, "vars": {"fde_volumes": [volume]}},
    ]
    play = tmp_path / "play.yml"
    play.write_text(json.dumps([{"hosts": "localhost", "connection": "local", "gather_facts": False, "tasks": tasks}]))
    program = str(Path(sys.executable).with_name("ansible-playbook"))
    environment = {**os.environ, **SETTINGS}
    done = subprocess.run([program, str(play)], env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert "known for Debian and RedHat" in done.stdout and "set volume_packages to false" in " ".join(
        done.stdout.split()
    )
    assert "Make, open and mount" not in done.stdout
