#!/usr/bin/python
# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: reference_values
short_description: Compute what machines that boot a kernel image must show
version_added: 0.1.0
author:
  - The cvm.fde authors (!UNKNOWN)
description:
  - Predicts the PCRs of machines that boot a unified kernel image from the image and the Secure Boot variables alone,
    and writes them as a signed reference set for M(cvm.fde.attest). No machine is asked, and no TPM is needed.
  - It predicts PCR 4 (by the Authenticode digest and the measuring rules of the stub's version), 7, 9, 11 for each
    phase, 12, 13 and 14, in the SHA-256 and SHA-384 banks, each before and after systemd (261 and later) closes it.
  - With O(manifest) it reads the set of a sealed image instead, to give it a period in which it is valid.
options:
  uki:
    description: The unified kernel image, with a stub of systemd 252 or later.
    type: path
  manifest:
    description: The manifest of a sealed image, which is a reference set already.
    type: path
  name:
    description:
      - The name of the set, by which appraisal policies know it.
      - By default that of O(manifest), or the file name of O(uki) without its last suffix.
    type: str
  secure_boot:
    description: Whether the machines enforce Secure Boot.
    type: bool
    default: true
  secure_boot_certificate:
    description: The certificate (PEM or DER) in C(db) that O(uki) is signed by.
    type: path
  secure_boot_variables:
    description:
      - The Secure Boot variables of the machines, in the order of enrolment. Without them PCR 7 is left out, and the
        image is known by O(secure_boot_certificate) in the events of PCR 7.
  not_before:
    description: From when on machines may show these values, such as C(2026-12-01T00:00:00Z).
    type: str
  not_after:
    description: Until when machines may show these values.
    type: str
  dest:
    description:
      - Where to write the set; its signature goes beside it with the suffix C(.sig).
      - Without it the set is returned only.
    type: path
  key:
    description: Private key (PEM, RSA or EC) that signs the set, as a manifest is signed.
    type: path
requirements:
  - openssl (with O(dest))
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
seealso:
  - module: cvm.fde.image_seal
  - module: cvm.fde.attest
"""

EXAMPLES = r"""
- name: Expect a kernel image from December on
  cvm.fde.reference_values:
    uki: build/linux.efi
    name: debian-forky-2026.12
    secure_boot_certificate: keys/db.pem
    secure_boot_variables:
      - {variable: PK, content: variables/PK}
      - {variable: KEK, content: variables/KEK}
      - {variable: db, content: variables/db}
    not_before: 2026-12-01T00:00:00Z
    dest: build/debian-forky-2026.12.json
    key: keys/manifest.key
"""

RETURN = r"""
reference_set:
  description: The set, in the form that C(docs/reference-manifest.md) describes.
  returned: success
  type: dict
dest:
  description: Where it was written, or would be.
  returned: when O(dest) is given
  type: str
"""

import os
import tempfile
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ..module_utils.boot.manifest import encode, is_signed_by, sign
from ..module_utils.boot.reference_set import Request, limited, reference_set
from ..module_utils.boot.seal_request import make_variables, read_file
from ..module_utils.boot.secure_boot import read_der
from ..module_utils.boot.tools import Tools
from ..module_utils.errors import FdeError
from ..module_utils.runner import ModuleRunner

VARIABLE = {
    "variable": {"type": "str", "choices": ["PK", "KEK", "db", "dbx"], "required": True},
    "certificate": {"type": "path"},
    "owner": {"type": "str"},
    "content": {"type": "path"},
}
ARGUMENTS = {
    "uki": {"type": "path"},
    "manifest": {"type": "path"},
    "name": {"type": "str"},
    "secure_boot": {"type": "bool", "default": True},
    "secure_boot_certificate": {"type": "path"},
    "secure_boot_variables": {
        "type": "list",
        "elements": "dict",
        "options": VARIABLE,
        "required_together": [("certificate", "owner")],
        "required_one_of": [("certificate", "content")],
        "mutually_exclusive": [("certificate", "content")],
    },
    "not_before": {"type": "str"},
    "not_after": {"type": "str"},
    "dest": {"type": "path"},
    # A path, not a key: nothing secret is in it.
    "key": {"type": "path", "no_log": False},
}


def make(params: dict[str, Any]) -> dict[str, Any]:
    """Return the set that was asked for."""
    limits = (params["not_before"], params["not_after"])
    if params["manifest"] is not None:
        return limited(read_file(params["manifest"]), params["manifest"], params["name"], *limits)
    path, certificate = params["uki"], params["secure_boot_certificate"]
    request = Request(
        name=params["name"] or os.path.splitext(os.path.basename(path))[0],
        uki=read_file(path),
        variables=make_variables(params["secure_boot_variables"]),
        certificate=None if certificate is None else read_der(read_file(certificate), "CERTIFICATE", certificate),
        secure_boot=params["secure_boot"],
        not_before=limits[0],
        not_after=limits[1],
    )
    return reference_set(request)


def write(tools: Tools, content: bytes, dest: str, key: str, check_mode: bool) -> bool:
    """Write a set with its signature, both or none of them changed; return whether there was anything to do."""
    folder = os.path.dirname(os.path.abspath(dest))
    with tempfile.TemporaryDirectory(dir=folder, prefix=".reference-") as scratch:
        same = os.path.exists(dest) and read_file(dest) == content
        if same and is_signed_by(tools, dest, f"{dest}.sig", key, scratch):
            return False
        if not check_mode:
            path = os.path.join(scratch, "set.json")
            with open(path, "wb") as file:
                file.write(content)
            sign(tools, path, key, f"{path}.sig")
            os.replace(f"{path}.sig", f"{dest}.sig")
            os.replace(path, dest)
    return True


def main() -> None:
    module = AnsibleModule(
        argument_spec=ARGUMENTS,
        supports_check_mode=True,
        required_one_of=[("uki", "manifest")],
        mutually_exclusive=[("uki", "manifest")],
        required_together=[("dest", "key")],
    )
    params = module.params
    try:
        found = make(params)
        result: dict[str, Any] = {"changed": False, "reference_set": found}
        if params["dest"] is not None:
            dest, content = params["dest"], encode(found)
            before = read_file(dest).decode("utf-8", "replace") if os.path.exists(dest) else ""
            result["changed"] = write(Tools(ModuleRunner(module)), content, dest, params["key"], module.check_mode)
            result["dest"] = dest
            result["diff"] = {"before": before, "after": content.decode(), "before_header": dest, "after_header": dest}
    except FdeError as error:
        module.fail_json(msg=str(error), subject=error.subject, cause=error.cause, remedy=error.remedy)
    except OSError as error:
        module.fail_json(msg=f"{params['dest']}: it cannot be written: {error.strerror}. Name another place")
    module.exit_json(**result)


if __name__ == "__main__":
    main()
