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
  - "V(trusted) is said of the TPM that answered. Without O(endorsement_key) nothing says that it is the TPM of this
    machine: a host that was taken over can pass the questions on to an honest machine of the same image and return that
    one's answers. RV(claims.identity) says which of both a result is."
  - Revocation lists of endorsement certificates are not consulted.
options:
  manifest:
    description:
      - The manifests of the sealed images that the machine may run, on the control node; often there is one. Each is
        the name of a reference set, see C(docs/appraisal-policy.md).
      - The machine is judged by the one whose PCR 11 it quotes.
    type: list
    elements: path
    required: true
  manifest_signature:
    description: The signatures of O(manifest), in the same order. By default the same paths with the suffix C(.sig).
    type: list
    elements: path
  manifest_key:
    description: The public key or certificate (PEM) that O(manifest) must be signed by, on the control node.
    type: path
    required: true
  endorsement_ca:
    description:
      - Files (PEM) with the authorities that may vouch for TPMs, on the control node. Every certificate in them is
        trusted as it is.
      - Without one no machine is better than V(unknown) on the road V(ek-certificate).
    type: list
    elements: path
    default: []
  platform_ca:
    description:
      - Files (PEM) with the authorities of each cloud's platform, on the control node, by the road that they count on.
        None counts on another road, so whoever vouches for TPMs cannot make up a chip.
      - Without those of a road no machine is better than V(unknown) on it.
    type: dict
    suboptions:
      gcp_ak_certificate:
        description: Google's root (C(EK/AK CA Root)) and its intermediate, for the road V(gcp-ak-certificate).
        type: list
        elements: path
        default: []
      azure_snp:
        description: AMD's roots (ARK), and its signing keys (ASK) where the machines do not send them, for the road
          V(azure-snp).
        type: list
        elements: path
        default: []
      azure_tdx:
        description: Intel's root (C(Intel SGX Root CA)), for the road V(azure-tdx).
        type: list
        elements: path
        default: []
      aws_nitrotpm:
        description: AWS's root (C(aws.nitro-enclaves)), for the road V(aws-nitrotpm).
        type: list
        elements: path
        default: []
  endorsement_key:
    description:
      - The endorsement key that the machine is known by, as an earlier attestation returned it
        (RV(claims.endorsement_key)). Its TPM Name, or the digest in that, is understood as well.
      - Without it any machine of the same image with a TPM of the same authorities passes for this one, and
        RV(claims.identity) is V(unpinned).
    type: str
  policy:
    description:
      - The appraisal policy, a YAML file on the control node, see C(docs/appraisal-policy.md).
      - By default every check must pass.
    type: path
  roads:
    description:
      - By which roads the attestation key may come to be trusted, see C(docs/roads-to-trust.md). They are
        alternatives; the first one that leads to the key counts.
      - By default those of O(policy), and V(ek-certificate) where there is none. Where there is one this can only
        narrow it.
      - V(ek-certificate) takes one of O(endorsement_ca) to vouch for the endorsement key.
      - V(gcp-ak-certificate), V(azure-snp), V(azure-tdx) and V(aws-nitrotpm) take what the platform gives its machines,
        under the authorities of that road in O(platform_ca).
      - V(pinned-ek) takes O(pinned_ek).
      - V(first-use) takes an operator's approval, recorded in O(ledger) by M(cvm.fde.decision). It is the weakest
        road.
    type: list
    elements: str
    choices:
      - ek-certificate
      - gcp-ak-certificate
      - azure-snp
      - azure-tdx
      - aws-nitrotpm
      - pinned-ek
      - first-use
  pinned_ek:
    description:
      - The endorsement keys that this machine may have, each as the SHA-256 digest of its SubjectPublicKeyInfo in
        hexadecimal. A TPM Name, or the digest in it, is understood as well.
      - Set it for each host in the inventory. It needs V(pinned-ek) among O(roads).
      - Beside another road it is no restriction; O(endorsement_key) is one.
    type: list
    elements: str
    default: []
  tdx_collateral:
    description:
      - What Intel says of the firmware of its platforms, as its provisioning certification service (or a cache of it)
        answers, on the control node. For the road V(azure-tdx).
      - With it a machine whose firmware was revoked is refused, and the result tells Intel's status of
        it, which O(policy) may ask for (C(hardware.firmware_status)). Documents past their next update are refused.
      - Without it the remark C(quote-collateral) says that nobody looked.
    type: dict
    suboptions:
      tcb_info:
        description: Signed TCB info (TDX, version 3), one file for each kind of platform (FMSPC) in the fleet.
        type: list
        elements: path
        required: true
      enclave_identity:
        description: Signed identity of the quoting enclave (TD_QE, version 2).
        type: path
        required: true
      issuer_chain:
        description: The certificates of the signer (PEM). The service's header C(TCB-Info-Issuer-Chain) may be given
          as it is, percent-encoded.
        type: path
        required: true
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
  strategy:
    description: How the root must be assembled. By default what O(manifest) says.
    type: str
    choices: [clone, overlay, copy, ephemeral]
  pcrs:
    description: The PCRs to ask for. 4, 7, 9 and 11 to 15 must be among them; 16 and 23 must not, as anyone can
      reset them.
    type: list
    elements: int
    default: [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 14, 15]
  require:
    description:
      - With V(trusted), the task fails for every other verdict.
      - With V(nothing), the task succeeds whatever the verdict, and it is up to the play to look at it.
    type: str
    choices: [trusted, nothing]
    default: trusted
  evidence_dir:
    description:
      - A directory on the control node in which everything that the judgement rests on is kept, one file for each
        host.
      - It is made when it does not exist. Files have the mode 0600 and replace those of an earlier attestation.
      - In check mode nothing is kept.
    type: path
  timeout:
    description:
      - How many seconds the machine has for all its answers. One that takes longer is V(unknown), and its connection
        is given up.
      - However much a machine sends, the process that asks it allocates no more than 64 MiB for that, and refuses an
        answer of more than 4 MiB.
    type: int
    default: 300
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
      - By default the copy that the boot agent keeps in memory, or the partition with the label C(fde).
    type: path
  metadata_service:
    description:
      - The address of Azure's metadata service, as the target reaches it; the empty text asks nobody. It is asked on
        the roads V(azure-snp) and V(azure-tdx) only.
      - By default C(http://169.254.169.254).
    type: str
requirements:
  - cryptography (on the control node)
  - SQLAlchemy >= 2.0 (on the control node, with O(ledger))
  - tpm2-pytss (on the target)
attributes:
  check_mode:
    support: full
    details:
      - The machine is asked and judged all the same, as that changes nothing on it. Evidence is not kept.
  diff_mode:
    support: none
    details:
      - The only thing it can write is a file of evidence, which is another one after each attestation.
  idempotent:
    support: partial
    details:
      - It changes nothing on the target and never says so. With O(evidence_dir) each run replaces the host's file.
extends_documentation_fragment:
  - cvm.fde.attributes
  - cvm.fde.attributes.action
notes:
  - "What one machine can make the control node keep in memory is bounded: 4 MiB for each of four logs, 512 KiB for
    the evidence token, and what Ansible itself holds of a module's output."
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
  description: Every check in the order of judgement, with its name, its status (passed, failed or unknown) and the
    reason.
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
      description: V(pinned) when the machine proved to have O(endorsement_key); V(unpinned) when nothing says which
        machine answered.
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
