#!/usr/bin/python
# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: attest_round
short_description: Answer one round of an attestation
version_added: 0.1.0
author:
  - The cvm.fde authors (!UNKNOWN)
description:
  - The part of M(cvm.fde.attest) that runs on the target. Use that instead; what this one returns is not judged by
    anybody.
  - It only reads. It makes the TPM sign what it is asked to and collects the logs that belong to it.
options:
  round:
    description:
      - With V(identity), return the public keys and the certificate by which the TPM is known.
      - With V(evidence), answer a nonce.
    type: str
    choices: [identity, evidence]
    required: true
  nonce:
    description: What the TPM shall put into everything it signs, 32 bytes in base64.
    type: str
  pcrs:
    description: The PCRs to quote.
    type: list
    elements: int
  banks:
    description: The banks to quote them from.
    type: list
    elements: str
    choices: [sha256, sha384]
    default: [sha256]
  platform:
    description:
      - What to collect of a cloud's platform, where the machine has it.
      - V(google) is the certificate of Google's attestation key, and that key's statement on the collection's own.
      - V(azure) is the paravisor's report, and what O(metadata_service) adds to it.
      - V(nitrotpm) is the document that AWS's program C(nitro-tpm-attest) gets from a NitroTPM.
    type: list
    elements: str
    choices: [google, azure, nitrotpm]
    default: []
  metadata_service:
    description:
      - The address of Azure's metadata service, which has the certificate of the chip and makes quotes of a trust
        domain. It is asked only for V(azure) of O(platform), and only where there is a report of the paravisor.
      - The empty text asks nobody.
    type: str
    default: http://169.254.169.254
  credential:
    description: A TPM2B_ID_OBJECT for both keys of the TPM, in base64.
    type: str
  encrypted_seed:
    description: The TPM2B_ENCRYPTED_SECRET that belongs to O(credential), in base64.
    type: str
requirements:
  - tpm2-pytss
attributes: {}
extends_documentation_fragment:
  - cvm.fde.attributes
  - cvm.fde.attributes.info
  - cvm.fde.sources
seealso:
  - module: cvm.fde.attest
"""

EXAMPLES = r"""
- name: Show by which keys the TPM is known
  cvm.fde.attest_round:
    round: identity
"""

RETURN = r"""
answer:
  description: The round's answer, in the shape that C(docs/reference-evidence.md) describes.
  returned: success
  type: dict
"""

import base64
import json
import os
from typing import Any, Optional

from ansible.module_utils.basic import AnsibleModule

from ..module_utils.agent.evidence import RECOVERY, TOKEN_TYPE
from ..module_utils.agent.machine import VOLUME, Paths
from ..module_utils.dm import clone
from ..module_utils.dm.device import DeviceMapper
from ..module_utils.errors import FdeError
from ..module_utils.luks2.area import read_area
from ..module_utils.luks2.volume import underlying
from ..module_utils.runner import ModuleRunner, Runner
from ..module_utils.tpm.esys import DEFAULT_TCTI
from ..module_utils.tpm.measurements import FIRMWARE_LOG, USERSPACE_LOG
from ..module_utils.tpm.metadata import ADDRESS, MetadataService
from ..module_utils.tpm.rounds import Request, Sources, encode_optional, evidence, identity

#: The boot agent's copy of the header that the volume was opened with.
HEADER = str(Paths().header)
ARGUMENTS = {
    "round": {"type": "str", "choices": ["identity", "evidence"], "required": True},
    "nonce": {"type": "str"},
    "pcrs": {"type": "list", "elements": "int"},
    "banks": {"type": "list", "elements": "str", "choices": ["sha256", "sha384"], "default": ["sha256"]},
    "platform": {"type": "list", "elements": "str", "choices": ["google", "azure", "nitrotpm"], "default": []},
    "metadata_service": {"type": "str", "default": ADDRESS},
    # Encrypted for the TPM, so none of these is a secret.
    "credential": {"type": "str", "no_log": False},
    "encrypted_seed": {"type": "str", "no_log": False},
    "tcti": {"type": "str", "default": DEFAULT_TCTI},
    "firmware_log": {"type": "path", "default": FIRMWARE_LOG},
    "userspace_log": {"type": "path", "default": USERSPACE_LOG},
    "header": {"type": "path"},
}


def read_tokens(path: Optional[str]) -> dict[str, Optional[bytes]]:
    """Return the evidence tokens in a header as JSON, by what they are evidence of; None where there is not one."""
    found: dict[str, list[bytes]] = {"token": [], "recovery": []}
    for token in [] if path is None else read_area(path).header().metadata["tokens"].values():
        if token.get("type") == TOKEN_TYPE:
            found["recovery" if _is_of_recovery(token) else "token"].append(json.dumps(token).encode())
    return {name: tokens[0] if len(tokens) == 1 else None for name, tokens in found.items()}


def _is_of_recovery(token: dict[str, Any]) -> bool:
    try:
        claims = json.loads(base64.b64decode(token["claims"], validate=True))
        return bool(claims["purpose"] == RECOVERY)
    except (KeyError, TypeError, ValueError, RecursionError):
        return False


def volume_device(runner: Runner) -> Optional[str]:
    """Return the device below the open root volume, or None where there is no such volume or that cannot be told.

    No label is asked: the host can attach other partitions that have the same.
    """
    try:
        return underlying(DeviceMapper(runner), VOLUME)
    except (FdeError, OSError):
        return None


def header_digest(device: Optional[str]) -> Optional[str]:
    """Return the digest of the header on a device, or None where there is none that can be read.

    It is the machine's own word: an attestation does not fail for want of it.
    """
    try:
        return None if device is None else read_area(device).digest.hex()
    except FdeError:
        return None


def hydration(runner: Runner) -> Optional[dict[str, int]]:
    """Return how many regions of the root are on the encrypted device, or None where that cannot be told."""
    if runner.find("dmsetup") is None:
        return None
    try:
        return _hydration(DeviceMapper(runner))
    except FdeError:
        # The machine's own word, which no check rests on: an attestation does not fail for want of it.
        return None


def _hydration(mapper: DeviceMapper) -> Optional[dict[str, int]]:
    root = mapper.find(clone.NAMES.root)
    if root is None:
        return None
    if clone.is_clone(mapper):
        status = clone.status(mapper)
        return {"hydrated": status.hydrated, "total": status.total}
    regions = -(-root.size // clone.REGION)
    return {"hydrated": regions, "total": regions}


def answer(params: dict[str, Any], runner: Runner) -> dict[str, Any]:
    """Return the answer to the round that the parameters describe."""
    metadata = MetadataService(params["metadata_service"] or None)
    sources = Sources(params["tcti"], params["firmware_log"], params["userspace_log"], metadata)
    if params["round"] == "identity":
        return identity(sources)
    request = Request(
        nonce=base64.b64decode(params["nonce"], validate=True),
        selection=dict.fromkeys(params["banks"], tuple(params["pcrs"])),
        credential=base64.b64decode(params["credential"], validate=True),
        secret=base64.b64decode(params["encrypted_seed"], validate=True),
        platform=tuple(params["platform"]),
    )
    device = None if params["header"] else volume_device(runner)
    tokens = read_tokens(params["header"] or (HEADER if os.path.exists(HEADER) else device))
    return {
        **evidence(sources, request, tokens["token"], runner),
        "recovery": encode_optional(tokens["recovery"]),
        "header": header_digest(device),
        "hydration": hydration(runner),
    }


def main() -> None:
    module = AnsibleModule(
        argument_spec=ARGUMENTS,
        required_if=[("round", "evidence", ("nonce", "pcrs", "credential", "encrypted_seed"))],
        supports_check_mode=True,
    )
    try:
        module.exit_json(changed=False, answer=answer(module.params, ModuleRunner(module)))
    except FdeError as error:
        module.fail_json(msg=str(error), subject=error.subject, cause=error.cause, remedy=error.remedy)


if __name__ == "__main__":
    main()
