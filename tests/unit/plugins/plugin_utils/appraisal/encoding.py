# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Structures of a TPM and values of a certificate, as bytes."""

from __future__ import annotations

import struct

from ansible_collections.cvm.fde.plugins.module_utils.tpm import templates as tpm
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.structures import PublicArea, parse_public

#: What the attestation keys of Google and AWS have, and those of Azure and of this collection besides.
AK_ATTRIBUTES = (
    tpm.RESTRICTED | tpm.SIGN | tpm.FIXED_TPM | tpm.FIXED_PARENT | tpm.SENSITIVE_DATA_ORIGIN | tpm.USER_WITH_AUTH
)
AZURE_AK_ATTRIBUTES = AK_ATTRIBUTES | tpm.NO_DA


def sized(data: bytes) -> bytes:
    """TPM2B of some bytes."""
    return struct.pack(">H", len(data)) + data


def rsa_area(attributes: int, modulus: int) -> PublicArea:
    """TPMT_PUBLIC of an RSA-2048 key that signs by RSASSA with SHA-256, as Azure's attestation keys are."""
    head = struct.pack(">HHIH", tpm.ALG_RSA, tpm.ALG_SHA256, attributes, 0)
    scheme = struct.pack(">HHHHI", tpm.ALG_NULL, tpm.ALG_RSASSA, tpm.ALG_SHA256, 2048, 0)
    return parse_public(head + scheme + sized(modulus.to_bytes(256, "big")))


def ecc_area(attributes: int, x: int, y: int) -> PublicArea:
    """TPMT_PUBLIC of a P-256 key that signs by ECDSA with SHA-256, as those of Google and AWS are."""
    head = struct.pack(">HHIH", tpm.ALG_ECC, tpm.ALG_SHA256, attributes, 0)
    scheme = struct.pack(">HHHHH", tpm.ALG_NULL, tpm.ALG_ECDSA, tpm.ALG_SHA256, tpm.ECC_NIST_P256, tpm.ALG_NULL)
    return parse_public(head + scheme + sized(x.to_bytes(32, "big")) + sized(y.to_bytes(32, "big")))


def der(tag: int, content: bytes) -> bytes:
    """A value by the Distinguished Encoding Rules (X.690), shorter than 64 KiB."""
    size = bytes([len(content)]) if len(content) < 128 else b"\x82" + struct.pack(">H", len(content))
    return bytes([tag]) + size + content
