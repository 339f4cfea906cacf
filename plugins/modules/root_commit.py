#!/usr/bin/python
# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: root_commit
short_description: Let the next boot accept a header of the root volume that was changed on purpose
version_added: 0.1.0
author:
  - The cvm.fde authors (!UNKNOWN)
description:
  - The boot agent opens the root volume only with the LUKS2 header that the TPM remembers. Whoever changes keyslots of
    the running system, with C(systemd-cryptenroll) or C(cryptsetup), must commit the change, or the next boot is
    refused.
  - Only a header that the boot would accept is committed. It must be one of this volume and of the same volume key, and
    the TPM must open it.
  - Changes that this collection makes are committed by themselves.
  - Look before you commit. The disk belongs to the host, which may have put an old keyslot back; the differences are
    those between the header on the disk and the one that the volume was opened with.
options:
  digest:
    description:
      - The digest of the header that was looked at, from an earlier run in check mode or from
        M(cvm.fde.root_info). No other header is committed. Of a change that was cut short while it was written only
        check mode tells the digest, which is that of the whole header.
    type: str
requirements:
  - tpm2-pytss
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
  idempotent:
    support: full
extends_documentation_fragment:
  - cvm.fde.attributes
seealso:
  - module: cvm.fde.root_info
"""

EXAMPLES = r"""
- name: Look at what was changed
  cvm.fde.root_commit:
  check_mode: true
  register: seen

- name: Commit just that
  cvm.fde.root_commit:
    digest: "{{ seen.digest }}"
  when: seen.differences == ["keyslot 2 was added (systemd-recovery)", "token 3 was added (systemd-recovery)"]
"""

RETURN = r"""
action:
  description:
    - What was done, or is to be done in check mode.
    - V(nothing), because the header is the one that the TPM remembers.
    - V(commit), because it was changed.
    - V(finish), because a change of this collection was cut short after it was written.
    - V(repair), because such a change was cut short while it was written; the copy that it left is written again.
    - V(abandon), because such a change was cut short before.
  returned: success
  type: str
  sample: commit
digest:
  description: Digest of the header that is to be committed. It is the one on the disk, but for RV(action=repair).
  returned: success
  type: str
differences:
  description: What differs from the header that the volume was opened with, or last committed with.
  returned: success
  type: list
  elements: str
  sample: ["keyslot 2 was added (systemd-recovery)"]
"""

from ansible.module_utils.basic import AnsibleModule

from ..module_utils.agent.commit import Action, commit
from ..module_utils.agent.machine import this_machine
from ..module_utils.errors import FdeError
from ..module_utils.runner import ModuleRunner


def main() -> None:
    module = AnsibleModule(argument_spec={"digest": {"type": "str"}}, supports_check_mode=True)
    try:
        machine = this_machine(ModuleRunner(module))
        outcome = commit(machine, seen=module.params["digest"], dry_run=module.check_mode)
    except FdeError as error:
        module.fail_json(msg=str(error), subject=error.subject, cause=error.cause, remedy=error.remedy)
    lines = "".join(f"{line}\n" for line in outcome.differences)
    module.exit_json(
        changed=outcome.action is not Action.NOTHING,
        action=outcome.action.value,
        digest=outcome.digest,
        differences=list(outcome.differences),
        diff={"before": "", "after": lines, "before_header": "committed", "after_header": "on the disk"},
    )


if __name__ == "__main__":
    main()
