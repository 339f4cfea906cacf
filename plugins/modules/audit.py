#!/usr/bin/python
# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: audit
short_description: Verify a ledger and reach its verdicts again
version_added: 0.1.0
author:
  - The cvm.fde authors (@cvm-fde)
description:
  - Follows the chain of the ledger from its beginning and reads every document in it. With O(head) it also finds an end
    that was cut off, and a history that was written anew.
  - Judges recorded attestations again from the evidence that was kept, by the rules of this version of the collection
    and as of the time of then, and with what the ledger knew then. No host is asked. Attestations that were trusted
    and are not any more, that say other things than their evidence proves, or whose evidence was used before, are
    found.
  - Compares the ledger with the inventory.
  - A ledger whose chain is broken is not judged any further.
  - It runs on the control node only and needs no connection to any host. Use it with C(run_once).
options:
  head:
    description: A head of the ledger that was kept elsewhere, as an earlier audit returned it (RV(head)).
    type: str
  hosts:
    description: The hosts of the inventory, to compare with those that are enrolled. Without it nothing is compared.
    type: list
    elements: str
  manifest_keys:
    description:
      - Public keys or certificates (PEM), on the control node. One of them must have signed the manifest of each
        attestation.
      - Without it the recorded manifests are taken as they are, so whoever could write the ledger chose them.
    type: list
    elements: path
  endorsement_ca:
    description:
      - Files (PEM) with the authorities that may vouch for TPMs today, on the control node.
      - Without it those count that were recorded, so whoever could write the ledger chose them.
    type: list
    elements: path
  platform_ca:
    description:
      - Files (PEM) with the authorities of each cloud's platform today, on the control node, by the road that they
        count on. None counts on another road, so whoever vouches for TPMs cannot make up a chip.
      - Without it those count that were recorded, whatever O(endorsement_ca) says.
  policy:
    description:
      - The appraisal policy of today (YAML), see C(docs/appraisal-policy.md). Attestations are judged again by it
        instead of by the one that was recorded with each, and a host whose last one is older than
        C(evidence.valid_for) is doubted as V(stale).
    type: path
  history:
    description: Judge the last attestation of each host again, or all of them.
    type: str
    choices: [last, all]
    default: last
  require:
    description:
      - With V(sound), the task fails when the chain or an attestation is not sound, or a conflict of identity waits for
        an operator. Hosts that are only in the inventory or only in the ledger do not fail it.
    type: str
    choices: [sound, nothing]
    default: sound
requirements:
  - cryptography >= 42 (on the control node)
attributes: {}
extends_documentation_fragment:
  - cvm.fde.attributes
  - cvm.fde.attributes.info
  - cvm.fde.attributes.action
  - cvm.fde.ledger
  - cvm.fde.platform_ca
seealso:
  - module: cvm.fde.attest
  - module: cvm.fde.decision
"""

EXAMPLES = r"""
- name: Audit the ledger, and keep its head for the next time
  cvm.fde.audit:
    ledger: /var/lib/fde/ledger.db
    head: "{{ lookup('ansible.builtin.file', 'ledger.head') }}"
    hosts: "{{ groups['all'] }}"
    manifest_keys:
      - keys/manifest.pem
    endorsement_ca:
      - authorities/vtpm-ca.pem
    history: all
  run_once: true
  register: audited
"""

RETURN = r"""
sound:
  description: Whether nothing was found that lets the ledger be doubted.
  returned: success
  type: bool
head:
  description: The end of the ledger. Keep it elsewhere and give it to the next audit.
  returned: success
  type: str
  sample: "17:3cdd10..."
entries:
  description: How many entries the ledger has.
  returned: success
  type: int
judged:
  description: How many attestations were judged again, whatever their verdict was.
  returned: success
  type: int
unjudged:
  description: How many of the attestations that should be judged again left nothing to judge, because the machine
    answered nothing or more than is kept.
  returned: success
  type: int
chain:
  description: What is wrong with the chain, each with C(flaw), C(sequence) and C(cause), see C(docs/ledger.md).
  returned: success
  type: list
  elements: dict
omitted:
  description: How many further findings about the chain are not listed.
  returned: success
  type: int
attestations:
  description: What is wrong with attestations, each with C(doubt), C(sequence), C(host) and C(cause).
  returned: success
  type: list
  elements: dict
changes:
  description: Attestations that were not trusted and have another verdict now, each with C(sequence), C(host), the
    verdicts C(recorded) and C(now), and C(cause). They do not make the ledger less sound.
  returned: success
  type: list
  elements: dict
inventory:
  description: How inventory and ledger differ.
  returned: success
  type: dict
  contains:
    missing:
      description: Hosts that are enrolled and not in the inventory.
      type: list
      elements: str
      returned: always
    new:
      description: Hosts of the inventory that were never enrolled.
      type: list
      elements: str
      returned: always
    moved:
      description: TPMs that are behind two hosts, and hosts with another TPM than before, as sentences.
      type: list
      elements: str
      returned: always
"""
