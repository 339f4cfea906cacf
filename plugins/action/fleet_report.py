# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Writes the fleet's report on the control node and shows it as a table."""

from __future__ import annotations

import datetime
import json
import os
import tempfile
from collections.abc import Mapping
from typing import Any, Optional

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase

from ..plugin_utils.appraisal.judgement import Status
from ..plugin_utils.files import located
from ..plugin_utils.registered import registered
from ..plugin_utils.report import fleet, missing, quoted, table, trusted, unjudged

ARGUMENTS = {
    "hosts": {"type": "list", "elements": "str", "required": True},
    "variable": {"type": "str", "default": "attest_result"},
    "path": {"type": "path"},
    "require": {"type": "str", "choices": ["trusted", "nothing"], "default": "trusted"},
}


class ActionModule(ActionBase):
    """Reports on the hosts of a play."""

    _supports_check_mode = True
    _supports_async = False
    _requires_connection = False

    def run(self, tmp: Optional[str] = None, task_vars: Optional[dict[str, Any]] = None) -> dict[str, Any]:
        super().run(tmp, task_vars)
        del tmp
        _validation, args = self.validate_argument_spec(argument_spec=ARGUMENTS)
        hostvars, variable = (task_vars or {})["hostvars"], str(args["variable"])
        entries = {str(host): _entry(str(host), registered(hostvars, str(host), variable)) for host in args["hosts"]}
        report = fleet(list(missing(entries)), datetime.datetime.now(datetime.timezone.utc))
        result: dict[str, Any] = {"changed": False, "report": report}
        if args["path"] is not None:
            result["path"] = located(self._loader, args["path"])
            result["changed"] = True
            if not self._task.check_mode:
                _write(result["path"], report)
        self._display.display(table(report))
        distrusted = [host["host"] for host in report["hosts"] if host["verdict"] != "trusted"]
        result["failed"] = args["require"] == "trusted" and not trusted(report)
        result["msg"] = _message(len(report["hosts"]), distrusted)
        return result


def _message(hosts: int, distrusted: list[str]) -> str:
    if not hosts:
        return "there are no hosts to report on"
    if distrusted:
        return f"{len(distrusted)} of {hosts} hosts are not trusted: {', '.join(distrusted)}"
    return f"all {hosts} hosts are trusted"


def _entry(host: str, found: Any) -> Optional[dict[str, Any]]:
    """Return a host's entry in the result that the task of ``cvm.fde.attest`` registered, or why it has none."""
    if not isinstance(found, Mapping):
        return None
    report = found.get("report")
    if isinstance(report, Mapping):
        return dict(report)
    if found.get("failed") and not found.get("unreachable"):
        return unjudged(host, Status.UNKNOWN, f"its attestation failed: {quoted(found.get('msg', 'without a word'))}")
    return None


def _write(path: str, report: dict[str, Any]) -> None:
    """Replace the report at once or not at all."""
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=os.path.dirname(path), prefix=".report-")
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(report, file, indent=2)
            file.write("\n")
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        raise AnsibleActionFail(f"{path}: the report cannot be written: {error.strerror}. Name another path") from error
