# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The control node's half of enrolment: an attestation after which the ledger knows the machine."""

from __future__ import annotations

import tempfile
from typing import Any

from ..plugin_utils.control_node import imported, told
from ..plugin_utils.files import ledger_at
from .attest import ARGUMENTS as ATTESTED
from .attest import ActionModule as Attest

ARGUMENTS = {
    **{name: spec for name, spec in ATTESTED.items() if name != "require"},
    "ledger": {"type": "str", "required": True},
    "create": {"type": "bool", "default": False},
}


class ActionModule(Attest):
    """Enrols one machine."""

    _enrols = True

    def _arguments(self) -> dict[str, Any]:
        _validation, args = self.validate_argument_spec(argument_spec=ARGUMENTS)
        return {**args, "require": "trusted"}

    def _ledger(self, args: dict[str, Any]) -> Any:
        if not args["create"]:
            return super()._ledger(args)
        ledgers, databases = imported("ledger.ledger"), imported("ledger.database")
        where = ledger_at(self._loader, args["ledger"])
        with told():
            if not self._task.check_mode:
                return ledgers.Ledger.create(where)
            try:
                return ledgers.Ledger(where)
            except databases.NoLedger:
                # What would be found in a new one is found in a new one, which is not kept.
                self._folder = tempfile.TemporaryDirectory(prefix="fde-ledger-")
                return ledgers.Ledger.create(f"{self._folder.name}/ledger.db")
