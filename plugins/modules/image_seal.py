#!/usr/bin/python
# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: image_seal
short_description: Seal a prepared disk image with dm-verity and a signed kernel image
version_added: 0.1.0
author:
  - The cvm.fde authors (!UNKNOWN)
description:
  - Turns a raw disk image (or a whole disk) whose root was prepared into a sealed one. Its root is protected by
    dm-verity, its only boot loader is a unified kernel image that names the root hash, is signed for Secure Boot and
    carries signed PCR 11 policies.
  - Beside it a signed manifest says what a verifier must expect of a machine that runs it (see
    C(docs/reference-manifest.md)).
  - The input is not mounted and not changed. The sealed image is for disks with sectors of the same size as those of
    the input's partition table (512 or 4096 bytes). The same input, keys and tools give the same root hash again.
  - An image that is sealed already is left alone.
options:
  src:
    description:
      - Raw disk image or block device with a GUID partition table, an EFI system partition and one ext4 root. The
        blocks of its file system must have 4096 bytes.
    type: path
    required: true
  dest:
    description:
      - The sealed image to write, or a whole disk.
      - Required unless O(in_place=true).
    type: path
  in_place:
    description: Replace O(src) by the sealed image. Its former content is lost.
    type: bool
    default: false
  force:
    description: Replace O(dest) even when it is something else than a sealed image.
    type: bool
    default: false
  name:
    description:
      - Name of the image in its manifest; by default the file name of the sealed image without its last
        suffix.
    type: str
  manifest:
    description:
      - Where to write the manifest; its signature goes beside it with the suffix C(.sig). By default
        C(manifest.json) beside the image.
    type: path
  manifest_key:
    description: Private key (PEM, RSA or EC) that signs the manifest.
    type: path
    required: true
  pcr_private_key:
    description:
      - Private RSA key (PEM) that signs the PCR 11 policies. Whoever has it can make images that open
        existing volumes.
    type: path
    required: true
  secure_boot_key:
    description: Private key (PEM) that signs the kernel image for Secure Boot.
    type: path
    required: true
  secure_boot_certificate:
    description: Certificate (PEM) of O(secure_boot_key).
    type: path
    required: true
  secure_boot_variables:
    description:
      - The Secure Boot variables of the machines that will run the image, in the order of enrolment. With them PCR 7
        is predicted.
      - Leave it out when they differ between machines; then the manifest says nothing about PCR 7.
  strategy:
    description:
      - How the root of an instance becomes writable. It is part of the signed and measured command line, and of the
        manifest; a host cannot change it.
      - V(clone) copies the root into an encrypted volume while it is used. V(copy) copies it before it is used for the
        first time. V(overlay) keeps what is written in an encrypted volume that is laid over the image. V(ephemeral)
        keeps what is written in memory, and has no volume.
      - The image must have been prepared for the same strategy, with a kernel that has what it needs.
    type: str
    choices: [clone, overlay, copy, ephemeral]
    default: clone
  volume_disk:
    description:
      - The disk that an instance makes its encrypted volume on.
      - V(root) is the disk of the image, behind its partitions. V(other) is the only other disk of the machine.
        V(serial:NUMBER) is the other disk with this serial number, as clouds and hypervisors let one choose it.
      - Another disk must be blank at the first boot.
    type: str
    default: root
  recovery:
    description:
      - What a machine offers whose boot is refused. V(none) is to switch off. V(console) is to ask for the recovery key
        on the console, which whoever holds the console can read along.
    type: str
    choices: [none, console]
    default: none
  security_version:
    description:
      - Security version number of the image, at most 65535.
      - A machine that came up with a higher number refuses this image (C(image-outdated)). Raise it with an image whose
        predecessors must not get the volume's key any more; an image that is only newer keeps the number.
      - An ephemeral image has none.
    type: int
    default: 0
  sign_tool:
    description: Program that makes the Secure Boot signature.
    type: str
    choices: [systemd-sbsign, sbsign]
    default: systemd-sbsign
  kernel:
    description: Version of the kernel to boot, as in C(/boot/vmlinuz-VERSION). Needed only when the image has several.
    type: str
  command_line:
    description:
      - Words to add to the kernel command line, such as C(console=ttyS0). What protects the image cannot
        be set.
    type: str
    default: ''
  esp_size:
    description:
      - Size of the EFI system partition. Leave room for a second kernel image when kernels are to be updated.
      - On disks with sectors of 4096 bytes it has at least 257 MiB.
    type: bytes
    default: 288M
  tools_tree:
    description:
      - Root of an installed system whose programs are used instead of the builder's, for builders with a systemd
        before 262.
      - Needs C(bwrap) on the builder.
    type: path
  work_dir:
    description: Existing directory for the parts of the image while it is made; by default that of the sealed image.
    type: path
requirements:
  - "On the builder or in the tools tree: systemd-ukify, systemd-measure and the EFI stub (systemd 262 or later),
    sbsigntool, cryptsetup (veritysetup), e2fsprogs, dosfstools, mtools, openssl"
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
  idempotent:
    support: full
extends_documentation_fragment:
  - cvm.fde.attributes
  - cvm.fde.secure_boot_variables
notes:
  - Private keys are given by their path on the builder. They are neither copied nor put into results or logs.
seealso:
  - module: cvm.fde.image_prepare
"""

EXAMPLES = r"""
- name: Seal an image
  cvm.fde.image_seal:
    src: /srv/images/debian-prepared.raw
    dest: /srv/images/debian-sealed.raw
    manifest_key: /srv/keys/manifest.key
    pcr_private_key: /srv/keys/pcr.key
    secure_boot_key: /srv/keys/db.key
    secure_boot_certificate: /srv/keys/db.crt
    command_line: console=ttyS0
    secure_boot_variables:
      - {variable: PK, certificate: /srv/keys/PK.crt, owner: 4f1a3c42-6f3b-4b0e-9d6a-0f1c2a7d5e11}
      - {variable: KEK, certificate: /srv/keys/KEK.crt, owner: 4f1a3c42-6f3b-4b0e-9d6a-0f1c2a7d5e11}
      - {variable: db, certificate: /srv/keys/db.crt, owner: 4f1a3c42-6f3b-4b0e-9d6a-0f1c2a7d5e11}
"""

RETURN = r"""
msg:
  description: What was found and decided.
  returned: always
  type: str
steps:
  description:
    - The steps that were taken, with the seconds each took. In check mode those that would be taken, without a time.
  returned: always
  type: list
  elements: dict
  sample: [{"name": "compute the hash tree", "seconds": 3.1}]
dest:
  description: The sealed image.
  returned: always
  type: str
manifest:
  description: The manifest of the sealed image.
  returned: always
  type: str
root_hash:
  description: Root hash (hex) of the sealed image; empty in check mode when it would be made.
  returned: always
  type: str
sizes:
  description: Sizes in bytes of the parts of the sealed image that are known.
  returned: always
  type: dict
  sample: {"root": 1992294400, "verity": 15695872, "uki": 46137344, "image": 2278555648}
"""

import os
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ..module_utils.agent.configuration import Recovery, Strategy
from ..module_utils.boot.seal import Result, difference, seal
from ..module_utils.boot.seal_plan import Action, Request
from ..module_utils.boot.seal_request import make_request
from ..module_utils.boot.tools import open_tools
from ..module_utils.errors import FdeError
from ..module_utils.runner import ModuleRunner

VARIABLE = {
    "variable": {"type": "str", "choices": ["PK", "KEK", "db", "dbx"], "required": True},
    "certificate": {"type": "path"},
    "owner": {"type": "str"},
    "content": {"type": "path"},
}
ARGUMENTS = {
    "src": {"type": "path", "required": True},
    "dest": {"type": "path"},
    "in_place": {"type": "bool", "default": False},
    "force": {"type": "bool", "default": False},
    "name": {"type": "str"},
    "manifest": {"type": "path"},
    # Paths, not keys: nothing secret is in them.
    "manifest_key": {"type": "path", "required": True, "no_log": False},
    "pcr_private_key": {"type": "path", "required": True, "no_log": False},
    "secure_boot_key": {"type": "path", "required": True, "no_log": False},
    "secure_boot_certificate": {"type": "path", "required": True},
    "secure_boot_variables": {
        "type": "list",
        "elements": "dict",
        "options": VARIABLE,
        "required_together": [("certificate", "owner")],
        "required_one_of": [("certificate", "content")],
        "mutually_exclusive": [("certificate", "content")],
    },
    "strategy": {"type": "str", "choices": [one.value for one in Strategy], "default": "clone"},
    "volume_disk": {"type": "str", "default": "root"},
    "recovery": {"type": "str", "choices": [one.value for one in Recovery], "default": "none"},
    "security_version": {"type": "int", "default": 0},
    "sign_tool": {"type": "str", "choices": ["systemd-sbsign", "sbsign"], "default": "systemd-sbsign"},
    "kernel": {"type": "str"},
    "command_line": {"type": "str", "default": ""},
    "esp_size": {"type": "bytes", "default": "288M"},
    "tools_tree": {"type": "path"},
    "work_dir": {"type": "path"},
}


def describe(result: Result, request: Request, check_mode: bool) -> dict[str, Any]:
    """Return the module's result."""
    planned = [{"name": step} for step in result.plan.steps]
    taken = [{"name": step.name, "seconds": step.seconds} for step in result.steps]
    return {
        "changed": result.plan.action is not Action.NOTHING,
        "msg": result.plan.reason,
        "steps": planned if check_mode else taken or planned,
        "dest": request.dest,
        "manifest": request.manifest,
        "root_hash": result.root_hash,
        "sizes": dict(result.sizes),
        "diff": difference(request, result),
    }


def main() -> None:
    module = AnsibleModule(
        argument_spec=ARGUMENTS,
        supports_check_mode=True,
        required_if=[("in_place", False, ("dest",))],
    )
    try:
        tools = open_tools(ModuleRunner(module), module.params["tools_tree"])
        request = make_request(module.params, tools)
        work_dir = module.params["work_dir"] or os.path.dirname(os.path.abspath(request.dest))
        result = seal(tools, request, work_dir, module.check_mode)
    except FdeError as error:
        module.fail_json(msg=str(error), subject=error.subject, cause=error.cause, remedy=error.remedy)
    module.exit_json(**describe(result, request, module.check_mode))


if __name__ == "__main__":
    main()
