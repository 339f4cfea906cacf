# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a TPM signs, and the keys it signs with: a strict reading of the TPM's own byte layout.

Nothing here is lenient: every length is checked against what is left, every count against a bound, and bytes that
are left over are an error. Source: TPM 2.0 Library part 2 (structures) and part 1, section 16 (names); big endian
throughout.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from functools import cached_property
from typing import Callable, Iterable, Mapping, Optional, TypeVar, Union

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from ...module_utils.tpm import templates as tpm
from .errors import AppraisalError

MAGIC = 0xFF544347
ST_ATTEST_NV = 0x8014
ST_ATTEST_CERTIFY = 0x8017
ST_ATTEST_QUOTE = 0x8018
ST_ATTEST_CREATION = 0x801A
RH_ENDORSEMENT = 0x4000000B

#: TPM_ALG_ID of a hash → the name that hashlib, the logs and our documents use.
HASHES = {tpm.ALG_SHA1: "sha1", tpm.ALG_SHA256: "sha256", tpm.ALG_SHA384: "sha384", tpm.ALG_SHA512: "sha512"}
HASH_IDS = {name: number for number, name in HASHES.items()}
_SIGNATURE_HASHES: dict[str, hashes.HashAlgorithm] = {
    "sha256": hashes.SHA256(),
    "sha384": hashes.SHA384(),
    "sha512": hashes.SHA512(),
}
CURVES: dict[int, ec.EllipticCurve] = {
    tpm.ECC_NIST_P256: ec.SECP256R1(),
    tpm.ECC_NIST_P384: ec.SECP384R1(),
    tpm.ECC_NIST_P521: ec.SECP521R1(),
}

#: Bounds. The largest of these structures in use, a quote of all banks or an RSA-4096 public area, stays below 1 KiB.
STRUCTURE_LIMIT = 4096
BANK_LIMIT = 16
PCR_COUNT = 24

VerifyingKey = Union[rsa.RSAPublicKey, ec.EllipticCurvePublicKey]
#: PCRs by bank, for example ``{"sha256": frozenset({0, 4, 7})}``.
Selection = Mapping[str, frozenset[int]]
#: bank → PCR → digest.
Values = Mapping[str, Mapping[int, bytes]]
_T = TypeVar("_T")


class Reader:
    """Takes a byte string apart from front to back and refuses to run past its end."""

    def __init__(self, data: bytes, what: str, limit: int = STRUCTURE_LIMIT) -> None:
        if len(data) > limit:
            raise AppraisalError("malformed", f"the {what} is longer than {limit} bytes")
        self._data = data
        self._what = what
        self.position = 0

    def take(self, count: int) -> bytes:
        """Return the next ``count`` bytes."""
        end = self.position + count
        if end > len(self._data):
            raise AppraisalError("malformed", f"the {self._what} ends in the middle of a field")
        piece = self._data[self.position : end]
        self.position = end
        return piece

    def u8(self) -> int:
        return self.take(1)[0]

    def u16(self) -> int:
        return int.from_bytes(self.take(2), "big")

    def u32(self) -> int:
        return int.from_bytes(self.take(4), "big")

    def u64(self) -> int:
        return int.from_bytes(self.take(8), "big")

    def sized(self) -> bytes:
        """Return a field that carries its length in two bytes (every TPM2B)."""
        return self.take(self.u16())

    def hash_name(self) -> str:
        """Return the name of a hash algorithm; only SHA-1 and the SHA-2 family exist here."""
        number = self.u16()
        if number not in HASHES:
            raise AppraisalError("unsupported", f"the {self._what} uses the hash algorithm 0x{number:04x}")
        return HASHES[number]

    def end(self) -> None:
        """Refuse bytes that are left over."""
        if self.position != len(self._data):
            raise AppraisalError("malformed", f"{len(self._data) - self.position} bytes follow the {self._what}")


def _whole(data: bytes, what: str, read: Callable[[Reader], _T]) -> _T:
    reader = Reader(data, what)
    result = read(reader)
    reader.end()
    return result


# --- TPMS_ATTEST
# -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Clock:
    """TPMS_CLOCK_INFO: milliseconds the TPM was powered, and how often it was reset and resumed."""

    clock: int
    reset_count: int
    restart_count: int
    safe: bool


@dataclass(frozen=True)
class Attest:
    """The part that all TPMS_ATTEST share. ``raw`` is what was signed."""

    raw: bytes
    qualified_signer: bytes
    extra_data: bytes
    clock: Clock
    firmware_version: int


@dataclass(frozen=True)
class QuoteAttest(Attest):
    """TPMS_QUOTE_INFO: the banks in the order in which they were hashed, and the digest of their values."""

    selection: Selection
    pcr_digest: bytes


@dataclass(frozen=True)
class NvAttest(Attest):
    """TPMS_NV_CERTIFY_INFO: the Name of an NV index, and what it held from ``offset``."""

    index_name: bytes
    offset: int
    contents: bytes


@dataclass(frozen=True)
class KeyAttest(Attest):
    """TPMS_CERTIFY_INFO: the Name and the qualified Name of an object that is loaded in the signer's TPM."""

    object_name: bytes
    object_qualified_name: bytes


@dataclass(frozen=True)
class CreationAttest(Attest):
    """TPMS_CREATION_INFO: the Name of an object and the hash of its creation data."""

    object_name: bytes
    creation_hash: bytes


def parse_quote(data: bytes) -> QuoteAttest:
    """Read a TPMS_ATTEST of a quote. Raises ``AppraisalError``."""

    def body(reader: Reader) -> QuoteAttest:
        common = _attest(reader, data, ST_ATTEST_QUOTE, "quote")
        return QuoteAttest(*common, _selection(reader), reader.sized())

    return _whole(data, "quote", body)


def parse_nv_certification(data: bytes) -> NvAttest:
    """Read a TPMS_ATTEST of TPM2_NV_Certify. Raises ``AppraisalError``."""

    def body(reader: Reader) -> NvAttest:
        common = _attest(reader, data, ST_ATTEST_NV, "NV certification")
        return NvAttest(*common, reader.sized(), reader.u16(), reader.sized())

    return _whole(data, "NV certification", body)


def parse_key_certification(data: bytes) -> KeyAttest:
    """Read a TPMS_ATTEST of TPM2_Certify. Raises ``AppraisalError``."""

    def body(reader: Reader) -> KeyAttest:
        common = _attest(reader, data, ST_ATTEST_CERTIFY, "key certification")
        return KeyAttest(*common, reader.sized(), reader.sized())

    return _whole(data, "key certification", body)


def parse_creation(data: bytes) -> CreationAttest:
    """Read a TPMS_ATTEST of TPM2_CertifyCreation. Raises ``AppraisalError``."""

    def body(reader: Reader) -> CreationAttest:
        common = _attest(reader, data, ST_ATTEST_CREATION, "creation certification")
        return CreationAttest(*common, reader.sized(), reader.sized())

    return _whole(data, "creation certification", body)


def _attest(reader: Reader, data: bytes, kind: int, what: str) -> tuple[bytes, bytes, bytes, Clock, int]:
    if reader.u32() != MAGIC:
        raise AppraisalError("not-from-a-tpm", f"the {what} does not begin with the TPM's magic number")
    if reader.u16() != kind:
        raise AppraisalError("other-attestation", f"the structure is a TPM's statement, but not a {what}")
    signer, extra = reader.sized(), reader.sized()
    clock, resets, restarts, safe = reader.u64(), reader.u32(), reader.u32(), reader.u8()
    if safe > 1:
        raise AppraisalError("malformed", f"the {what} has a truth value that is neither 0 nor 1")
    return data, signer, extra, Clock(clock, resets, restarts, bool(safe)), reader.u64()


def _selection(reader: Reader) -> Selection:
    count = reader.u32()
    if count > BANK_LIMIT:
        raise AppraisalError("malformed", f"the quote selects from more than {BANK_LIMIT} banks")
    selection: dict[str, frozenset[int]] = {}
    for _bank in range(count):
        bank, size = reader.hash_name(), reader.u8()
        if not 3 <= size <= 4:
            raise AppraisalError("malformed", f"a PCR selection is {size} bytes long")
        bits = int.from_bytes(reader.take(size), "little")
        if bits >> PCR_COUNT:
            raise AppraisalError("malformed", "the quote selects a PCR above 23")
        if bank in selection:
            raise AppraisalError("duplicate-bank", f"the quote selects from the {bank} bank twice")
        selection[bank] = frozenset(pcr for pcr in range(PCR_COUNT) if bits >> pcr & 1)
    return selection


def same_selection(quoted: Mapping[str, Iterable[int]], asked: Mapping[str, Iterable[int]]) -> bool:
    """Tell whether a quote covers exactly the banks and PCRs that were asked for."""
    return {bank: frozenset(pcrs) for bank, pcrs in quoted.items()} == {
        bank: frozenset(pcrs) for bank, pcrs in asked.items()
    }


def pcr_digest(quote: QuoteAttest, values: Values, hash_name: str) -> bytes:
    """Return the digest over ``values`` that the quote must hold.

    ``hash_name`` is the hash of the signature scheme, not of a bank. The values must be those of the quote's own
    selection: a bank or PCR more or less, or a value of the wrong length, raises ``AppraisalError``.
    """
    _require_selected(quote.selection, values)
    digest = hashlib.new(hash_name)
    for bank, pcrs in quote.selection.items():
        size = hashlib.new(bank).digest_size
        for pcr in sorted(pcrs):
            value = values[bank][pcr]
            if len(value) != size:
                raise AppraisalError(
                    "pcr-values", f"the value of PCR {pcr} does not have the length of a {bank} digest"
                )
            digest.update(value)
    return digest.digest()


def _require_selected(selection: Selection, values: Values) -> None:
    """Refuse values that are missing or too many, and name the first of them."""
    for bank in values:
        if bank not in selection:
            raise AppraisalError("pcr-values", "there are values of a bank that the quote does not select")
    for bank, pcrs in selection.items():
        found = frozenset(values.get(bank, ()))
        if bank not in values or pcrs - found:
            missing = "" if bank not in values else f" PCR {min(pcrs - found)}"
            raise AppraisalError("pcr-values", f"the quote selects {bank}{missing}, of which there is no value")
        if found - pcrs:
            surplus = f"{bank} PCR {min(found - pcrs)}"
            raise AppraisalError("pcr-values", f"there is a value of {surplus}, which the quote does not select")


# --- TPMT_PUBLIC
# -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scheme:
    """How a key signs: the TPM's number of the scheme, and its hash."""

    algorithm: int
    hash_name: str


@dataclass(frozen=True)
class PublicArea:
    """TPMT_PUBLIC of an RSA or ECC key. ``symmetric`` is (algorithm, key bits, mode) for a storage key."""

    raw: bytes
    kind: int
    name_algorithm: str
    attributes: int
    policy: bytes
    symmetric: Optional[tuple[int, int, int]]
    scheme: Optional[Scheme]
    bits: int
    exponent: int
    curve: int
    unique: tuple[bytes, ...]

    @property
    def name(self) -> bytes:
        """The key's Name: algorithm and digest of the public area."""
        return _name(self.name_algorithm, self.raw)

    @cached_property
    def key(self) -> VerifyingKey:
        """The key itself. Raises ``AppraisalError`` for one that cannot be (point not on the curve, even modulus)."""
        try:
            if self.kind == tpm.ALG_RSA:
                modulus = int.from_bytes(self.unique[0], "big")
                if modulus % 2 == 0:
                    raise ValueError("an even modulus")
                return rsa.RSAPublicNumbers(self.exponent, modulus).public_key()
            x, y = (int.from_bytes(part, "big") for part in self.unique)
            return ec.EllipticCurvePublicNumbers(x, y, CURVES[self.curve]).public_key()
        except (ValueError, UnsupportedAlgorithm) as error:
            raise AppraisalError("bad-key", "the numbers in the public area are not a key") from error

    def has(self, attributes: int) -> bool:
        """Tell whether all of these attribute bits are set."""
        return self.attributes & attributes == attributes


def parse_public(data: bytes) -> PublicArea:
    """Read a TPMT_PUBLIC of an RSA or ECC key. Raises ``AppraisalError``."""

    def body(reader: Reader) -> PublicArea:
        kind = reader.u16()
        name_algorithm, attributes, policy = reader.hash_name(), reader.u32(), reader.sized()
        symmetric, scheme = _symmetric(reader), _scheme(reader)
        common = (data, kind, name_algorithm, attributes, policy, symmetric, scheme)
        if kind == tpm.ALG_RSA:
            bits, exponent = reader.u16(), reader.u32()
            modulus = reader.sized()
            if bits not in (2048, 3072, 4096) or len(modulus) != bits // 8 or modulus[0] < 0x80:
                raise AppraisalError("bad-key", "the RSA key does not have 2048, 3072 or 4096 bits")
            if exponent not in (0, 65537):
                raise AppraisalError("bad-key", "the RSA key does not have the exponent 65537")
            return PublicArea(*common, bits, 65537, 0, (modulus,))
        if kind == tpm.ALG_ECC:
            curve, kdf = reader.u16(), reader.u16()
            if curve not in CURVES or kdf != tpm.ALG_NULL:
                raise AppraisalError("unsupported", "the ECC key is not on a NIST curve, or carries a key derivation")
            bits = CURVES[curve].key_size
            point = (reader.sized(), reader.sized())
            if any(len(part) > (bits + 7) // 8 for part in point):
                raise AppraisalError("bad-key", "a coordinate of the ECC key is longer than its curve allows")
            return PublicArea(*common, bits, 0, curve, point)
        raise AppraisalError("unsupported", "the key is neither RSA nor ECC")

    return _whole(data, "public area", body)


def _symmetric(reader: Reader) -> Optional[tuple[int, int, int]]:
    algorithm = reader.u16()
    return None if algorithm == tpm.ALG_NULL else (algorithm, reader.u16(), reader.u16())


def _scheme(reader: Reader) -> Optional[Scheme]:
    algorithm = reader.u16()
    if algorithm == tpm.ALG_NULL:
        return None
    if algorithm not in (tpm.ALG_RSASSA, tpm.ALG_RSAPSS, tpm.ALG_ECDSA):
        raise AppraisalError("unsupported", f"the key has the scheme 0x{algorithm:04x}")
    return Scheme(algorithm, reader.hash_name())


def qualified_name(public: PublicArea, parent: Optional[PublicArea] = None) -> bytes:
    """Return the Qualified Name of a key: what its signatures carry as their signer.

    It is one of a primary key of the endorsement hierarchy, or one below such a key, ``parent``.
    """
    above = struct.pack(">I", RH_ENDORSEMENT) if parent is None else qualified_name(parent)
    return _name(public.name_algorithm, above + public.name)


def _name(algorithm: str, data: bytes) -> bytes:
    return struct.pack(">H", HASH_IDS[algorithm]) + hashlib.new(algorithm, data).digest()


# --- TPMS_NV_PUBLIC
# ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class NvPublic:
    """TPMS_NV_PUBLIC: what an NV index is, and the Name that certifications carry."""

    raw: bytes
    index: int
    name_algorithm: str
    attributes: int
    policy: bytes
    size: int

    @property
    def name(self) -> bytes:
        """The index's Name: algorithm and digest of its public area, which changes when it is first written."""
        return _name(self.name_algorithm, self.raw)


def parse_nv_public(data: bytes) -> NvPublic:
    """Read a TPMS_NV_PUBLIC. Raises ``AppraisalError``."""

    def body(reader: Reader) -> NvPublic:
        return NvPublic(data, reader.u32(), reader.hash_name(), reader.u32(), reader.sized(), reader.u16())

    return _whole(data, "NV public area", body)


# --- TPMT_SIGNATURE
# ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Signature:
    """TPMT_SIGNATURE: the scheme that made it, and the signature as ``cryptography`` takes it (ECDSA: DER)."""

    scheme: Scheme
    value: bytes


def parse_signature(data: bytes) -> Signature:
    """Read a TPMT_SIGNATURE of RSASSA, RSAPSS or ECDSA. Raises ``AppraisalError``."""

    def body(reader: Reader) -> Signature:
        algorithm = reader.u16()
        if algorithm not in (tpm.ALG_RSASSA, tpm.ALG_RSAPSS, tpm.ALG_ECDSA):
            raise AppraisalError("unsupported", f"the signature has the scheme 0x{algorithm:04x}")
        scheme = Scheme(algorithm, reader.hash_name())
        if algorithm != tpm.ALG_ECDSA:
            return Signature(scheme, reader.sized())
        r, s = (int.from_bytes(reader.sized(), "big") for _number in range(2))
        return Signature(scheme, encode_dss_signature(r, s))

    return _whole(data, "signature", body)


def verify_signature(key: VerifyingKey, signature: Signature, message: bytes) -> None:
    """Check that ``key`` made ``signature`` over ``message``; SHA-1 is never good enough. Raises ``AppraisalError``."""
    algorithm = _SIGNATURE_HASHES.get(signature.scheme.hash_name)
    if algorithm is None:
        raise AppraisalError("weak-signature", f"the signature uses {signature.scheme.hash_name}")
    is_ecc = isinstance(key, ec.EllipticCurvePublicKey)
    if is_ecc != (signature.scheme.algorithm == tpm.ALG_ECDSA):
        raise AppraisalError("bad-signature", "the signature is not of the key's kind")
    try:
        if isinstance(key, ec.EllipticCurvePublicKey):
            key.verify(signature.value, message, ec.ECDSA(algorithm))
        elif signature.scheme.algorithm == tpm.ALG_RSASSA:
            key.verify(signature.value, message, padding.PKCS1v15(), algorithm)
        else:
            key.verify(signature.value, message, padding.PSS(padding.MGF1(algorithm), padding.PSS.AUTO), algorithm)
    except InvalidSignature as error:
        raise AppraisalError("bad-signature", "the signature was not made by this key over this statement") from error


def verify_by(public: PublicArea, signature: Union[bytes, Signature], message: bytes) -> Signature:
    """Check a TPMT_SIGNATURE by a key whose own scheme it must have, and return it. Raises ``AppraisalError``."""
    parsed = parse_signature(signature) if isinstance(signature, bytes) else signature
    if parsed.scheme != public.scheme:
        raise AppraisalError("bad-signature", "the signature does not have the scheme of the attestation key")
    verify_signature(public.key, parsed, message)
    return parsed
