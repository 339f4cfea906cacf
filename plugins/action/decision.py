# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Records what an operator decided, on the control node."""

from __future__ import annotations

from typing import Any, Optional

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase

from ..module_utils.agent.machine import VOLUME
from ..plugin_utils.control_node import imported, told

ARGUMENTS = {
    "ledger": {"type": "str", "required": True},
    "decision": {"type": "str", "choices": ["approve-identity", "renew-volume", "retire-host"], "required": True},
    "host": {"type": "str"},
    "key": {"type": "str", "no_log": False},
    "operator": {"type": "str", "required": True},
    "reason": {"type": "str", "required": True},
}


class ActionModule(ActionBase):
    """Records a decision about one host."""

    _supports_check_mode = True
    _supports_async = False
    _requires_connection = False

    def run(self, tmp: Optional[str] = None, task_vars: Optional[dict[str, Any]] = None) -> dict[str, Any]:
        super().run(tmp, task_vars)
        del tmp
        spec = {"argument_spec": ARGUMENTS, "required_if": [("decision", "approve-identity", ("key",))]}
        _validation, args = self.validate_argument_spec(**spec)
        host = str(args["host"] or (task_vars or {}).get("inventory_hostname"))
        if args["key"] and args["decision"] != "approve-identity":
            raise AnsibleActionFail("key: only the approval of an identity is about a key. Leave it out")
        records, where = imported("ledger.records"), str(args["ledger"])
        with told():
            ledger = imported("ledger.ledger").Ledger(where if "://" in where else self._loader.path_dwim(where))
            action = records.Action(args["decision"])
            decision = records.Decision(
                host,
                action,
                str(args["operator"]),
                str(args["reason"]),
                key=str(args["key"]).lower() if args["key"] else None,
                volume=VOLUME if action is records.Action.RENEW_VOLUME else None,
            )
            changed = not ledger.stands(decision)
            if changed and self._task.check_mode:
                ledger.check(decision)
            elif changed:
                ledger.decide(decision)
            head = str(ledger.head())
        return {"changed": changed, "host": host, "head": head, "conflicts": _conflicts(ledger, host)}


def _conflicts(ledger: Any, host: str) -> list[str]:
    with told():
        return [str(conflict) for conflict in ledger.conflicts(host)]
