#!/usr/bin/python
# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: image_prepare
short_description: Put the boot agent into a system that will be sealed
version_added: 0.1.0
author:
  - The cvm.fde authors (!UNKNOWN)
description:
  - Installs the packages that the boot agent needs, the agent, its dracut module and its services, and builds the
    initrd of every installed kernel with them.
  - The system is the running one, or a directory tree that holds an installed one.
  - Afterwards the system's disk image can be sealed with M(cvm.fde.image_seal). Until then it boots as before, except
    that its initrd has no emergency shell any more.
  - Needs root. Kernels without what the strategy needs are refused, as those of Debian 13 for V(clone).
options:
  strategy:
    description:
      - The strategy that the image will be sealed for with M(cvm.fde.image_seal); see the page C(strategies.md) of the
        collection's documentation.
    type: str
    choices: [clone, overlay, copy, ephemeral]
    default: clone
  root:
    description: Root directory of the system to prepare.
    type: path
    default: /
  payload:
    description:
      - What is installed, as a file on the target.
      - Set by the action plugin; do not set it yourself.
    type: path
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
  idempotent:
    support: full
extends_documentation_fragment:
  - cvm.fde.attributes
  - cvm.fde.attributes.action
seealso:
  - module: cvm.fde.image_seal
"""

EXAMPLES = r"""
- name: Prepare the system that becomes an image
  cvm.fde.image_prepare:

- name: Prepare a tree that was made by mmdebstrap
  cvm.fde.image_prepare:
    root: /var/tmp/tree
    strategy: overlay
"""

RETURN = r"""
steps:
  description: The steps that were taken, or in check mode would be taken.
  returned: success
  type: list
  elements: dict
  contains:
    action:
      description: What is done, one of V(install), V(write), V(link) and V(build).
      type: str
      returned: always
      sample: build
    subject:
      description: The package, path or kernel version it is done to.
      type: str
      returned: always
      sample: 7.2.12+deb14-cloud-amd64
kernels:
  description: The versions of the kernels whose initrds carry the agent.
  returned: success
  type: list
  elements: str
  sample: [7.2.12+deb14-cloud-amd64]
"""

from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ..module_utils.agent.archive import unpack
from ..module_utils.agent.chroot import entered
from ..module_utils.agent.configuration import Strategy
from ..module_utils.agent.prepare import Step, System, apply_all, plan, wanted
from ..module_utils.errors import FdeError
from ..module_utils.runner import ModuleRunner

ARGUMENTS = {
    "strategy": {"type": "str", "choices": [strategy.value for strategy in Strategy], "default": "clone"},
    "root": {"type": "path", "default": "/"},
    "payload": {"type": "path"},
}


def described(steps: tuple[Step, ...]) -> list[dict[str, str]]:
    """Return the steps as plain values."""
    return [{"action": step.action.value, "subject": step.subject} for step in steps]


def prepare(module: AnsibleModule, root: Path, payload: bytes, strategy: Strategy) -> dict[str, Any]:
    """Probe, plan, and unless in check mode apply; return the module's result."""
    runner = ModuleRunner(module)
    outside = System(root, runner)
    target = wanted(unpack(payload), outside.udev_rules(), strategy)
    found = outside.probe(target)
    steps = plan(found, target)
    if steps and not module.check_mode:
        with entered(runner, root) as inside:
            apply_all(System(root, inside), steps, target)
    lines = "".join(f"{step.action.value} {step.subject}\n" for step in steps)
    return {
        "changed": bool(steps),
        "steps": described(steps),
        "kernels": [kernel.version for kernel in found.kernels],
        "diff": {"before": "", "after": lines},
    }


def main() -> None:
    module = AnsibleModule(argument_spec=ARGUMENTS, supports_check_mode=True)
    if module.params["payload"] is None:
        module.fail_json(msg="cvm.fde.image_prepare was not started through its action plugin, which brings the agent")
    try:
        payload = Path(module.params["payload"]).read_bytes()
        result = prepare(module, Path(module.params["root"]), payload, Strategy(module.params["strategy"]))
    except FdeError as error:
        module.fail_json(msg=str(error), subject=error.subject, cause=error.cause, remedy=error.remedy)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
