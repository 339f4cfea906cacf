# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The control node's half of root_recovery_key: it keeps the envelope, and then tells the target to rely on it."""

from __future__ import annotations

import base64
import binascii
import hashlib
from typing import Any, Mapping, Optional

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase

from ..module_utils.agent.escrowed import NAME
from ..module_utils.errors import FdeError
from ..module_utils.escrow.envelope import Belonging
from ..plugin_utils.escrow import Envelope, Kept, hand_over, keep
from ..plugin_utils.files import certificate_texts, located, reader
from ..plugin_utils.lookup import user_lookup

ESCROW = {
    "certificates": {"type": "list", "elements": "path", "required": True},
    "directory": {"type": "path"},
    "store_with": {"type": "str"},
    "options": {"type": "dict", "default": {}},
}
ARGUMENTS = {
    "escrow": {
        "type": "dict",
        "required": True,
        "options": ESCROW,
        "required_one_of": [["directory", "store_with"]],
        "mutually_exclusive": [["directory", "store_with"]],
    },
    "rotate": {"type": "bool", "default": False},
}
_MODULE = "cvm.fde.root_recovery_round"
#: Bytes; an envelope holds one short text for a few certificates.
_LIMIT = 64 * 1024


class ActionModule(ActionBase):
    """Asks for an envelope, stores it, and confirms it."""

    _supports_check_mode = True
    _supports_async = False

    def run(self, tmp: Optional[str] = None, task_vars: Optional[dict[str, Any]] = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        del tmp
        _validation, args = self.validate_argument_spec(argument_spec=ARGUMENTS)
        variables = task_vars or {}
        host = str(variables.get("inventory_hostname") or "localhost")
        recipients = certificate_texts(args["escrow"]["certificates"], reader(self._loader))
        asked = {"host": host, "certificates": recipients, "rotate": args["rotate"]}
        told = self._rounds(asked, args["escrow"], variables)
        if told.pop("more", False) is True and not told.get("failed"):
            # What an interrupted run left is in escrow; now the key that is asked for takes its place.
            following = self._rounds({**asked, "rotate": True}, args["escrow"], variables)
            following.pop("more", None)
            told.update({**following, "steps": told.get("steps", [])})
        result.update(told)
        return result

    def _rounds(self, asked: dict[str, Any], escrow: Mapping[str, Any], variables: dict[str, Any]) -> dict[str, Any]:
        """Ask for an envelope; where there is one, store it and have it confirmed."""
        told: dict[str, Any] = self._execute_module(_MODULE, {"round": "add", **asked}, task_vars=variables)
        told.pop("invocation", None)
        handover = told.pop("handover", None)
        if handover is not None and not told.get("failed"):
            host = str(asked["host"])
            kept, digest = self._keep(escrow, host, str(told.get("luks_uuid")), handover, variables)
            said = self._execute_module(_MODULE, {"round": "confirm", "digest": digest}, task_vars=variables)
            if said.get("failed"):
                raise AnsibleActionFail(f"{host}: {said.get('msg')}")
            told["escrow"] = {"digest": digest, "place": kept.place}
        return told

    def _keep(
        self, escrow: Mapping[str, Any], host: str, luks_uuid: str, handover: object, variables: Mapping[str, Any]
    ) -> tuple[Kept, str]:
        """Store what the target handed over; return where it is and the digest of what was read back."""
        try:
            content = base64.b64decode(str(handover), validate=True)
        except (ValueError, binascii.Error) as error:
            raise AnsibleActionFail(f"{host}: it handed over something that is no recovery key's envelope") from error
        if not 0 < len(content) <= _LIMIT:
            raise AnsibleActionFail(f"{host}: the envelope that it handed over has {len(content)} bytes")
        try:
            envelope = Envelope(Belonging(host, NAME, luks_uuid), content)
            if escrow["directory"] is not None:
                kept = keep(located(self._loader, escrow["directory"]), envelope)
            else:
                lookup = user_lookup(self._loader, self._templar, variables)
                kept = hand_over(lookup, escrow["store_with"], escrow["options"], envelope)
        except FdeError as error:
            raise AnsibleActionFail(f"{host}: {error}") from error
        return kept, hashlib.sha256(content).hexdigest()
