# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The control node's half of image_prepare: it builds the boot agent and brings it to the target."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Optional

from ansible.plugins.action import ActionBase

from ..module_utils.agent import archive
from ..module_utils.agent.configuration import Strategy

COLLECTION = Path(__file__).resolve().parents[2]
#: Directories of the role and where their files go.
PLACES = {
    "dracut/90cvm-fde": "usr/lib/dracut/modules.d/90cvm-fde",
    "dracut/conf": "etc/dracut.conf.d",
    "systemd": "usr/lib/systemd/system",
}

ARGUMENTS = {
    "strategy": {"type": "str", "choices": [strategy.value for strategy in Strategy], "default": "clone"},
    "root": {"type": "path", "default": "/"},
}


def payload(collection: Path = COLLECTION) -> bytes:
    """Return all that is installed, as one archive whose names are the paths on the target."""
    files = {"usr/lib/cvm-fde/agent.pyz": archive.build(collection / "plugins/module_utils")}
    for source, destination in PLACES.items():
        directory = collection / "roles/image/files" / source
        for path in sorted(directory.rglob("*")):
            if path.is_file():
                files[f"{destination}/{path.relative_to(directory)}"] = path.read_bytes()
    return archive.pack(files)


class ActionModule(ActionBase):
    """Builds the payload, transfers it and runs the module with it."""

    _supports_check_mode = True
    _supports_async = False
    TRANSFERS_FILES = True

    def run(self, tmp: Optional[str] = None, task_vars: Optional[dict[str, Any]] = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        del tmp
        self.validate_argument_spec(argument_spec=ARGUMENTS)
        self._make_tmp_path()
        try:
            remote = self._connection._shell.join_path(self._connection._shell.tmpdir, "payload.zip")
            self._transfer_data(remote, payload())
            self._fixup_perms2((self._connection._shell.tmpdir, remote))
            arguments = {**self._task.args, "payload": remote}
            result.update(self._execute_module("cvm.fde.image_prepare", arguments, task_vars=task_vars))
        finally:
            self._remove_tmp_path(self._connection._shell.tmpdir)
        return result
