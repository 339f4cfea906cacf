#!/usr/bin/python
# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: root_recovery_round
short_description: Carry out one round of putting a recovery key into escrow
version_added: 0.1.0
author:
  - The cvm.fde authors (!UNKNOWN)
description:
  - The part of M(cvm.fde.root_recovery_key) that runs on the target. Use that instead.
options:
  round:
    description:
      - With V(add), make a recovery key where one is needed and return it encrypted. One that an interrupted run made
        and that was never confirmed is returned again.
      - With V(confirm), rely on the key that was made, because its envelope is kept.
    type: str
    choices: [add, confirm]
    required: true
  host:
    description: The name of the host in the inventory, which the envelope says.
    type: str
    default: ""
  certificates:
    description: The certificates that the key is encrypted to (PEM).
    type: list
    elements: str
    default: []
  rotate:
    description: Make a new key although there is one.
    type: bool
    default: false
  digest:
    description: SHA-256 of the envelope that was read back.
    type: str
    default: ""
requirements:
  - openssl
  - systemd-cryptenroll
  - tpm2-pytss
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
  idempotent:
    support: none
extends_documentation_fragment:
  - cvm.fde.attributes
seealso:
  - module: cvm.fde.root_recovery_key
"""

EXAMPLES = r"""
- name: Make a recovery key and return it encrypted
  cvm.fde.root_recovery_round:
    round: add
    host: web1
    certificates:
      - "{{ lookup('ansible.builtin.file', 'escrow.pem') }}"
"""

RETURN = r"""
handover:
  description: The envelope, in base64, of a key that waits for its confirmation.
  returned: when there is one
  type: str
escrow:
  description: Digest of the envelope that is or will be relied on.
  returned: with O(round=add)
  type: dict
luks_uuid:
  description: UUID of the root volume.
  returned: with O(round=add)
  type: str
more:
  description: Whether another V(add) must follow the confirmation.
  returned: with O(round=add)
  type: bool
steps:
  description: What was done, or would be done in check mode.
  returned: with O(round=add)
  type: list
  elements: str
"""

import base64
from typing import Any, Mapping

from ansible.module_utils.basic import AnsibleModule

from ..module_utils.agent import commit, escrowed
from ..module_utils.agent.machine import Machine, this_machine
from ..module_utils.errors import FdeError
from ..module_utils.runner import ModuleRunner

ARGUMENTS = {
    "round": {"type": "str", "choices": ["add", "confirm"], "required": True},
    "host": {"type": "str", "default": ""},
    "certificates": {"type": "list", "elements": "str", "default": []},
    "rotate": {"type": "bool", "default": False},
    "digest": {"type": "str", "default": ""},
}
FINISHED = "the recovery key of an interrupted run is put into escrow"
MADE = "a recovery key is made and put into escrow"
ROTATED = "the recovery key is replaced by a new one in escrow"


def look(machine: Machine, wanted: Mapping[str, Any]) -> dict[str, object]:
    """Return what is to be done, and what is there already."""
    record = escrowed.read()
    slot = escrowed.current(machine, record)
    recipients = escrowed.recipients(wanted["host"], certificates(wanted))
    waiting = escrowed.waiting(machine, record)
    steps = [FINISHED] if waiting else []
    if wanted["rotate"] or (waiting.recipients != recipients if waiting else slot is None):
        steps.append(ROTATED if slot or waiting else MADE)
    before = "" if slot is None else f"escrowed: {slot.envelope}\n"
    return {
        "changed": bool(steps),
        "steps": steps,
        "more": len(steps) > 1,
        "escrow": None if slot is None else {"digest": slot.envelope},
        "luks_uuid": commit.probe(machine).disk.header().uuid,
        "diff": {"before": before, "after": "escrowed: a new key\n" if steps else before},
    }


def certificates(wanted: Mapping[str, Any]) -> list[bytes]:
    return [pem.encode() for pem in wanted["certificates"]]


def main() -> None:
    module = AnsibleModule(argument_spec=ARGUMENTS, supports_check_mode=True)
    wanted = module.params
    try:
        machine = this_machine(ModuleRunner(module))
        if wanted["round"] == "confirm" and not module.check_mode:
            escrowed.confirm(machine, wanted["digest"])
            module.exit_json(changed=True)
        result = look(machine, wanted)
        if result["changed"] and not module.check_mode:
            handover = escrowed.add(machine, wanted["host"], certificates(wanted))
            content = base64.b64encode(handover.envelope).decode()
            result.update(escrow={"digest": handover.digest}, handover=content)
    except FdeError as error:
        module.fail_json(msg=str(error), subject=error.subject, cause=error.cause, remedy=error.remedy)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
