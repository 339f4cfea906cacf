#!/usr/bin/python
# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: root_recovery_key
short_description: Give the root volume a recovery key that is kept in escrow
version_added: 0.1.0
author:
  - The cvm.fde authors (!UNKNOWN)
description:
  - The recovery key is made on the target and shown to nobody. It leaves the target encrypted to certificates of yours
    and is stored on the control node, or by a lookup plugin of yours, and read back. Only then does the target rely on
    it and remove an older one.
  - The key is proven to unlock the volume before anything is written, and the TPM remembers the changed header, so that
    the next boot accepts it.
  - A volume that has an escrowed key keeps it unless O(rotate) is set.
  - A run that is interrupted may leave a key that the control node has stored and the target does not rely on yet. The
    next run puts just that key into escrow, and then makes a new one where O(rotate) is set or the certificates are
    others.
options:
  escrow:
    description: Where the recovery key goes.
    type: dict
    required: true
    suboptions:
      certificates:
        description: Files on the control node (PEM), one certificate each. Any of their keys opens the recovery key.
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
  rotate:
    description: Make a new recovery key although there is one. The old one stops to work.
    type: bool
    default: false
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
    support: full
    details:
      - With O(rotate), every run makes a new key.
extends_documentation_fragment:
  - cvm.fde.attributes
  - cvm.fde.attributes.action
seealso:
  - module: cvm.fde.root_commit
  - module: cvm.fde.enrol
"""

EXAMPLES = r"""
- name: Keep a recovery key of the root in escrow
  cvm.fde.root_recovery_key:
    escrow:
      certificates: [escrow.pem]
      directory: ~/escrow

- name: Replace it after it was used at a console
  cvm.fde.root_recovery_key:
    escrow:
      certificates: [escrow.pem]
      directory: ~/escrow
    rotate: true
"""

RETURN = r"""
escrow:
  description: The envelope that holds the key, and where it is kept; null in check mode for a key that is not made yet.
  returned: success
  type: dict
  contains:
    digest:
      description: SHA-256 of the envelope.
      type: str
      returned: always
    place:
      description: The file, or the lookup plugin and the name that it was given.
      type: str
      returned: when it was stored by this run
luks_uuid:
  description: UUID of the root volume.
  returned: success
  type: str
steps:
  description: What was done, or would be done in check mode.
  returned: success
  type: list
  elements: str
  sample: ["a recovery key is made and put into escrow"]
"""
