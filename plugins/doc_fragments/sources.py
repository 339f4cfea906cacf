# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where a machine has what it answers with."""

from __future__ import annotations


class ModuleDocFragment:
    DOCUMENTATION = r"""
options:
  tcti:
    description: How to reach the TPM on the target.
    type: str
    default: device:/dev/tpmrm0
  firmware_log:
    description: The firmware's event log on the target.
    type: path
    default: /sys/kernel/security/tpm0/binary_bios_measurements
  userspace_log:
    description: The event log of systemd on the target.
    type: path
    default: /run/log/systemd/tpm2-measure.log
  header:
    description:
      - Where the header of the encrypted volume is read from on the target.
      - By default the copy that the boot agent keeps in memory, or the device below the volume C(fde-crypt).
    type: path
"""
