#!/usr/bin/python
# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: luks2_volume
short_description: Make, unlock, mount, change and erase encrypted data volumes
version_added: 0.1.0
author:
  - The cvm.fde authors (@cvm-fde)
description:
  - Brings a list of data volumes, each a LUKS2 volume on a device of its own, into the wanted state in one call.
  - A device with anything on it is never formatted. The module names what it found and stops, unless O(volumes[].force)
    names the device.
  - A volume is opened from a copy of its header in RAM, after the header was compared with what was remembered in
    C(/etc/cvm-fde/volumes) and with a list of all that a header may say. The same happens at every boot.
  - An interrupted creation leaves nothing, or a volume that the next run makes anew. All volumes are looked at before
    anything is changed; what is refused for one of them is refused for all. Each is looked at again when its turn
    comes, and the run ends at one that is not as it was.
options:
  volumes:
    description: The volumes.
    type: list
    elements: dict
    required: true
    suboptions:
      name:
        description: Name of the volume, opened as C(/dev/mapper/NAME). Lower-case letters, digits and V(_).
        type: str
        required: true
      device:
        description: The disk, partition or logical volume, by a path below C(/dev/disk) that stays the same.
        type: path
        required: true
      state:
        description:
          - V(mounted) makes the volume where there is none, opens and mounts it. V(open) does not mount it.
          - V(closed) unmounts and closes it, and makes nothing.
          - V(erased) destroys its keys, proves by reading back that they are gone, and forgets it.
        type: str
        choices: [mounted, open, closed, erased]
        default: mounted
      profile:
        description:
          - V(authenticated) is C(aes-xts-plain64) with C(hmac(sha256)), V(aegis) is C(aegis128-random) where the
            kernel has it, V(confidential) is C(aes-xts-plain64) without protection against changes.
          - Cannot be changed later, nor can the size of the first two.
        type: str
        choices: [aegis, authenticated, confidential]
        default: authenticated
      file_system:
        description: What is made on a new volume.
        type: str
        choices: [ext4, xfs, btrfs, none]
        default: ext4
      label:
        description: Label of a new file system.
        type: str
        default: ""
      format_options:
        description: Further arguments for the program that makes the file system.
        type: list
        elements: str
        default: []
      journal:
        description: Whether dm-integrity keeps one, as with V(auto). Without it a power cut can ruin the volume.
        type: str
        choices: [auto, always, never]
        default: auto
      wipe:
        description:
          - Whether every sector is written when the volume is made, which takes as long as writing the whole device.
          - With V(auto) every volume with authentication. There a sector that was never written cannot be read, and
            programs that read beside the file system's blocks (C(e2fsck), C(btrfs scrub), C(xfs_repair)) would report
            sound data as unreadable.
        type: str
        choices: [auto, always, never]
        default: auto
      size:
        description: The least size of the device. A smaller one is not the right one.
        type: bytes
        default: "0"
      mount:
        description: Where the file system is mounted.
        type: dict
        suboptions:
          path:
            description: The mount point, without links, C(.) and doubled slashes in it; made where it does not exist.
            type: path
            required: true
          options:
            description: Mount options.
            type: list
            elements: str
            default: []
      unlock:
        description:
          - All that unlocks the volume, at most one of each kind and policy. What is not listed is removed, after
            what is new was proven to unlock.
        type: list
        elements: dict
        default: []
        suboptions:
          method:
            description:
              - V(tpm2) needs no person, but systemd 256 or newer, as Debian 13 and RHEL 10 have it. V(recovery) is a
                random key that is made on the target and escrowed. V(passphrase) is asked for at boot unless V(tpm2) is
                listed as well.
            type: str
            choices: [tpm2, recovery, passphrase]
            required: true
          pcrs:
            description: With V(tpm2), the PCRs that must have the values of today.
            type: list
            elements: int
            default: [7]
          public_key:
            description: With V(tpm2), a file on the target with the public key (PEM) that signs values of PCRs.
            type: path
          public_key_pcrs:
            description: The PCRs whose values are signed.
            type: list
            elements: int
            default: [11]
          pcrlock:
            description: With V(tpm2), whether the policy of systemd-pcrlock must be fulfilled as well.
            type: bool
            default: false
          passphrase:
            description: The passphrase.
            type: str
      unlock_with:
        description: What opens the volume when the TPM does not. The TPM is then enrolled anew where it is listed.
        type: dict
        suboptions:
          recovery_key:
            description: The recovery key, as it was escrowed.
            type: str
          passphrase:
            description: A passphrase.
            type: str
          key_file:
            description: A file on the target whose whole content is the key.
            type: path
      boot:
        description: Whether the volume is unlocked and mounted at boot.
        type: bool
        default: true
      nofail:
        description: Whether a boot goes on without the volume.
        type: bool
        default: true
      force:
        description:
          - Serial number, WWN or UUID of the device, or the UUID of what is on it. Everything on it may then be lost.
          - An encrypted volume is given up by its own UUID only.
        type: str
      adopt:
        description:
          - Accept a header that is not remembered here, as after the disk moved to another machine, or another
            program changed it. O(volumes[].unlock_with) must open it, which proves that it is the owner's.
        type: bool
        default: false
  tpm2_device:
    description: The TPM as systemd names it.
    type: str
    default: auto
  escrow:
    description: Where recovery keys go. They are encrypted to these certificates before they leave the target.
    type: dict
    suboptions:
      certificates:
        description: Files on the control node (PEM), one certificate each. Any of their keys opens a recovery key.
        type: list
        elements: path
        required: true
      directory:
        description: Directory on the control node.
        type: path
      store_with:
        description: Lookup plugin that stores and returns the encrypted key, in place of a directory.
        type: str
      options:
        description: Options of the plugin.
        type: dict
        default: {}
  agent: {description: Set by the action plugin; do not set it yourself., type: path}
  host: {description: Set by the action plugin; do not set it yourself., type: str}
  certificates: {description: Set by the action plugin., type: list, elements: str, default: []}
  escrowed: {description: Set by the action plugin., type: dict, default: {}}
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
  - module: cvm.fde.luks2_header_info
"""

EXAMPLES = r"""
- name: A data disk that the TPM unlocks
  cvm.fde.luks2_volume:
    volumes:
      - name: data
        device: /dev/disk/by-id/virtio-DATA0001
        mount:
          path: /srv/data
        unlock:
          - method: tpm2
          - method: recovery
    escrow:
      certificates: [escrow.pem]
      directory: escrow

- name: Never read it again
  cvm.fde.luks2_volume:
    volumes:
      - name: data
        device: /dev/disk/by-id/virtio-DATA0001
        state: erased
"""

RETURN = r"""
volumes:
  description:
    - One entry for each volume, with C(name), C(device), C(node), C(size), C(uuid), C(profile), C(journal),
      C(state_before), C(state), C(mounted_at), C(file_system), C(unlock), C(escrow), C(steps) and C(warnings).
  returned: success
  type: list
  elements: dict
  sample:
    - name: data
      state_before: absent
      state: mounted
      unlock: [tpm2 (PCR 7), recovery]
      steps: [{action: pin, subject: initializing}]
steps:
  description: What was done to the system besides the volumes.
  returned: success
  type: list
  elements: dict
"""

from ansible.module_utils.basic import AnsibleModule

from ..module_utils.errors import FdeError
from ..module_utils.runner import ModuleRunner
from ..module_utils.volume import installation, volumes
from ..module_utils.volume.confirmation import confirm
from ..module_utils.volume.machine import Machine
from ..module_utils.volume.options import ARGUMENTS, wanted_volumes


def run(module: AnsibleModule, machine: Machine) -> None:
    """Plan, and unless in check mode apply; ends the module. Raises ``FdeError``."""
    if module.params["escrowed"]:
        for name, digest in sorted(module.params["escrowed"].items()):
            confirm(machine, name, digest)
        module.exit_json(changed=False)
    wanted = wanted_volumes(module.params)
    planned = volumes.plan_all(machine, wanted, foretelling=module.check_mode)
    steps: list[dict[str, str]] = []
    if installation.needs_agent(planned):
        steps = installation.install(machine, module.params["agent"], module.check_mode)
    reports = volumes.foretell(planned) if module.check_mode else volumes.apply_all(machine, planned)
    for report in reports:
        for warning in report["warnings"]:
            module.warn(f"{report['name']}: {warning}")
    changed = bool(steps) or any(one.plan.steps for one in planned)
    diff = installation.difference(steps) + volumes.difference(planned, reports)
    module.exit_json(changed=changed, volumes=reports, steps=steps, diff=diff)


def main() -> None:
    module = AnsibleModule(argument_spec=dict(ARGUMENTS), supports_check_mode=True)
    if module.params["host"] is None:
        module.fail_json(msg="cvm.fde.luks2_volume was not started through its action plugin, which brings the agent")
    machine = Machine(ModuleRunner(module))
    try:
        with volumes.exclusively(machine) as guarded:
            run(module, guarded)
    except FdeError as error:
        module.fail_json(
            msg=str(error),
            subject=error.subject,
            cause=error.cause,
            remedy=error.remedy,
            code=getattr(error, "code", None),
            volumes=list(getattr(error, "reports", ())),
        )


if __name__ == "__main__":
    main()
