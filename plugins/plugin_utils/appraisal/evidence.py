# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a guest sends, taken apart by type and length before anything is made of it.

The shapes are those of ``docs/reference-evidence.md``. All of it may be hostile: a field that is missing, too long,
of another type or not in its one encoding is an ``AppraisalError`` with the code ``malformed``, whose reason names
the field and quotes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Optional

from .fields import Fields, Signed
from .platform import Platform, parse_platform
from .structures import STRUCTURE_LIMIT, Values
from .tokens import LOG_LIMIT, TOKEN_LIMIT

#: Bytes of the endorsement key's certificate; real ones have less than 2 KiB.
CERTIFICATE_LIMIT = 16384


@dataclass(frozen=True)
class Identity:
    """The first round: TPMT_PUBLIC of both keys, and the EK's certificate (DER) where the TPM has one."""

    endorsement: bytes
    endorsement_certificate: Optional[bytes]
    attestation: bytes


@dataclass(frozen=True)
class Hydration:
    """Regions of the clone that are on the encrypted device already, and how many there are: the guest's own word."""

    hydrated: int
    total: int


@dataclass(frozen=True)
class Evidence:
    """The second round: everything that answers one nonce. Logs are empty where the guest has none."""

    activated: bytes
    quote: Signed
    values: Values
    anchor: Optional[Signed]
    firmware_log: bytes
    userspace_log: bytes
    userspace_complete: bool
    token: Optional[bytes]
    recovery: Optional[bytes]
    header: Optional[bytes]
    hydration: Optional[Hydration]
    platform: Platform


def parse_identity(found: Any) -> Identity:
    """Read the result of the round ``identity``."""
    fields = Fields(found, "identity")
    fields.only("endorsement", "endorsement_certificate", "attestation")
    certificate = fields.absent("endorsement_certificate")
    return Identity(
        endorsement=fields.binary("endorsement", STRUCTURE_LIMIT),
        endorsement_certificate=None if certificate else fields.binary("endorsement_certificate", CERTIFICATE_LIMIT),
        attestation=fields.binary("attestation", STRUCTURE_LIMIT),
    )


def parse_evidence(found: Any) -> Evidence:
    """Read the result of the round ``evidence``."""
    fields = Fields(found, "evidence")
    fields.only(
        *("activated", "quote", "pcrs", "anchor", "token", "recovery", "header", "hydration", "platform"),
        *("firmware_log", "userspace_log", "userspace_log_complete"),
    )
    return Evidence(
        activated=fields.binary("activated", 64),
        quote=fields.signed("quote"),
        values=fields.values("pcrs"),
        anchor=None if fields.absent("anchor") else fields.signed("anchor"),
        firmware_log=fields.compressed("firmware_log", LOG_LIMIT),
        userspace_log=fields.compressed("userspace_log", LOG_LIMIT),
        userspace_complete=fields.truth("userspace_log_complete"),
        token=None if fields.absent("token") else fields.binary("token", TOKEN_LIMIT),
        recovery=None if fields.absent("recovery") else fields.binary("recovery", TOKEN_LIMIT),
        header=None if fields.absent("header") else fields.hexadecimal("header", 32),
        hydration=None if fields.absent("hydration") else _hydration(fields.inner("hydration")),
        platform=parse_platform(fields.plain("platform")),
    )


def _hydration(fields: Fields) -> Hydration:
    fields.only("hydrated", "total")
    total = fields.number("total", 1 << 62)
    return Hydration(fields.number("hydrated", total), total)
