#!/usr/bin/python
# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: enrol
short_description: Attest a machine and make its TPM known to the ledger
version_added: 0.1.0
author:
  - The cvm.fde authors (@cvm-fde)
description:
  - Attests a machine as M(cvm.fde.attest) does. When it is trusted, the keys of its TPM become those of this host
    in the
    ledger. From then on M(cvm.fde.attest) with that ledger notices another TPM behind this host, this TPM behind
    another
    host, and a TPM that went back.
  - A machine that is not trusted is not enrolled and the task fails; the verdict is recorded all the same.
  - A host that is enrolled already is attested again and nothing changes. One that shows another TPM is not trusted
    until
    an operator approves it by M(cvm.fde.decision).
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
        (RV(cvm.fde.attest#module:claims.endorsement_key)). Its TPM Name, or the digest in that, is understood as well.
      - Without it any machine of the same image with a TPM of the same authorities passes for this one.
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
      - The ledger that the machine is enrolled in, the path of a SQLite file or the URL of a PostgreSQL database,
        on the
        control node. See C(docs/ledger.md).
    type: str
    required: true
  create:
    description:
      - Make the ledger where there is none.
      - Only for the very first enrolment. A ledger that is gone took the memory of every anchor with it; a new one
        in its
        place would hide that.
    type: bool
    default: false
  strategy:
    description: How the root must be assembled. By default what O(manifest) says.
    type: str
    choices: [clone, overlay, copy, ephemeral]
  pcrs:
    description: The PCRs to ask for. 4, 7, 11, 12 and 15 must be among them; 16 and 23 must not, as anyone can reset
      them.
    type: list
    elements: int
    default: [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 14, 15]
  evidence_dir:
    description:
      - A directory on the control node in which everything that the judgement rests on is kept, one file for each
        host.
      - It is made when it does not exist. Files have the mode 0600 and replace those of an earlier attestation.
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
  - SQLAlchemy >= 2.0 (on the control node)
  - tpm2-pytss (on the target)
attributes:
  check_mode:
    description: Can run in C(check_mode) and tell what it would change without changing it.
    support: full
    details:
      - The machine is attested and the ledger is asked, but nothing is recorded and no ledger is made.
  diff_mode:
    description: Shows in C(diff) mode what it changes, or would change.
    support: none
  idempotent:
    description: When run twice in a row with the same options, the second run changes nothing and says so.
    support: full
    details:
      - Every verdict is recorded anew. A change is that the ledger knows a key which it did not know before.
extends_documentation_fragment:
  - cvm.fde.attributes
  - cvm.fde.attributes.action
seealso:
  - module: cvm.fde.attest
  - module: cvm.fde.decision
  - module: cvm.fde.audit
"""

EXAMPLES = r"""
- name: Enrol a machine
  cvm.fde.enrol:
    manifest: build/manifest.json
    manifest_key: keys/manifest.pem
    endorsement_ca:
      - authorities/vtpm-ca.pem
    ledger: /var/lib/fde/ledger.db
"""

RETURN = r"""
verdict:
  description: What became of the machine. Everything else that M(cvm.fde.attest) returns is returned as well.
  returned: when the machine was asked
  type: str
  sample: trusted
keys:
  description: The keys that are known to the ledger from now on, as in RV(cvm.fde.attest#module:keys).
  returned: when the machine was asked
  type: dict
report:
  description: The host's entry in the fleet's report, see C(docs/reference-report.md).
  returned: when the machine was asked
  type: dict
"""
