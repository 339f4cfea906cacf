# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs the collection's playbooks from the checkout."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Mapping, Optional, Sequence

from .cache import BUILD
from .process import LabError

SETTINGS = {
    "ANSIBLE_COLLECTIONS_PATH": str(BUILD / "collections"),
    "ANSIBLE_HOST_KEY_CHECKING": "False",
    "ANSIBLE_LOCALHOST_WARNING": "False",
    "ANSIBLE_INVENTORY_UNPARSED_WARNING": "False",
    "ANSIBLE_NOCOWS": "1",
    "ANSIBLE_PIPELINING": "True",
    "ANSIBLE_SSH_ARGS": "-C -o ControlMaster=auto -o ControlPersist=60s",
    "ANSIBLE_TIMEOUT": "60",
    "LC_ALL": "C.UTF-8",
}
#: How the machine that runs the lab is itself a host of an inventory.
LOCAL = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}


def inventory(path: Path, groups: Mapping[str, Mapping[str, Mapping[str, object]]]) -> Path:
    """Write an inventory: group, host, variables of the host."""
    content = {group: {"hosts": dict(hosts)} for group, hosts in groups.items()}
    path.write_text(json.dumps(content, indent=1))
    return path


def playbook(
    name: str,
    hosts: Path,
    variables: Optional[Mapping[str, object]] = None,
    *,
    log: Optional[Path] = None,
    options: Sequence[str] = (),
    env: Optional[Mapping[str, str]] = None,
    collections: Optional[Path] = None,
) -> None:
    """Run a playbook (a path, or a name of the collection) to its end; raise ``LabError`` unless it succeeds.

    What it says goes to the terminal, or to the file ``log``; then a failure quotes its last lines. ``env`` is what
    it may look up besides this program's environment, ``collections`` a folder with more of them.
    """
    words = [str(Path(sys.executable).with_name("ansible-playbook")), "-i", str(hosts), *options, name]
    words += ["-e", json.dumps(dict(variables or {}))]
    environment = {**os.environ, **SETTINGS, **(env or {})}
    if collections is not None:
        environment["ANSIBLE_COLLECTIONS_PATH"] += f":{collections}"
    if log is None:
        status = subprocess.call(words, env=environment, stdin=subprocess.DEVNULL)
        said = ""
    else:
        with open(log, "wb") as sink:
            status = subprocess.call(words, env=environment, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink)
        said = "\n" + "\n".join(log.read_text(errors="replace").splitlines()[-40:]) + f"\n(all of it: {log})"
    if status:
        raise LabError(f"the playbook {name} ended with status {status}{said}")
