#!/usr/bin/python
# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: root_info
short_description: Show the encrypted root of a running system
version_added: 0.1.0
author:
  - The cvm.fde authors (!UNKNOWN)
description:
  - Returns the strategy, the mappings, the progress of hydration, the ids of the volume, the anchor in the TPM and the
    last refusal, as the system itself sees them.
  - This is no proof of anything; for that use M(cvm.fde.attest).
  - Needs root and, for the anchor, the Python library tpm2-pytss.
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
seealso:
  - module: cvm.fde.attest
"""

EXAMPLES = r"""
- name: Look at the root
  cvm.fde.root_info:
  register: root

- name: Wait until the whole root is in the encrypted volume and fills it
  cvm.fde.root_info:
  register: root
  until: root.root.hydration.percent == 100 and root.root.written.bytes == root.root.written.of
  retries: 60
  delay: 10
"""

RETURN = r"""
root:
  description: What is known about the root; what cannot be found out is null.
  returned: success
  type: dict
  contains:
    strategy:
      description: How the root was made writable.
      type: str
      returned: always
      sample: clone
    root_hash:
      description: Root hash of the sealed image.
      type: str
      returned: always
    mappings:
      description: The active device-mapper tables by name, without keys.
      type: dict
      returned: always
    hydration:
      description: Regions of the root that are in the volume, of how many, and whether copying is under way.
      type: dict
      returned: always
      sample: {"hydrated": 12800, "total": 16384, "percent": 78.1, "running": true}
    written:
      description:
        - How many bytes of the volume the root has, and how many it will have. In a volume with authentication a sector
          cannot be read before it was written, so the root grows as far as that.
        - Null where there is no volume.
      type: dict
      returned: always
      sample: {"bytes": 1610612736, "of": 32212254720}
    overlay:
      description:
        - With the strategy V(overlay), how many files of the image are hidden by the instance's own (C(masked)), and
          those of them that an update of the image made outdated (C(outdated)), by path, with the reason V(changed),
          V(added), V(unrecorded) or V(uncompared).
        - Null with other strategies.
      type: dict
      returned: always
      sample: {"root_hash": "d2f1c0", "masked": 212, "outdated": {"usr/bin/ssh": "changed"}}
    device:
      description:
        - The partition below the open volume, as the kernel names it. Any other disk may carry the label or the id that
          a link below C(/dev/disk) goes by.
      type: str
      returned: always
      sample: /dev/vda4
    luks_uuid:
      description: UUID of the volume.
      type: str
      returned: always
    anchor:
      description:
        - The anchor in the TPM. Its C(standing) is V(ours) when its Name is the one that the image's policy key gives.
        - C(volume_key_id) is the id of the volume key, which PCR 15 must show as well.
        - C(matches) tells whether the header that is on the disk now is one that the next boot accepts. Where it is
          not, somebody changed the header; look at the change, then commit it with M(cvm.fde.root_commit).
        - C(refusals) counts the boots that were refused, C(last_refusal) is the code of the newest, C(recoveries)
          counts how often the volume was recovered. C(svn) is the highest security version of an image that came up.
      type: dict
      returned: always
    header_digest:
      description: Digest of the header that is on the disk now.
      type: str
      returned: always
    refusal:
      description:
        - The last refusal in words, from the EFI system partition. The host can change them; what can be attested is
          the code in the anchor.
      type: dict
      returned: always
    problems:
      description: Why something could not be found out.
      type: list
      elements: str
      returned: always
"""

from ansible.module_utils.basic import AnsibleModule

from ..module_utils.agent.status import status
from ..module_utils.errors import FdeError
from ..module_utils.runner import ModuleRunner


def main() -> None:
    module = AnsibleModule(argument_spec={}, supports_check_mode=True)
    try:
        module.exit_json(changed=False, root=status(ModuleRunner(module)))
    except FdeError as error:
        module.fail_json(msg=str(error), subject=error.subject, cause=error.cause, remedy=error.remedy)


if __name__ == "__main__":
    main()
