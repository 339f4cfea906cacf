# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a machine is judged by and how it is asked, the same wherever one is attested."""

from __future__ import annotations


class ModuleDocFragment:
    DOCUMENTATION = r"""
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
  endorsement_key:
    description:
      - The endorsement key that the machine is known by, as an earlier attestation returned it
        (RV(cvm.fde.attest#module:claims.endorsement_key)). Its TPM Name, or the digest in that, is understood as well.
      - Without it any machine of the same image with a TPM of the same authorities passes for this one, and
        RV(cvm.fde.attest#module:claims.identity) is V(unpinned).
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
      - V(azure-snp) and V(azure-tdx) need a O(policy) that says what may have been launched (C(hardware.id_keys),
        C(hardware.measurements)); without one they stay unknown.
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
  metadata_service:
    description:
      - The address of Azure's metadata service, as the target reaches it; the empty text asks nobody. It is asked on
        the roads V(azure-snp) and V(azure-tdx) only.
    type: str
    default: http://169.254.169.254
requirements:
  - cryptography >= 42 (on the control node)
  - tpm2-pytss (on the target)
"""
