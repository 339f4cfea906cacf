#!/usr/bin/python
# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: decision
short_description: Record an operator's decision about a host in the ledger
version_added: 0.1.0
author:
  - The cvm.fde authors (@cvm-fde)
description:
  - Says who decided what, and why. A decision stays in the ledger for ever; a later one can overrule it.
  - A decision about something that was never recorded is refused.
  - It runs on the control node only and needs no connection to any host.
options:
  decision:
    description:
      - With V(approve-identity), O(key) is this host's key and all its other keys are rejected. It settles a conflict
        of identity, and it is what the road V(first-use) of M(cvm.fde.attest) rests on.
      - With V(renew-volume), the volume of the host was really made anew, and its anchor may begin again.
      - With V(escrow-key), a recovery key of the root volume was put into escrow. O(key) is the digest of its envelope,
        as M(cvm.fde.root_recovery_key) returns it, and O(certificates) are those that open it.
      - With V(retire-host), the keys and anchors of the host count no more. Its name and its TPM can be used again.
    type: str
    choices: [approve-identity, renew-volume, retire-host, escrow-key]
    required: true
  host:
    description: The host that is decided about. By default the host of the task.
    type: str
  key:
    description:
      - For V(escrow-key) the digest of the envelope.
      - Otherwise the key to approve, as M(cvm.fde.attest) returns it (RV(cvm.fde.attest#module:keys.ek)). It must be
        one that the host has shown.
      - Compare it with what the platform's control plane says before you approve it.
    type: str
  operator:
    description: Who decides. It is recorded as it is given.
    type: str
    required: true
  reason:
    description: Why. It is recorded as it is given.
    type: str
    required: true
  certificates:
    description: For V(escrow-key), the files (PEM) on the control node whose keys open the envelope. Their fingerprints
      join the recorded reason.
    type: list
    elements: path
    default: []
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
  idempotent:
    support: full
extends_documentation_fragment:
  - cvm.fde.attributes
  - cvm.fde.attributes.action
  - cvm.fde.ledger
seealso:
  - module: cvm.fde.enrol
  - module: cvm.fde.audit
"""

EXAMPLES = r"""
- name: Approve the new TPM of a machine that was built anew
  cvm.fde.decision:
    ledger: /var/lib/fde/ledger.db
    decision: approve-identity
    key: 3f0c1a9d5d1c64c1f2a9e6b1a4d9c0c35b1f7cc6f6d3d8a6b8e8a1d1f6a7b2c4
    operator: ann
    reason: moved to a new hypervisor, ticket 4711
"""

RETURN = r"""
host:
  description: The host that was decided about.
  returned: success
  type: str
head:
  description: The head of the ledger after the decision.
  returned: success
  type: str
  sample: "17:3cdd10..."
conflicts:
  description: What is still to be decided about this host, as sentences.
  returned: success
  type: list
  elements: str
"""
