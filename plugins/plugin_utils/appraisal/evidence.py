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

from .documents import parse_json
from .errors import AppraisalError
from .fields import Fields, Signed
from .platform import Platform, parse_platform
from .structures import STRUCTURE_LIMIT, Values

CERTIFICATE_LIMIT = 16384
#: Unpacked, each. Together with the token this bounds the memory that one guest can make the verifier use to some 20
#: MiB.
LOG_LIMIT = 4 * 1024 * 1024
TOKEN_LIMIT = 512 * 1024
CLAIMS_LIMIT = 4096


@dataclass(frozen=True)
class Identity:
    """The first round: TPMT_PUBLIC of both keys, and the EK's certificate (DER) where the TPM has one."""

    endorsement: bytes
    endorsement_certificate: Optional[bytes]
    attestation: bytes


@dataclass(frozen=True)
class Claims:
    """What the boot agent says of the volume it made; ``raw`` is what the creation quote vouches for."""

    raw: bytes
    volume_key_id: bytes
    luks_uuid: str
    volume: str
    partition_uuid: str
    root_hash: str
    cipher: str
    integrity: str
    sector_size: int
    strategy: str
    anchor_index: str
    anchor_name: bytes


@dataclass(frozen=True)
class Creation:
    """The evidence token: a quote made in the initrd when the volume was made, with both logs of that moment."""

    claims: Claims
    quote: Signed
    attestation: bytes
    values: Values
    firmware_log: bytes
    userspace_log: bytes


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
        *("activated", "quote", "pcrs", "anchor", "token", "hydration", "platform"),
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
        hydration=None if fields.absent("hydration") else _hydration(fields.inner("hydration")),
        platform=parse_platform(fields.plain("platform")),
    )


def parse_token(raw: bytes) -> Creation:
    """Read the JSON text of a LUKS2 token of type ``cvm-fde``."""
    fields = Fields(parse_json(raw, "evidence token", TOKEN_LIMIT), "evidence token")
    fields.only("type", "keyslots", "version", "claims", "quote", "ak", "pcrs", "firmware_log", "userspace_log")
    if fields.text("type", 16) != "cvm-fde" or fields.number("version", 1) != 1:
        raise AppraisalError("unsupported", "the evidence token is not one of version 1")
    return Creation(
        claims=_claims(fields.binary("claims", CLAIMS_LIMIT)),
        quote=fields.signed("quote"),
        attestation=fields.binary("ak", STRUCTURE_LIMIT),
        values=fields.values("pcrs"),
        firmware_log=fields.compressed("firmware_log", LOG_LIMIT),
        userspace_log=fields.compressed("userspace_log", LOG_LIMIT),
    )


def _claims(raw: bytes) -> Claims:
    fields = Fields(parse_json(raw, "claims", CLAIMS_LIMIT), "claims")
    names = set(Claims.__dataclass_fields__) - {"raw", "anchor_index", "anchor_name"}
    fields.only("version", "purpose", "anchor", *names)
    if fields.number("version", 1) != 1 or fields.text("purpose", 32) != "volume-creation":
        raise AppraisalError("unsupported", "the claims are not those of a volume's creation in version 1")
    anchor = fields.inner("anchor")
    anchor.only("nv_index", "name")
    return Claims(
        raw=raw,
        volume_key_id=fields.hexadecimal("volume_key_id", 32),
        luks_uuid=fields.uuid("luks_uuid"),
        volume=fields.word("volume"),
        partition_uuid=fields.uuid("partition_uuid"),
        root_hash=fields.hexadecimal("root_hash", 32).hex(),
        cipher=fields.word("cipher"),
        integrity=fields.word("integrity"),
        sector_size=fields.number("sector_size", 65536),
        strategy=fields.word("strategy"),
        anchor_index=anchor.word("nv_index"),
        anchor_name=anchor.hexadecimal("name", 34),
    )


def _hydration(fields: Fields) -> Hydration:
    fields.only("hydrated", "total")
    total = fields.number("total", 1 << 62)
    return Hydration(fields.number("hydrated", total), total)
