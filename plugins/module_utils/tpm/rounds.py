# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The guest's answers to a verifier: two rounds, as JSON-clean values.

The verifier chooses everything that matters (nonce, PCRs, credential); the guest adds what only it has. The shapes
are those of ``docs/reference-evidence.md``.
"""

from __future__ import annotations

import base64
import zlib
from dataclasses import dataclass, field
from typing import Any, Optional

from ..runner import Runner
from . import anchor
from .activation import activate
from .certify import certifiable, certify
from .esys import DEFAULT_TCTI, opened
from .keys import attestation_key, endorsement_key
from .measurements import FIRMWARE_LOG, USERSPACE_LOG, firmware_log, held_userspace_log
from .metadata import MetadataService
from .platform import collect
from .quote import Quote, Selection, quote


@dataclass(frozen=True)
class Sources:
    """Where the guest finds what it answers with."""

    tcti: str = DEFAULT_TCTI
    firmware_log: str = FIRMWARE_LOG
    userspace_log: str = USERSPACE_LOG
    metadata: MetadataService = field(default_factory=MetadataService)


@dataclass(frozen=True)
class Request:
    """What the verifier asks in the second round; credential and secret are TPM2Bs with their sizes.

    ``platform`` are the things that shall be collected of a cloud's platform, if the machine has them.
    """

    nonce: bytes
    selection: Selection
    credential: bytes
    secret: bytes
    platform: tuple[str, ...] = ()


def identity(sources: Sources) -> dict[str, Any]:
    """Answer the first round: which keys this TPM has. Raises ``TpmError``."""
    with opened(sources.tcti) as esys:
        with attestation_key(esys) as attestation:
            attestation_public = attestation.public
        with endorsement_key(esys) as endorsement:
            return {
                "endorsement": encode(endorsement.public),
                "endorsement_certificate": encode_optional(endorsement.certificate),
                "attestation": encode(attestation_public),
            }


def evidence(
    sources: Sources, request: Request, token: Optional[bytes], runner: Optional[Runner] = None
) -> dict[str, Any]:
    """Answer the second round: activation, quote, certified anchor and both logs, all of one moment.

    ``token`` is the JSON text of the volume's evidence token. Raises ``TpmError``, and ``FdeError`` when the PCRs do
    not keep still.
    """
    with opened(sources.tcti) as esys, attestation_key(esys) as attestation:
        with endorsement_key(esys) as endorsement:
            activated = activate(esys, attestation, endorsement, request.credential, request.secret)
        with held_userspace_log(sources.userspace_log) as held:
            quoted = quote(esys, attestation, request.nonce, request.selection)
            userspace = held.read()
        certified = None
        if certifiable(esys, anchor.INDEX, anchor.SIZE):
            certified = certify(esys, attestation, anchor.INDEX, request.nonce, anchor.SIZE)
        platform = None
        if runner is not None and request.platform:
            platform = collect(esys, runner, request.platform, request.nonce, attestation, sources.metadata)
    return {
        "activated": encode(activated),
        "quote": {"attest": encode(quoted.attest), "signature": encode(quoted.signature)},
        "pcrs": pcr_values(quoted),
        "anchor": certified and {"attest": encode(certified.attest), "signature": encode(certified.signature)},
        "firmware_log": _packed(firmware_log(sources.firmware_log)),
        "userspace_log": _packed(userspace.content),
        "userspace_log_complete": userspace.complete,
        "token": encode_optional(token),
        "platform": platform,
    }


def pcr_values(quoted: Quote) -> dict[str, dict[str, str]]:
    """Return the PCR values of a quote as JSON carries them: bank → PCR → hexadecimal."""
    return {bank: {str(pcr): value.hex() for pcr, value in values.items()} for bank, values in quoted.pcrs.items()}


def encode(data: bytes) -> str:
    """Return bytes as JSON carries them: base64."""
    return base64.b64encode(data).decode()


def encode_optional(data: Optional[bytes]) -> Optional[str]:
    """Return bytes in base64, or None for None."""
    return None if data is None else encode(data)


def _packed(log: Optional[bytes]) -> Optional[str]:
    return None if not log else encode(zlib.compress(log))
