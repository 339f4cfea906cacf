# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The evidence that a volume carries in its header: of its making, and of its last recovery."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable, TypeVar, Union

from .documents import parse_json
from .errors import AppraisalError
from .fields import Fields, Signed
from .structures import STRUCTURE_LIMIT, Values

#: Bytes of a log unpacked, of a token, and of the claims in it. Four logs and a token bound the memory that one guest
#: can make the verifier use to some 20 MiB.
LOG_LIMIT = 4 * 1024 * 1024
TOKEN_LIMIT = 512 * 1024
CLAIMS_LIMIT = 4096


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
class Recovered:
    """What the boot agent says of a volume that it opened by its recovery key, and anchored anew; ``code`` is the
    refusal before that.
    """

    raw: bytes
    volume_key_id: bytes
    luks_uuid: str
    volume: str
    root_hash: str
    strategy: str
    code: str
    recoveries: int
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
class Recovery:
    """The same of the last recovery."""

    claims: Recovered
    quote: Signed
    attestation: bytes
    values: Values
    firmware_log: bytes
    userspace_log: bytes


#: A volume that was recovered is anchored as its last recovery left it.
Origin = Union[Creation, Recovery]
_C = TypeVar("_C")


def parse_token(raw: bytes) -> Creation:
    """Read the JSON text of the token that the making of the volume left."""
    return Creation(*_token(raw, _claims))


def parse_recovery(raw: bytes) -> Recovery:
    """Read the JSON text of the token that the last recovery of the volume left."""
    return Recovery(*_token(raw, _recovered))


def _token(raw: bytes, claims: Callable[[bytes], _C]) -> tuple[_C, Signed, bytes, Values, bytes, bytes]:
    """Read a LUKS2 token of type ``cvm-fde``."""
    fields = Fields(parse_json(raw, "evidence token", TOKEN_LIMIT), "evidence token")
    fields.only("type", "keyslots", "version", "claims", "quote", "ak", "pcrs", "firmware_log", "userspace_log")
    if fields.text("type", 16) != "cvm-fde" or fields.number("version", 1) != 1:
        raise AppraisalError("unsupported", "the evidence token is not one of version 1")
    return (
        claims(fields.binary("claims", CLAIMS_LIMIT)),
        fields.signed("quote"),
        fields.binary("ak", STRUCTURE_LIMIT),
        fields.values("pcrs"),
        fields.compressed("firmware_log", LOG_LIMIT),
        fields.compressed("userspace_log", LOG_LIMIT),
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


def _recovered(raw: bytes) -> Recovered:
    fields = Fields(parse_json(raw, "claims", CLAIMS_LIMIT), "claims")
    names = set(Recovered.__dataclass_fields__) - {"raw", "anchor_index", "anchor_name"}
    fields.only("version", "purpose", "anchor", *names)
    if fields.number("version", 1) != 1 or fields.text("purpose", 32) != "volume-recovery":
        raise AppraisalError("unsupported", "the claims are not those of a volume's recovery in version 1")
    anchor = fields.inner("anchor")
    anchor.only("nv_index", "name")
    return Recovered(
        raw=raw,
        volume_key_id=fields.hexadecimal("volume_key_id", 32),
        luks_uuid=fields.uuid("luks_uuid"),
        volume=fields.word("volume"),
        root_hash=fields.hexadecimal("root_hash", 32).hex(),
        strategy=fields.word("strategy"),
        code=fields.word("code"),
        recoveries=fields.number("recoveries", 0xFFFFFFFF),
        anchor_index=anchor.word("nv_index"),
        anchor_name=anchor.hexadecimal("name", 34),
    )
