# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The public areas that this collection asks a TPM to make keys from, as bytes.

The guest creates keys from them, the verifier compares keys with them; neither needs a TPM library for that.
Source: TPM 2.0 Library part 2, section 12.2 (TPMT_PUBLIC); TCG EK Credential Profile 2.5, annex B.3 (templates L-1,
L-2).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

ALG_RSA = 0x0001
ALG_AES = 0x0006
ALG_SHA1 = 0x0004
ALG_SHA256 = 0x000B
ALG_SHA384 = 0x000C
ALG_SHA512 = 0x000D
ALG_NULL = 0x0010
ALG_RSASSA = 0x0014
ALG_RSAPSS = 0x0016
ALG_ECDSA = 0x0018
ALG_ECC = 0x0023
ALG_CFB = 0x0043
ECC_NIST_P256 = 0x0003
ECC_NIST_P384 = 0x0004
ECC_NIST_P521 = 0x0005

FIXED_TPM = 1 << 1
FIXED_PARENT = 1 << 4
SENSITIVE_DATA_ORIGIN = 1 << 5
USER_WITH_AUTH = 1 << 6
ADMIN_WITH_POLICY = 1 << 7
NO_DA = 1 << 10
RESTRICTED = 1 << 16
DECRYPT = 1 << 17
SIGN = 1 << 18

#: PolicySecret(TPM_RH_ENDORSEMENT) under SHA-256: what every EK of a low-range template demands of its user.
EK_POLICY = bytes.fromhex("837197674484b3f81a90cc8d46a5d724fd52d76e06520b64f2a1da1b331469aa")

_EK_ATTRIBUTES = FIXED_TPM | FIXED_PARENT | SENSITIVE_DATA_ORIGIN | ADMIN_WITH_POLICY | RESTRICTED | DECRYPT
_AK_ATTRIBUTES = FIXED_TPM | FIXED_PARENT | SENSITIVE_DATA_ORIGIN | USER_WITH_AUTH | NO_DA | RESTRICTED | SIGN


@dataclass(frozen=True)
class Template:
    """A TPMT_PUBLIC in two parts: what a key made from it repeats, and what the key itself replaces."""

    fixed: bytes
    unique: bytes

    @property
    def public(self) -> bytes:
        """The template as TPM2_CreatePrimary takes it."""
        return self.fixed + self.unique

    def made(self, public: bytes) -> bool:
        """Tell whether a key's TPMT_PUBLIC was made from this template."""
        return public[: len(self.fixed)] == self.fixed


def _sized(data: bytes) -> bytes:
    return struct.pack(">H", len(data)) + data


def _template(kind: int, attributes: int, policy: bytes, parameters: bytes, unique: bytes) -> Template:
    return Template(struct.pack(">HHI", kind, ALG_SHA256, attributes) + _sized(policy) + parameters, unique)


_AES_128_CFB = struct.pack(">HHH", ALG_AES, 128, ALG_CFB)

#: EK template L-1: RSA-2048, storage key, 256 zero bytes as unique.
EK_RSA_2048 = _template(
    ALG_RSA, _EK_ATTRIBUTES, EK_POLICY, _AES_128_CFB + struct.pack(">HHI", ALG_NULL, 2048, 0), _sized(bytes(256))
)
#: EK template L-2: ECC P-256, storage key, twice 32 zero bytes as unique.
EK_ECC_P256 = _template(
    ALG_ECC,
    _EK_ATTRIBUTES,
    EK_POLICY,
    _AES_128_CFB + struct.pack(">HHH", ALG_NULL, ECC_NIST_P256, ALG_NULL),
    _sized(bytes(32)) + _sized(bytes(32)),
)
#: The attestation key: a primary of the endorsement hierarchy, so the same template gives the same key after every
#: boot.
AK_ECC_P256 = _template(
    ALG_ECC,
    _AK_ATTRIBUTES,
    b"",
    struct.pack(">HHHHH", ALG_NULL, ALG_ECDSA, ALG_SHA256, ECC_NIST_P256, ALG_NULL),
    _sized(b"") + _sized(b""),
)
