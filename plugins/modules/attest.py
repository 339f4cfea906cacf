#!/usr/bin/python
# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: attest
short_description: Attest a machine, its root and the making of its volume key
version_added: 0.1.0
author:
  - The cvm.fde authors (!UNKNOWN)
description:
  - Asks the TPM of a machine to prove what was started on it, what its root is made of, and where the key of its
    encrypted volume was made. The answers are judged on the control node; nothing the machine says is believed
    before it is verified.
  - The machine is asked twice. First for the keys of its TPM; then, with a nonce and a credential that the control
    node made for these keys, for a quote, the event logs, the certified anchor and the evidence that the volume
    carries.
  - The verdict is V(trusted) when every check passed, V(untrusted) when something contradicts what was expected,
    V(unexplained) when all signed values are genuine but the logs do not lead to them, and V(unknown) when something
    needed for a judgement is missing.
  - "V(trusted) is said of the TPM that answered. Without O(endorsement_key), a pinned key or O(ledger) nothing says
    that it is the TPM of this machine: a host that was taken over can pass the questions on to an honest machine of
    the same image and return that one's answers. RV(claims.identity) says which of both a result is."
  - Revocation lists of endorsement certificates are not consulted.
options:
  ledger:
    description:
      - The ledger that the verdict is recorded in, with everything that it rests on. The path of a SQLite file or the
        URL of a PostgreSQL database, on the control node, see C(docs/ledger.md).
      - Three checks join the verdict. With C(identity) a host is trusted only if it was enrolled and its keys are those
        that the ledger knows, and no other host's. With C(anchor_freshness) its anchor must not be behind the highest
        one that was ever seen.
        With C(unique_volume_key) no other host may have shown a volume of the same key.
      - It must exist; M(cvm.fde.enrol) can make one. In check mode it is asked, but nothing is recorded.
    type: str
  require:
    description:
      - With V(trusted), the task fails for every other verdict.
      - With V(nothing), the task succeeds whatever the verdict, and it is up to the play to look at it.
    type: str
    choices: [trusted, nothing]
    default: trusted
requirements:
  - SQLAlchemy >= 2.0 (on the control node, with O(ledger))
attributes:
  check_mode:
    support: full
    details:
      - The machine is asked and judged all the same, as that changes nothing on it. Evidence is not kept.
  diff_mode:
    support: none
    details:
      - It can write a file of evidence and a record of O(ledger), which are others after each attestation.
  idempotent:
    support: partial
    details:
      - It changes nothing on the target and never says so. With O(evidence_dir) each run replaces the host's file, and
        with O(ledger) each run adds a record.
extends_documentation_fragment:
  - cvm.fde.attributes
  - cvm.fde.attributes.action
  - cvm.fde.appraisal
  - cvm.fde.platform_ca
  - cvm.fde.sources
notes:
  - "What one machine can make the control node keep in memory is bounded: 4 MiB for each of six logs, 512 KiB for
    each of two evidence tokens, and what Ansible itself holds of a module's output."
seealso:
  - module: cvm.fde.enrol
  - module: cvm.fde.decision
  - module: cvm.fde.audit
  - module: cvm.fde.fleet_report
  - plugin: cvm.fde.trusted
    plugin_type: test
"""

EXAMPLES = r"""
- name: Go on only with machines that are what they should be
  cvm.fde.attest:
    manifest: build/manifest.json
    manifest_key: keys/manifest.pem
    endorsement_ca:
      - authorities/vtpm-ca.pem

- name: Look at a machine without failing
  cvm.fde.attest:
    manifest: build/manifest.json
    manifest_key: keys/manifest.pem
    endorsement_ca:
      - authorities/vtpm-ca.pem
    require: nothing
    evidence_dir: evidence
  register: attested

- name: Judge a fleet in the middle of an update by both images and the operator's own demands
  cvm.fde.attest:
    manifest: [build/old/manifest.json, build/new/manifest.json]
    manifest_key: keys/manifest.pem
    platform_ca:
      azure_snp: [authorities/amd.pem]
    policy: policy.yml

- name: Remember every verdict, and notice a TPM that went back or changed hosts
  cvm.fde.attest:
    manifest: build/manifest.json
    manifest_key: keys/manifest.pem
    endorsement_ca:
      - authorities/vtpm-ca.pem
    ledger: /var/lib/fde/ledger.db

- name: Attest a machine whose TPM has no certificate, by the key that the platform's control plane names
  cvm.fde.attest:
    manifest: build/manifest.json
    manifest_key: keys/manifest.pem
    roads: [pinned-ek]
    pinned_ek:
      - 3f0c1a9d5d1c64c1f2a9e6b1a4d9c0c35b1f7cc6f6d3d8a6b8e8a1d1f6a7b2c4
"""

RETURN = r"""
verdict:
  description: What became of the machine.
  returned: when the machine was asked
  type: str
  sample: trusted
road:
  description: How the attestation key came to be trusted, one of O(roads); V(none) when it did not.
  returned: when the machine was asked
  type: str
  sample: ek-certificate
checks:
  description: Every check in the order of judgement, with its name, its status (passed, failed, unknown or waived)
    and the reason.
  returned: when the machine was asked
  type: list
  elements: dict
  sample: [{"name": "quote_nonce", "status": "passed", "reason": "it answers the nonce of this round"}]
ear:
  description: The result in the manner of EAR, with one status for each part of the machine, see
    C(docs/appraisal-policy.md). It is not signed.
  returned: when the machine was asked
  type: dict
policy:
  description: Name of the appraisal policy, and the SHA-256 of what it demands.
  returned: when the machine was asked
  type: dict
  sample: {"name": "default", "sha256": "0b5c9e…"}
freshness:
  description: The level of freshness that was reached, V(boot), V(header), V(ledger) or V(data).
  returned: when the machine was asked
  type: str
  sample: header
trust:
  description: What the road established and what was not checked on it, see C(docs/roads-to-trust.md). Null on the
    default road, and when none led to the key.
  returned: when the machine was asked
  type: dict
claims:
  description: What the passed checks establish; what none of them does is null.
  returned: when the machine was asked
  type: dict
  contains:
    identity:
      description: V(pinned) when the machine proved to have the key that it is known by, by O(endorsement_key),
        O(pinned_ek) or O(ledger); V(unpinned) when nothing says which machine answered.
      type: str
      returned: always
    endorsement_key:
      description: What the machine's TPM is known by, SHA-256 of its endorsement key's SubjectPublicKeyInfo.
      type: str
      returned: always
    attestation_key:
      description: SHA-256 of the SubjectPublicKeyInfo of the attestation key, which is the same whichever endorsement
        key the TPM shows.
      type: str
      returned: always
    image:
      description: Name of the reference set that matched, which is the name of the image in its manifest.
      type: str
      returned: always
    made_by:
      description: Name of the image whose initrd made the volume; another one than RV(claims.image) after an update.
      type: str
      returned: always
    strategy:
      description: How the root was assembled when the volume was made.
      type: str
      returned: always
    root_hash:
      description: Root hash of the image that the volume was made from.
      type: str
      returned: always
    volume_key_id:
      description: What the key of the volume is known by. It says nothing about the key itself.
      type: str
      returned: always
    luks_uuid:
      description: UUID of the volume.
      type: str
      returned: always
    partition_uuid:
      description: UUID of the partition of the volume.
      type: str
      returned: always
    secure_boot:
      description: Whether Secure Boot was on in this boot.
      type: bool
      returned: always
    pcr_policy:
      description: Fingerprint of the key whose policies can write the anchor.
      type: str
      returned: always
    anchor:
      description: What the TPM remembers about the volume, and whether that fits everything else.
      type: dict
      returned: always
keys:
  description:
    - What the keys are known by that the machine proved to hold in one TPM, SHA-256 of the SubjectPublicKeyInfo. Null
      when it proved nothing.
    - That the TPM is a genuine one is what RV(road) says.
  returned: when the machine was asked
  type: dict
  contains:
    ek:
      description: The endorsement key. It is what an operator approves with M(cvm.fde.decision).
      type: str
      returned: success
    ak:
      description: The attestation key.
      type: str
      returned: success
report:
  description: The host's entry in the fleet's report, see C(docs/reference-report.md).
  returned: when the machine was asked
  type: dict
evidence_file:
  description: Where the evidence was kept on the control node. Of answers that cannot be read it is what came, up to
    256 KiB.
  returned: when O(evidence_dir) is given, the machine answered, and it is not check mode
  type: str
evidence_sha256:
  description: SHA-256 of the kept evidence.
  returned: when the machine answered
  type: str
"""
