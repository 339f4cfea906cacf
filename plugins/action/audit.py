# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Audits a ledger on the control node, without asking any host."""

from __future__ import annotations

import datetime
from typing import Any, Optional

from ansible.plugins.action import ActionBase

from ..plugin_utils.control_node import authorities_of, imported, told
from ..plugin_utils.files import ledger_at, reader
from ..plugin_utils.operator import PLATFORM_CA_OPTIONS, platform_authorities, policy_from

ARGUMENTS = {
    "ledger": {"type": "str", "required": True},
    "head": {"type": "str"},
    "hosts": {"type": "list", "elements": "str"},
    "manifest_keys": {"type": "list", "elements": "path", "no_log": False},
    "endorsement_ca": {"type": "list", "elements": "path"},
    "platform_ca": {"type": "dict", "options": PLATFORM_CA_OPTIONS},
    "policy": {"type": "path"},
    "history": {"type": "str", "choices": ["last", "all"], "default": "last"},
    "require": {"type": "str", "choices": ["sound", "nothing"], "default": "sound"},
}


class ActionModule(ActionBase):
    """Audits a ledger."""

    _supports_check_mode = True
    _supports_async = False
    _requires_connection = False

    def run(self, tmp: Optional[str] = None, task_vars: Optional[dict[str, Any]] = None) -> dict[str, Any]:
        super().run(tmp, task_vars)
        del tmp
        _validation, args = self.validate_argument_spec(argument_spec=ARGUMENTS)
        auditing, today = imported("auditing"), self._today(args)
        with told():
            ledger = imported("ledger.ledger").Ledger(ledger_at(self._loader, args["ledger"]))
            head = imported("ledger.chain").Head.parse(args["head"]) if args["head"] else None
            found = auditing.audit(ledger, today, head, args["hosts"], args["history"] == "all")
        result = {**auditing.as_json(found), "changed": False}
        result["failed"] = args["require"] == "sound" and not found.sound
        result["msg"] = _message(result)
        return result

    def _today(self, args: dict[str, Any]) -> Any:
        read, keys, authorities = reader(self._loader), None, None
        if args["manifest_keys"] is not None:
            keys = [read(path) for path in args["manifest_keys"]]
        if args["endorsement_ca"] is not None:
            authorities = authorities_of(args["endorsement_ca"], read)
        platforms = platform_authorities(args["platform_ca"], read)
        policy = now = None
        if args["policy"] is not None:
            policy = policy_from(str(args["policy"]), None, read)
            now = datetime.datetime.now(datetime.timezone.utc)
        return imported("case_file").Today(keys, authorities, policy, now, platforms)


def _message(result: dict[str, Any]) -> str:
    wrong = [
        *(finding["cause"] for finding in result["chain"]),
        *(f"entry {doubt['sequence']} of {doubt['host']}: {doubt['cause']}" for doubt in result["attestations"]),
        *result["inventory"]["moved"],
    ]
    if not wrong:
        left = f", {result['unjudged']} left nothing to judge" if result["unjudged"] else ""
        judged = f"{result['judged']} attestations judged again{left}"
        return f"sound: {result['entries']} entries, {judged}; head {result['head']}"
    more = f" (and {len(wrong) - 3} more)" if len(wrong) > 3 else ""
    return f"{'; '.join(wrong[:3])}{more}"
