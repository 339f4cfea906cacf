# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Writes a ledger to a file of JSON lines, or makes one from it, on the control node."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Optional

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase

from ..plugin_utils.control_node import imported, told
from ..plugin_utils.files import ledger_at, located

ARGUMENTS = {
    "ledger": {"type": "str", "required": True},
    "state": {"type": "str", "choices": ["exported", "imported"], "required": True},
    "path": {"type": "path", "required": True},
    "head": {"type": "str"},
}


class ActionModule(ActionBase):
    """Exports or imports a ledger."""

    _supports_check_mode = True
    _supports_async = False
    _requires_connection = False

    def run(self, tmp: Optional[str] = None, task_vars: Optional[dict[str, Any]] = None) -> dict[str, Any]:
        super().run(tmp, task_vars)
        del tmp
        _validation, args = self.validate_argument_spec(argument_spec=ARGUMENTS)
        exports = args["state"] == "exported"
        if exports and args["head"] is not None:
            raise AnsibleActionFail("head: only an import is compared with it. Leave it out, or audit the ledger first")
        files, where = imported("ledger.transfer_file"), ledger_at(self._loader, args["ledger"])
        path, write = Path(located(self._loader, args["path"])), not self._task.check_mode
        with told():
            if exports:
                found = files.export_file(imported("ledger.ledger").Ledger(where), path, write)
            else:
                head = imported("ledger.chain").Head.parse(args["head"]) if args["head"] else None
                found = files.import_file(where, path, head, write)
        return {"changed": found.changed, "head": str(found.head), "path": str(path)}
