# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a guest sends, taken apart by type and length before anything is made of it.

The shapes are those of ``docs/reference-evidence.md``. All of it may be hostile: a field that is missing, too long,
of another type or not in its one encoding is an ``AppraisalError`` with the code ``malformed``, whose reason names
the field and quotes nothing.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import zlib
from dataclasses import dataclass
from typing import Any, Mapping, Optional

from .documents import parse_json
from .errors import AppraisalError
from .structures import HASH_IDS, PCR_COUNT, STRUCTURE_LIMIT, Values

CERTIFICATE_LIMIT = 16384
#: Unpacked, each. Together with the token this bounds the memory that one guest can make the verifier use to some 20
#: MiB.
LOG_LIMIT = 4 * 1024 * 1024
TOKEN_LIMIT = 512 * 1024
CLAIMS_LIMIT = 4096

_HEX = re.compile(r"[0-9a-f]*")
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
#: Names as they are printed and compared: no spaces, no control characters, no markup.
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._()+-]{0,63}")


@dataclass(frozen=True)
class Identity:
    """The first round: TPMT_PUBLIC of both keys, and the EK's certificate (DER) where the TPM has one."""

    endorsement: bytes
    endorsement_certificate: Optional[bytes]
    attestation: bytes


@dataclass(frozen=True)
class Signed:
    """TPMS_ATTEST and TPMT_SIGNATURE."""

    attest: bytes
    signature: bytes


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


class Fields:
    """A JSON object of a stranger, from which fields are taken by name, type and length."""

    def __init__(self, found: Any, what: str) -> None:
        if not isinstance(found, dict):
            raise AppraisalError("malformed", f"the {what} is not an object")
        self._found: Mapping[str, Any] = found
        self._what = what

    def wrong(self, name: str, why: str) -> AppraisalError:
        return AppraisalError("malformed", f"{name} of the {self._what} {why}")

    def only(self, *names: str) -> None:
        """Refuse fields other than these."""
        if set(self._found) - set(names):
            raise AppraisalError("malformed", f"the {self._what} has a field that does not belong there")

    def absent(self, name: str) -> bool:
        return self._found.get(name) is None

    def text(self, name: str, limit: int) -> str:
        value = self._found.get(name)
        if not isinstance(value, str) or len(value) > limit:
            raise self.wrong(name, f"is not text of at most {limit} characters")
        return str(value)

    def word(self, name: str) -> str:
        value = self.text(name, 64)
        if not _WORD.fullmatch(value):
            raise self.wrong(name, "is not a plain name")
        return value

    def uuid(self, name: str) -> str:
        value = self.text(name, 36)
        if not _UUID.fullmatch(value):
            raise self.wrong(name, "is not a UUID in lower case")
        return value

    def number(self, name: str, maximum: int) -> int:
        value = self._found.get(name)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= maximum:
            raise self.wrong(name, f"is not a number from 0 to {maximum}")
        return int(value)

    def truth(self, name: str) -> bool:
        value = self._found.get(name)
        if not isinstance(value, bool):
            raise self.wrong(name, "is neither true nor false")
        return value

    def hexadecimal(self, name: str, size: int) -> bytes:
        value = self.text(name, 2 * size)
        if len(value) != 2 * size or not _HEX.fullmatch(value):
            raise self.wrong(name, f"is not {size} bytes in lower-case hexadecimal")
        return bytes.fromhex(value)

    def binary(self, name: str, limit: int) -> bytes:
        """Return a field in base64 of at most ``limit`` bytes."""
        value = self.text(name, (limit + 2) // 3 * 4)
        try:
            found = base64.b64decode(value, validate=True)
        except (binascii.Error, ValueError) as error:
            raise self.wrong(name, "is not base64") from error
        if len(found) > limit:
            raise self.wrong(name, f"is longer than {limit} bytes")
        return found

    def compressed(self, name: str, limit: int) -> bytes:
        """Return a field in base64 of zlib, of at most ``limit`` bytes unpacked; a missing one is empty."""
        if self.absent(name):
            return b""
        packed = self.binary(name, limit)
        unpacker = zlib.decompressobj()
        try:
            found = unpacker.decompress(packed, limit + 1)
        except zlib.error as error:
            raise self.wrong(name, "is not compressed by zlib") from error
        if len(found) > limit or not unpacker.eof or unpacker.unused_data:
            raise self.wrong(name, f"does not unpack to one stream of at most {limit} bytes")
        return found

    def inner(self, name: str) -> Fields:
        return Fields(self._found.get(name), f"{self._what}'s {name}")

    def signed(self, name: str) -> Signed:
        inner = self.inner(name)
        inner.only("attest", "signature")
        return Signed(inner.binary("attest", STRUCTURE_LIMIT), inner.binary("signature", STRUCTURE_LIMIT))

    def values(self, name: str) -> dict[str, dict[int, bytes]]:
        """Return PCR values: bank → PCR → digest."""
        banks = self.inner(name)
        if len(banks._found) > len(HASH_IDS) or set(banks._found) - set(HASH_IDS):
            raise self.wrong(name, "has a bank that does not exist")
        found: dict[str, dict[int, bytes]] = {}
        for bank in banks._found:
            inner = banks.inner(bank)
            size = hashlib.new(bank).digest_size
            numbers = {str(pcr): pcr for pcr in range(PCR_COUNT)}
            inner.only(*numbers)
            found[bank] = {numbers[pcr]: inner.hexadecimal(pcr, size) for pcr in inner._found}
        return found


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
        *("activated", "quote", "pcrs", "anchor", "token", "hydration"),
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
