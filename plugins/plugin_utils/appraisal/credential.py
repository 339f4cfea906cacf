# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""MakeCredential: encrypt a secret so that only the TPM that holds both an EK and a certain AK can return it.

Source: TPM 2.0 Library part 1, section 24 (credential protection), 11.4.10 (KDFa, KDFe) and annexes B.10.3 and C.6.3
(how the seed is encrypted by an RSA and an ECC key).
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import struct
from dataclasses import dataclass

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

try:
    from cryptography.hazmat.decrepit.ciphers.modes import CFB
except ImportError:
    from cryptography.hazmat.primitives.ciphers.modes import CFB

from ...module_utils.tpm import templates as tpm
from .errors import AppraisalError
from .structures import CURVES, PublicArea

SECRET_SIZE = 32
_LABEL = b"IDENTITY\0"
_HASHES: dict[str, hashes.HashAlgorithm] = {
    "sha1": hashes.SHA1(),
    "sha256": hashes.SHA256(),
    "sha384": hashes.SHA384(),
    "sha512": hashes.SHA512(),
}


@dataclass(frozen=True)
class Credential:
    """What the guest is given: TPM2B_ID_OBJECT and TPM2B_ENCRYPTED_SECRET, each with its size."""

    blob: bytes
    secret: bytes


def make_credential(endorsement: PublicArea, attestation_name: bytes, secret: bytes) -> Credential:
    """Encrypt ``secret`` for the TPM that holds ``endorsement`` and the key with the Name ``attestation_name``.

    Raises ``AppraisalError`` when the EK is not a restricted storage key with AES in CFB mode.
    """
    _storage_key(endorsement)
    seed, encrypted_seed = _seed(endorsement)
    return _protect(endorsement, attestation_name, secret, seed, encrypted_seed)


def _protect(ek: PublicArea, name: bytes, secret: bytes, seed: bytes, encrypted_seed: bytes) -> Credential:
    algorithm, digest_size = ek.name_algorithm, hashlib.new(ek.name_algorithm).digest_size
    if ek.symmetric is None or len(secret) > digest_size:
        raise AppraisalError("bad-endorsement-key", "the secret is longer than this endorsement key can carry")
    storage = kdfa(algorithm, seed, b"STORAGE", name, b"", ek.symmetric[1])
    encryptor = Cipher(algorithms.AES(storage), CFB(bytes(16))).encryptor()
    encrypted = encryptor.update(_sized(secret)) + encryptor.finalize()
    integrity = kdfa(algorithm, seed, b"INTEGRITY", b"", b"", 8 * digest_size)
    outer = hmac.digest(integrity, encrypted + name, algorithm)
    return Credential(_sized(_sized(outer) + encrypted), _sized(encrypted_seed))


def _storage_key(endorsement: PublicArea) -> None:
    symmetric = endorsement.symmetric
    restricted = endorsement.has(tpm.RESTRICTED | tpm.DECRYPT | tpm.FIXED_TPM | tpm.FIXED_PARENT)
    if not restricted or endorsement.has(tpm.SIGN) or endorsement.scheme is not None or symmetric is None:
        raise AppraisalError("bad-endorsement-key", "the endorsement key is not a restricted storage key of its TPM")
    if symmetric[0] != tpm.ALG_AES or symmetric[1] not in (128, 256) or symmetric[2] != tpm.ALG_CFB:
        raise AppraisalError("bad-endorsement-key", "the endorsement key does not protect with AES in CFB mode")


def _seed(endorsement: PublicArea) -> tuple[bytes, bytes]:
    """Return a fresh seed and its encryption by the EK."""
    algorithm = endorsement.name_algorithm
    key = endorsement.key
    if isinstance(key, rsa.RSAPublicKey):
        seed = secrets.token_bytes(hashlib.new(algorithm).digest_size)
        scheme = _HASHES[algorithm]
        return seed, key.encrypt(seed, padding.OAEP(padding.MGF1(scheme), scheme, _LABEL))
    ephemeral = ec.generate_private_key(CURVES[endorsement.curve])
    shared = ephemeral.exchange(ec.ECDH(), key)
    size = (key.key_size + 7) // 8
    numbers = ephemeral.public_key().public_numbers()
    ours = numbers.x.to_bytes(size, "big")
    theirs = key.public_numbers().x.to_bytes(size, "big")
    seed = kdfe(algorithm, shared, _LABEL, ours, theirs, 8 * hashlib.new(algorithm).digest_size)
    return seed, _sized(ours) + _sized(numbers.y.to_bytes(size, "big"))


def kdfa(algorithm: str, key: bytes, label: bytes, context_u: bytes, context_v: bytes, bits: int) -> bytes:
    """Derive ``bits`` bits from ``key``: SP 800-108 in counter mode with HMAC."""
    derived = b""
    counter = 1
    while len(derived) < bits // 8:
        message = struct.pack(">I", counter) + label + b"\0" + context_u + context_v + struct.pack(">I", bits)
        derived += hmac.digest(key, message, algorithm)
        counter += 1
    return derived[: bits // 8]


def kdfe(algorithm: str, shared: bytes, label: bytes, party_u: bytes, party_v: bytes, bits: int) -> bytes:
    """Derive ``bits`` bits from the x coordinate of a Diffie-Hellman exchange: SP 800-56A. ``label`` ends with a
    zero byte.
    """
    derived = b""
    counter = 1
    while len(derived) < bits // 8:
        message = struct.pack(">I", counter) + shared + label + party_u + party_v
        derived += hashlib.new(algorithm, message).digest()
        counter += 1
    return derived[: bits // 8]


def _sized(data: bytes) -> bytes:
    return struct.pack(">H", len(data)) + data
