# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Records what an operator decided, on the control node."""

from __future__ import annotations

from typing import Any, Optional

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from cryptography.hazmat.primitives import hashes

from ..module_utils.agent.machine import VOLUME
from ..plugin_utils.control_node import authorities_of, imported, told
from ..plugin_utils.files import ledger_at, reader

ARGUMENTS = {
    "ledger": {"type": "str", "required": True},
    "decision": {
        "type": "str",
        "choices": ["approve-identity", "renew-volume", "retire-host", "escrow-key"],
        "required": True,
    },
    "host": {"type": "str"},
    "key": {"type": "str", "no_log": False},
    "operator": {"type": "str", "required": True},
    "reason": {"type": "str", "required": True},
    "certificates": {"type": "list", "elements": "path", "default": []},
}


class ActionModule(ActionBase):
    """Records a decision about one host."""

    _supports_check_mode = True
    _supports_async = False
    _requires_connection = False

    def run(self, tmp: Optional[str] = None, task_vars: Optional[dict[str, Any]] = None) -> dict[str, Any]:
        super().run(tmp, task_vars)
        del tmp
        required = [("decision", "approve-identity", ("key",)), ("decision", "escrow-key", ("key", "certificates"))]
        spec = {"argument_spec": ARGUMENTS, "required_if": required}
        _validation, args = self.validate_argument_spec(**spec)
        host = str(args["host"] or (task_vars or {}).get("inventory_hostname"))
        if args["key"] and args["decision"] not in ("approve-identity", "escrow-key"):
            raise AnsibleActionFail("key: only the approval of an identity and escrow are about a key. Leave it out")
        if args["certificates"] and args["decision"] != "escrow-key":
            raise AnsibleActionFail("certificates: only escrow is about recipients. Leave them out")
        records = imported("ledger.records")
        with told():
            ledger = imported("ledger.ledger").Ledger(ledger_at(self._loader, args["ledger"]))
            action = records.Action(args["decision"])
            decision = records.Decision(
                host,
                action,
                str(args["operator"]),
                self._reason(args),
                key=str(args["key"]).lower() if args["key"] else None,
                volume=VOLUME if args["decision"] in ("renew-volume", "escrow-key") else None,
            )
            changed = not ledger.stands(decision)
            if changed and self._task.check_mode:
                ledger.check(decision)
            elif changed:
                ledger.decide(decision)
            head = str(ledger.head())
        return {"changed": changed, "host": host, "head": head, "conflicts": _conflicts(ledger, host)}

    def _reason(self, args: dict[str, Any]) -> str:
        """Return why, and for escrow, who can open the envelope."""
        if not args["certificates"]:
            return str(args["reason"])
        found = authorities_of(args["certificates"], reader(self._loader))
        prints = sorted(certificate.fingerprint(hashes.SHA256()).hex() for certificate in found)
        return f"{args['reason']}; certificates that open it: {', '.join(prints)}"


def _conflicts(ledger: Any, host: str) -> list[str]:
    with told():
        return [str(conflict) for conflict in ledger.conflicts(host)]
