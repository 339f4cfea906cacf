#!/usr/bin/python
# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: luks2_header_info
short_description: Read and judge the LUKS2 header of a device or file
version_added: 0.1.0
author:
  - The cvm.fde authors (!UNKNOWN)
description:
  - Reads the header area once, parses both copies of the header without the help of any other program, and compares
    every field with what a volume of this collection has.
  - The disk may be in anybody's hands. Nothing is opened, mounted or written, and a malformed or hostile header is a
    result, not a failure. The module fails only when the device cannot be read.
  - Works on an image at the control node as well as on a device of a target, and with O(offset) on a partition within
    an image, without a loop device.
options:
  path:
    description: The block device or file.
    type: path
    required: true
  offset:
    description:
      - Where the volume begins in the device or file, in bytes, which is a multiple of 512.
      - C(sfdisk --json) shows the start of a partition in sectors; multiply it by the size of a sector.
      - That the volume fits into what is left of the device behind it is part of the judgement.
    type: int
    default: 0
  profile:
    description:
      - The kind of volume to expect. V(authenticated) is C(aes-xts-plain64) with C(hmac(sha256)), V(aegis) is
        C(aegis128-random), V(confidential) is C(aes-xts-plain64) without integrity protection.
    type: str
    choices: [authenticated, aegis, confidential]
    default: authenticated
  purpose:
    description:
      - V(root) expects the root volume of an instance, with a TPM keyslot bound to PCR 7 and 12 and to signed values of
        PCR 11, and with the evidence of its creation. While one TPM keyslot replaces another there may be two, after a
        recovery its evidence is there too, and there may be a recovery key.
      - V(data) accepts any number of TPM keyslots, recovery keys and passphrases. A TPM keyslot must be bound to
        something, since one with an empty policy opens for every system on that TPM.
    type: str
    choices: [root, data]
    default: data
  uuid:
    description: The UUID to expect. Without it any is accepted.
    type: str
  public_key:
    description:
      - With O(purpose=root), the public key in PEM form to which the TPM keyslot must be bound.
      - Without it any is accepted.
    type: str
  data_offset:
    description:
      - Where the data must begin, in bytes. The digest covers everything before it.
      - Volumes that cryptsetup makes with its own defaults begin at 16777216.
    type: int
    default: 8388608
  metadata_size:
    description:
      - The size that one copy of the header must have, in bytes.
      - Volumes that cryptsetup makes with its own defaults have 16384.
    type: int
    default: 262144
attributes:
  check_mode:
    support: full
  diff_mode:
    support: N/A
  idempotent:
    support: full
extends_documentation_fragment:
  - cvm.fde.attributes
  - cvm.fde.attributes.info
"""

EXAMPLES = r"""
- name: Find out which partition the root volume of an instance lies on
  cvm.fde.root_info:
  register: instance

- name: Look at its header
  cvm.fde.luks2_header_info:
    path: "{{ instance.root.device }}"
    purpose: root
  register: volume

- name: Look at a partition of a disk image on the control node
  cvm.fde.luks2_header_info:
    path: /var/lib/images/returned.raw
    offset: "{{ 264192 * 512 }}"
  register: volume
  delegate_to: localhost

- name: Refuse a disk that somebody prepared
  cvm.fde.luks2_header_info:
    path: /var/lib/images/returned.raw
    profile: confidential
    data_offset: 16777216
    metadata_size: 16384
  register: volume
  failed_when: volume.header.present and not volume.header.accepted
  delegate_to: localhost
"""

RETURN = r"""
header:
  description: What was found.
  returned: success
  type: dict
  contains:
    present:
      description: Whether there is anything like a LUKS header, sound or not.
      type: bool
      returned: always
    digest:
      description: Digest of the header area, as the TPM remembers it; null when the device ends inside the area.
      type: str
      returned: always
    sound:
      description: Whether both copies of the header are well-formed and agree.
      type: bool
      returned: always
    defect:
      description: Why the header is not sound, with a C(code) that does not change between versions.
      type: dict
      returned: always
      sample: {"code": "checksum", "message": "/dev/sdb: its LUKS2 header is malformed (the checksum of ... is wrong)"}
    uuid:
      description: UUID of the volume, null without a sound header. The same holds for what follows.
      type: str
      returned: always
    label:
      description: Label of the volume.
      type: str
      returned: always
    sequence_id:
      description: Counts the changes of the header.
      type: int
      returned: always
    metadata_size:
      description: Size of one copy of the header, in bytes.
      type: int
      returned: always
    metadata:
      description:
        - The JSON of the header; of tokens only their types and keyslots.
        - Long texts are cut, and what is not printable is escaped.
      type: dict
      returned: always
    accepted:
      description: Whether the header is sound and every field is as expected.
      type: bool
      returned: always
    violations:
      description: The fields that are not as expected, at most 49, and one at least for each reason there is.
      type: list
      elements: dict
      returned: always
      contains:
        reason:
          description: Why the field is refused; does not change between versions.
          type: str
          returned: always
          sample: null-cipher
        where:
          description: Place in the JSON.
          type: str
          returned: always
          sample: segments.0.encryption
        found:
          description: What was found there, shortened.
          type: str
          returned: always
          sample: "'cipher_null-ecb'"
    more_violations:
      description: How many further fields are not as expected.
      type: int
      returned: always
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ..module_utils.errors import FdeError
from ..module_utils.luks2.inspection import inspect
from ..module_utils.luks2.policy import Expectation, data_volume, root_volume
from ..module_utils.luks2.profile import PROFILES, Layout


def expectation(parameters: dict[str, Any]) -> Expectation:
    """Translate the module's options into what the header must say."""
    layout = Layout(offset=parameters["data_offset"], metadata_size=parameters["metadata_size"])
    profile = PROFILES[parameters["profile"]]
    if parameters["purpose"] == "root":
        key = parameters["public_key"]
        pem = None if key is None else key.encode()
        return root_volume(uuid=parameters["uuid"], public_key=pem, profile=profile, layout=layout)
    return data_volume(uuid=parameters["uuid"], profile=profile, layout=layout)


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "offset": {"type": "int", "default": 0},
            "profile": {"choices": ["authenticated", "aegis", "confidential"], "default": "authenticated"},
            "purpose": {"choices": ["root", "data"], "default": "data"},
            "uuid": {},
            "public_key": {},
            "data_offset": {"type": "int", "default": 8 << 20},
            "metadata_size": {"type": "int", "default": 256 << 10},
        },
        supports_check_mode=True,
    )
    if not 0 < module.params["data_offset"] <= 1 << 30:
        module.fail_json(msg="data_offset must be between 1 byte and 1 GiB")
    # What is beyond the largest file offset has no place on any device.
    if not 0 <= module.params["offset"] < 1 << 62 or module.params["offset"] % 512:
        module.fail_json(msg="offset must be a multiple of 512 bytes, and not negative")
    try:
        found = inspect(module.params["path"], expectation(module.params), module.params["offset"])
    except FdeError as error:
        module.fail_json(msg=str(error), subject=error.subject, cause=error.cause, remedy=error.remedy)
    module.exit_json(changed=False, header=found.report())


if __name__ == "__main__":
    main()
