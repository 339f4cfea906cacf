# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The report that Azure's paravisor (HCL) leaves in the virtual TPM: a hardware report that vouches for its keys.

Layout: 32 bytes of header, 1184 of hardware report, 20 that describe what follows (24 in version 2), JSON, zeros. The
hardware report's own data begins with the JSON's digest; what is around the two is measured by nobody.
Source: the layout as openvmm writes it (``openhcl_attestation_protocol``, ``IgvmAttestRequestBase``) and az-cvm-vtpm
(azure-cvm-tooling) reads it; RFC 7517 (keys).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
from dataclasses import dataclass
from enum import Enum
from typing import Any, Mapping, Optional

from cryptography.hazmat.primitives.asymmetric import rsa

from ..documents import parse_json
from ..errors import AppraisalError
from .fields import Fields

#: The NV index has 2600 bytes; a report of more keys would need a larger one.
REPORT_LIMIT = 16384
_JSON_LIMIT = 12288
_HARDWARE_SIZE = 1184
#: Bytes with what the paravisor wants of its host, by the version of the request that the report is.
_CAPABILITIES_SIZE = {1: 0, 2: 4}
_HASHES = {1: "sha256", 2: "sha384", 3: "sha512"}
_KEYS = ("HCLAkPub", "HCLEkPub")
_UUID = re.compile(r"[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}")


class HardwareReport(str, Enum):
    """Which processor made the hardware report."""

    SNP = "snp"
    TDX = "tdx"


_KINDS = {2: HardwareReport.SNP, 4: HardwareReport.TDX}


@dataclass(frozen=True)
class RuntimeClaims:
    """What the paravisor says. ``None`` where it says nothing."""

    attestation_key: rsa.RSAPublicKey
    endorsement_key: Optional[rsa.RSAPublicKey]
    machine: str
    secure_boot: Optional[bool]
    tpm_enabled: Optional[bool]
    tpm_persisted: Optional[bool]
    console_enabled: Optional[bool]
    user_data: Optional[bytes]


@dataclass(frozen=True)
class HclReport:
    """A report in parts; ``digest`` is that of the exact JSON, as the hardware report must begin its data with."""

    kind: HardwareReport
    hardware: bytes
    digest: bytes
    claims: RuntimeClaims

    def require_bound(self, report_data: bytes) -> None:
        """Check that the hardware's report data (64 bytes) is the digest of the claims, then zeros."""
        if not hmac.compare_digest(self.digest.ljust(64, b"\0"), report_data):
            raise AppraisalError("claims-not-bound", "the hardware report was not made over these claims")


def parse_hcl(data: bytes) -> HclReport:
    """Read a report of SNP or TDX. Raises ``AppraisalError``."""
    reader = Fields(data, "HCL report", REPORT_LIMIT)
    if reader.take(4) != b"HCLA" or reader.u32() not in (1, 2):
        raise AppraisalError("malformed", "the HCL report does not begin as one of version 1 or 2")
    size, _request = reader.u32(), reader.u32()
    reader.zeros(16)
    hardware = reader.take(_HARDWARE_SIZE)
    data_size, version, kind, hash_kind, claims_size = (reader.u32() for _field in range(5))
    if version not in _CAPABILITIES_SIZE or kind not in _KINDS or hash_kind not in _HASHES:
        raise AppraisalError("unsupported", "the HCL report is not one of version 1 or 2 over SNP or TDX")
    reader.take(_CAPABILITIES_SIZE[version])
    if data_size != claims_size + 20 + _CAPABILITIES_SIZE[version] or size != reader.position + claims_size:
        raise AppraisalError("malformed", "the sizes in the HCL report contradict each other")
    raw = reader.take(claims_size)
    reader.zeros(len(data) - reader.position)
    digest = hashlib.new(_HASHES[hash_kind], raw).digest()
    return HclReport(_KINDS[kind], hardware, digest, _claims(parse_json(raw, "HCL claims", _JSON_LIMIT)))


def _claims(document: Any) -> RuntimeClaims:
    if not isinstance(document, dict):
        raise _malformed("no object")
    keys = _keys(document.get("keys"))
    machine = document.get("vm-configuration")
    if "HCLAkPub" not in keys or not isinstance(machine, dict):
        raise _malformed("no attestation key or no configuration of the machine")
    identifier = machine.get("vmUniqueId")
    if not isinstance(identifier, str) or not _UUID.fullmatch(identifier):
        raise _malformed("no id of the machine")
    return RuntimeClaims(
        keys["HCLAkPub"],
        keys.get("HCLEkPub"),
        identifier.lower(),
        _flag(machine, "secure-boot"),
        _flag(machine, "tpm-enabled"),
        _flag(machine, "tpm-persisted"),
        _flag(machine, "console-enabled"),
        _user_data(document.get("user-data")),
    )


def _keys(listed: Any) -> dict[str, rsa.RSAPublicKey]:
    if not isinstance(listed, list) or len(listed) > 8:
        raise _malformed("no list of keys")
    found: dict[str, rsa.RSAPublicKey] = {}
    names: set[str] = set()
    for key in listed:
        name = key.get("kid") if isinstance(key, dict) else None
        if not isinstance(name, str) or name in names:
            raise _malformed("a key without a name of its own")
        names.add(name)
        if name not in _KEYS:
            continue
        if key.get("kty") != "RSA":
            raise _malformed("a key that is not RSA")
        modulus, exponent = (int.from_bytes(_base64(key.get(part)), "big") for part in ("n", "e"))
        if exponent != 65537 or modulus.bit_length() not in (2048, 3072, 4096):
            raise AppraisalError("bad-key", "a key in the HCL claims is not RSA of 2048, 3072 or 4096 bits")
        try:
            found[name] = rsa.RSAPublicNumbers(exponent, modulus).public_key()
        except ValueError as error:
            raise AppraisalError("bad-key", "the numbers in the HCL claims are not a key") from error
    return found


def _base64(text: Any) -> bytes:
    if not isinstance(text, str) or not re.fullmatch(r"[A-Za-z0-9_-]{1,1024}", text):
        raise _malformed("a key that is not base64url")
    try:
        return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except binascii.Error as error:
        raise _malformed("a key that is not base64url") from error


def _flag(machine: Mapping[str, Any], name: str) -> Optional[bool]:
    value = machine.get(name)
    if value is not None and not isinstance(value, bool):
        raise _malformed("a flag that is neither true nor false")
    return value


def _user_data(text: Any) -> Optional[bytes]:
    if text is None:
        return None
    if not isinstance(text, str) or not re.fullmatch(r"[0-9A-Fa-f]{128}", text):
        raise _malformed("user data that is not 64 bytes in hexadecimal")
    return bytes.fromhex(text)


def _malformed(what: str) -> AppraisalError:
    return AppraisalError("malformed", f"the HCL claims have {what}")
