# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The control node's half of luks2_volume: it brings the program for the boot, and keeps recovery keys.

A recovery key is made on the target and leaves it encrypted. It is stored here and read back; then the target is told
the digest of what was read, and only from then on it relies on that key.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Iterator, Optional

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase

from ..module_utils.agent import archive
from ..module_utils.errors import FdeError
from ..module_utils.escrow.envelope import Belonging
from ..module_utils.volume.options import ARGUMENTS, secrets_of
from ..plugin_utils.escrow import Envelope, Kept, hand_over, keep
from ..plugin_utils.files import certificate_texts, located, reader
from ..plugin_utils.lookup import user_lookup

CORE = Path(__file__).resolve().parents[1] / "module_utils"
#: What a user may set; the rest is brought from here.
OPTIONS = {name: spec for name, spec in ARGUMENTS.items() if name not in ("agent", "host", "certificates", "escrowed")}
#: Bytes; an envelope holds one short text for a few certificates.
_LIMIT = 64 * 1024


@dataclass(frozen=True)
class Asked:
    """Whom a task asked, and for which volumes: nothing else that a machine says is believed."""

    host: str
    volumes: frozenset[str]


class ActionModule(ActionBase):
    """Transfers the program, runs the module, and stores what it hands over."""

    _supports_check_mode = True
    _supports_async = False
    TRANSFERS_FILES = True

    def run(self, tmp: Optional[str] = None, task_vars: Optional[dict[str, Any]] = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        del tmp
        _validation, args = self.validate_argument_spec(argument_spec=OPTIONS)
        escrow = args.pop("escrow")
        host = str((task_vars or {}).get("inventory_hostname") or "localhost")
        recipients = certificate_texts(escrow["certificates"], reader(self._loader)) if escrow else []
        brought = {"host": host, "certificates": recipients}
        self._make_tmp_path()
        try:
            shell = self._connection._shell
            remote = shell.join_path(shell.tmpdir, "agent.pyz")
            self._transfer_data(remote, archive.build(CORE))
            self._fixup_perms2((shell.tmpdir, remote))
            arguments = {**_given(args), **brought, "agent": remote}
            told = self._execute_module("cvm.fde.luks2_volume", arguments, task_vars=task_vars)
            asked = frozenset(str(one["name"]) for one in args["volumes"])
            kept, failures = self._keep_all(escrow, Asked(host, asked), told.get("volumes"), task_vars or {})
            self._confirm(args, brought, kept, task_vars)
        finally:
            self._remove_tmp_path(self._connection._shell.tmpdir)
        result.update(told)
        _check_silent(result, secrets_of(args["volumes"]))
        if failures:
            # Said in the result itself: from ansible-core 2.20 on the result that an exception brings along counts more
            # than the exception.
            said = [str(result["msg"])] if result.get("failed") else []
            result.update(failed=True, msg=" ".join([*said, *failures]))
        return result

    def _keep_all(
        self, escrow: Optional[dict[str, Any]], asked: Asked, volumes: Any, variables: dict[str, Any]
    ) -> tuple[dict[str, str], list[str]]:
        """Store what was handed over; return the digests of what was read back, and what could not be stored.

        One that fails does not keep the others from being stored: each opens another volume.
        """
        kept, failures = {}, []
        for volume in volumes if isinstance(volumes, list) else ():
            try:
                done = self._keep(escrow, asked, volume, variables)
            except (AnsibleActionFail, FdeError) as error:
                name = volume.get("name") if isinstance(volume, dict) else None
                failures.append(f"volume {name}: its recovery key was not stored: {error}")
            else:
                kept.update([done] if done is not None else [])
        return kept, failures

    def _keep(
        self, escrow: Optional[dict[str, Any]], asked: Asked, volume: Any, variables: dict[str, Any]
    ) -> Optional[tuple[str, str]]:
        """Store the recovery key of a volume; return the volume's name and the digest of what was read back."""
        handover = volume.pop("handover", None) if isinstance(volume, dict) else None
        if handover is None:
            return None
        try:
            content = base64.b64decode(handover["content"], validate=True)
            envelope = Envelope(Belonging(asked.host, str(volume["name"]), str(volume["uuid"])), content)
        except (KeyError, TypeError, ValueError, binascii.Error) as error:
            raise AnsibleActionFail(
                f"{asked.host}: it handed over something that is no recovery key's envelope"
            ) from error
        if escrow is None or envelope.belonging.volume not in asked.volumes or len(content) > _LIMIT:
            raise AnsibleActionFail(
                f"{asked.host}: it handed over a recovery key that was not asked for, or is too large"
            )
        kept = self._store(escrow, envelope, variables)
        digest = hashlib.sha256(content).hexdigest()
        volume["escrow"] = {"digest": digest, "confirmed": True, "place": kept.place}
        return str(volume["name"]), digest

    def _store(self, escrow: dict[str, Any], envelope: Envelope, variables: dict[str, Any]) -> Kept:
        if escrow["directory"] is not None:
            return keep(located(self._loader, escrow["directory"]), envelope)
        lookup = user_lookup(self._loader, self._templar, variables)
        return hand_over(lookup, escrow["store_with"], escrow["options"], envelope)

    def _confirm(
        self, args: dict[str, Any], brought: dict[str, Any], kept: dict[str, str], task_vars: Optional[dict[str, Any]]
    ) -> None:
        """Tell the target what arrived."""
        if not kept:
            return
        # No secret is needed for this, so none is sent again.
        volumes = [{"name": one["name"], "device": one["device"]} for one in args["volumes"] if one["name"] in kept]
        arguments = {**brought, "volumes": volumes, "escrowed": kept}
        told = self._execute_module("cvm.fde.luks2_volume", arguments, task_vars=task_vars)
        if told.get("failed"):
            raise AnsibleActionFail(str(told.get("msg")))


def _given(found: Any) -> Any:
    """Return arguments without those that nobody gave: to Ansible an option that is null excludes its alternatives."""
    if isinstance(found, dict):
        return {name: _given(value) for name, value in found.items() if value is not None}
    return [_given(one) for one in found] if isinstance(found, list) else found


def _check_silent(result: dict[str, Any], secrets: list[str]) -> None:
    """Fail rather than show a secret that came back from the target."""
    result.pop("invocation", None)
    long = [secret for secret in secrets if len(secret) >= 8]
    if any(secret in text for text in _texts(result) for secret in long):
        raise AnsibleActionFail("the target returned a secret. Its result is not shown")


def _texts(found: Any) -> Iterator[str]:
    """Yield every text in a result, as it is: in a representation some characters are written otherwise."""
    if isinstance(found, dict):
        found = [*found.keys(), *found.values()]
    if isinstance(found, (list, tuple)):
        for one in found:
            yield from _texts(one)
    else:
        yield str(found)
