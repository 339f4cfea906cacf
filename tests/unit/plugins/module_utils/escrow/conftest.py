# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Certificates of every kind that somebody might name for escrow."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

NOW = datetime.datetime.now(datetime.timezone.utc)


@dataclass
class Owner:
    """A key pair and its certificate, as PEM."""

    certificate: bytes
    private_key: bytes


class Authority:
    """Makes certificates; keys of a kind are made once."""

    def __init__(self) -> None:
        self._keys: dict[Any, Any] = {}

    def key(self, kind: Any) -> Any:
        if kind not in self._keys:
            if isinstance(kind, int):
                self._keys[kind] = rsa.generate_private_key(65537, kind)
            else:
                self._keys[kind] = (
                    ed25519.Ed25519PrivateKey.generate() if kind is None else ec.generate_private_key(kind)
                )
        return self._keys[kind]

    def issue(
        self, kind: Any = 2048, usage: str | None = None, start: int = -1, days: int = 10, serial: int = 1
    ) -> Owner:
        """Make a certificate; ``kind`` is the bits of an RSA key, a curve, or None for Ed25519."""
        key = self.key(kind)
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "escrow")])
        begin = NOW + datetime.timedelta(days=start)
        builder = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(serial)
            .not_valid_before(begin)
            .not_valid_after(begin + datetime.timedelta(days=days))
        )
        if usage is not None:
            names = (
                "digital_signature content_commitment key_encipherment data_encipherment key_agreement key_cert_sign"
            )
            bits = {bit: bit == usage for bit in [*names.split(), "crl_sign", "encipher_only", "decipher_only"]}
            builder = builder.add_extension(x509.BasicConstraints(False, None), critical=True)
            builder = builder.add_extension(x509.KeyUsage(**bits), critical=True)
        certificate = builder.sign(key, None if kind is None else hashes.SHA256())
        private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        return Owner(certificate.public_bytes(Encoding.PEM), private)


@pytest.fixture(scope="session")
def authority() -> Authority:
    return Authority()
