# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Evidence for the tests of the roads: real, captured on clouds, and made here with authorities of our own.

What was captured cannot be changed and signed again. Rules that come after a signature are therefore tested with
documents, reports and quotes that a whole chain of our own really signs.
"""

from __future__ import annotations

import base64
import datetime
import hashlib
import json
import struct
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Callable, Iterator, Optional, Sequence, Union

import pytest
from ansible_collections.cvm.fde.plugins.module_utils.tpm import templates as tpm
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.endorsement import load_authorities
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.errors import AppraisalError
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.hardware.hcl import parse_hcl
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.roads.trust import Attester
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.structures import (
    PublicArea,
    parse_public,
    parse_quote,
    qualified_name,
)
from ansible_collections.cvm.fde.tests.unit.plugins.plugin_utils.appraisal.encoding import (
    AK_ATTRIBUTES,
    AZURE_AK_ATTRIBUTES,
    ecc_area,
    rsa_area,
    sized,
)
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID, ObjectIdentifier

NOW = datetime.datetime(2026, 6, 1, 12, 0, tzinfo=datetime.timezone.utc)


@pytest.fixture(scope="session")
def now() -> datetime.datetime:
    """The moment as of which everything that is made here is judged."""
    return NOW


@pytest.fixture(scope="session")
def refused() -> Callable[[str], Any]:
    """A context that must be left by the one error type, with this code."""

    @contextmanager
    def context(code: str) -> Iterator[None]:
        with pytest.raises(AppraisalError) as caught:
            yield
        assert caught.value.code == code, str(caught.value)

    return context


@pytest.fixture(scope="session")
def flip() -> Callable[..., bytes]:
    """Return bytes with one bit of one of them changed."""

    def flipped(data: bytes, place: int, bit: int = 1) -> bytes:
        return data[:place] + bytes([data[place] ^ bit]) + data[place + 1 :]

    return flipped


# --- keys


@pytest.fixture(scope="session")
def ecc_key() -> Callable[..., PublicArea]:
    """Make a new P-256 attestation key's public area, with other attributes where asked."""

    def make(attributes: int = AK_ATTRIBUTES) -> PublicArea:
        numbers = ec.generate_private_key(ec.SECP256R1()).public_key().public_numbers()
        return ecc_area(attributes, numbers.x, numbers.y)

    return make


@pytest.fixture(scope="session")
def attester(ecc_key: Callable[..., PublicArea]) -> Callable[..., Attester]:
    """Make what a machine shows: by default a new key, and a quote by it."""

    def make(ak: Optional[PublicArea] = None, nonce: bytes = bytes(32), values: Any = None) -> Attester:
        ak = ak or ecc_key()
        return Attester(ak, qualified_name(ak), nonce, values or {})

    return make


# --- authorities of our own


class Authority:
    """A certificate and its key; ``issue`` makes another one below it."""

    def __init__(self, certificate: x509.Certificate, key: Any) -> None:
        self.certificate = certificate
        self.key = key

    @property
    def der(self) -> bytes:
        return self.certificate.public_bytes(Encoding.DER)

    @classmethod
    def root(cls, name: str = "root", curve: Optional[ec.EllipticCurve] = None) -> Authority:
        key = ec.generate_private_key(curve or ec.SECP384R1())
        return cls(_certificate(name, key.public_key(), name, key, True, (), NOW), key)

    def issue(
        self,
        name: str,
        public: Any = None,
        extensions: Sequence[tuple[x509.ExtensionType, bool]] = (),
        authority: bool = False,
        curve: Optional[ec.EllipticCurve] = None,
        start: datetime.datetime = NOW,
    ) -> Authority:
        """Certify ``public``, or a new key."""
        key = None if public else ec.generate_private_key(curve or ec.SECP384R1())
        subject = public or key.public_key()
        issuer = self.certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value
        return Authority(_certificate(name, subject, str(issuer), self.key, authority, extensions, start), key)


def _certificate(
    name: str,
    public: Any,
    issuer: str,
    key: Any,
    authority: bool,
    extensions: Sequence[tuple[x509.ExtensionType, bool]],
    start: datetime.datetime,
) -> x509.Certificate:
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start - datetime.timedelta(days=1))
        .not_valid_after(start + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(authority, None), True)
    )
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical)
    return builder.sign(key, hashes.SHA384())


@pytest.fixture(scope="session")
def authority() -> type[Authority]:
    return Authority


@pytest.fixture(scope="session")
def extension() -> Callable[[str, bytes], x509.ExtensionType]:
    return lambda name, raw: x509.UnrecognizedExtension(ObjectIdentifier(name), raw)


# --- evidence that was captured


class Captured:
    """The real inputs, read when they are asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def read(self, path: str) -> bytes:
        return (self.folder / path).read_bytes()

    def json(self, path: str) -> Any:
        return json.loads(self.read(path))

    def authorities(self, path: str) -> list[x509.Certificate]:
        return load_authorities(self.read(path))

    @property
    def ark(self) -> x509.Certificate:
        """AMD's root for Milan."""
        return self.authorities("hardware/sev-snp-milan-milan.testcer")[1]

    @property
    def ask(self) -> x509.Certificate:
        """AMD's signing key for Milan."""
        return self.authorities("hardware/sev-snp-milan-milan.testcer")[0]

    def azure(self, path: str) -> tuple[dict[str, bytes], Attester]:
        """Return the parts of one of Azure's pieces of evidence, decoded, and what the machine showed."""
        found = self.json(path)
        parts = {
            name: base64.urlsafe_b64decode(found[name] + "=" * (-len(found[name]) % 4))
            for name in ("hcl_report", "vcek", "td_quote")
            if name in found
        }
        quote = parse_quote(bytes.fromhex(found["tpm_quote"]["message"]))
        numbers = parse_hcl(parts["hcl_report"]).claims.attestation_key.public_numbers()
        ak = rsa_area(AZURE_AK_ATTRIBUTES, numbers.n)
        return parts, Attester(ak, quote.qualified_signer, quote.extra_data, {})

    def vaportpm(self, path: str) -> tuple[dict[str, Any], Attester]:
        """Return the attestation of a machine at AWS or Google, and what it showed."""
        found = self.json(path)
        point = found["ak_pubkeys"]["ecc_p256"]
        ak = ecc_area(AK_ATTRIBUTES, int(point["x"], 16), int(point["y"], 16))
        quote = parse_quote(bytes.fromhex(found["attestation"]["tpm"]["ecc_p256"]["attest_data"]))
        values = {
            bank: {int(pcr): bytes.fromhex(value) for pcr, value in pcrs.items()}
            for bank, pcrs in found["pcrs"].items()
        }
        nonce = bytes.fromhex(found["nonce"])
        return found["attestation"], Attester(ak, quote.qualified_signer, nonce, values)


@pytest.fixture(scope="session")
def captured(vectors: Path) -> Captured:
    return Captured(vectors)


# --- evidence that is made here


def little_endian_signature(key: ec.EllipticCurvePrivateKey, message: bytes) -> bytes:
    r, s = decode_dss_signature(key.sign(message, ec.ECDSA(hashes.SHA384())))
    return (r.to_bytes(72, "little") + s.to_bytes(72, "little")).ljust(512, b"\0")


def big_endian_signature(key: ec.EllipticCurvePrivateKey, message: bytes, algorithm: hashes.HashAlgorithm) -> bytes:
    size = (key.curve.key_size + 7) // 8
    r, s = decode_dss_signature(key.sign(message, ec.ECDSA(algorithm)))
    return r.to_bytes(size, "big") + s.to_bytes(size, "big")


class SnpMachine:
    """A chip with a certificate of our own, and reports that it really signs."""

    def __init__(self, product: str = "Milan", chip: Optional[bytes] = None, drop: str = "", **tcb: int) -> None:
        self.turin = product == "Turin"
        self.product = product
        self.chip = chip or bytes(range(8 if self.turin else 64))
        self.tcb = {"bootloader": 4, "tee": 0, "snp": 24, "microcode": 219, "fmc": 1, **tcb}
        self.ark = Authority.root("ARK")
        self.ask = self.ark.issue("ASK", authority=True)
        amd = "1.3.6.1.4.1.3704.1."
        numbers = {"bootloader": 1, "tee": 2, "snp": 3, "microcode": 8, "fmc": 9}
        named = {f"{amd}2": b"\x16" + bytes([len(product) + 3]) + product.encode() + b"-B0", f"{amd}4": self.chip}
        for component, number in numbers.items():
            value = self.tcb[component]
            named[f"{amd}3.{number}"] = (
                b"\x02\x01" + bytes([value]) if value < 128 else b"\x02\x02\x00" + bytes([value])
            )
        named.pop(drop, None)
        listed = [(x509.UnrecognizedExtension(ObjectIdentifier(name), raw), False) for name, raw in named.items()]
        self.vcek = self.ask.issue("SEV-VCEK", extensions=listed)

    def reported_tcb(self) -> bytes:
        tcb = self.tcb
        if self.turin:
            return bytes([tcb["fmc"], tcb["bootloader"], tcb["tee"], tcb["snp"], 0, 0, 0, tcb["microcode"]])
        return bytes([tcb["bootloader"], tcb["tee"], 0, 0, 0, 0, tcb["snp"], tcb["microcode"]])

    def report(self, report_data: bytes = bytes(64), **changes: int) -> bytes:
        """Return a signed report; ``changes`` are of its numbers."""
        field = {"version": 2, "policy": 0x3001F & ~(1 << 18), "vmpl": 0, "algorithm": 1, "flags": 0, **changes}
        raw = bytearray(0x2A0)
        struct.pack_into("<IIQ", raw, 0, field["version"], 0, field["policy"])
        struct.pack_into("<II", raw, 0x30, field["vmpl"], field["algorithm"])
        struct.pack_into("<I", raw, 0x48, field["flags"])
        raw[0x50:0x90] = report_data.ljust(64, b"\0")
        raw[0x180:0x188] = self.reported_tcb()
        raw[0x188:0x18A] = bytes([field.get("family", 0), field.get("model", 0)])
        raw[0x1A0:0x1E0] = self.chip.ljust(64, b"\0")
        return bytes(raw) + little_endian_signature(self.vcek.key, bytes(raw))


class TdxMachine:
    """A platform with a certificate of our own, and quotes that its enclave really signs."""

    QE_SIGNER = bytes.fromhex("dc9e2a7c6f948f17474e34a7fc43ed030f7c1563f1babddf6340c82e0e54a8c5")

    def __init__(self, pck_extension: bool = True) -> None:
        self.root = Authority.root("SGX root", ec.SECP256R1())
        extension = x509.UnrecognizedExtension(ObjectIdentifier("1.2.840.113741.1.13.1"), b"0\0")
        listed = [(extension, False)] if pck_extension else []
        self.pck = self.root.issue("PCK", extensions=listed, curve=ec.SECP256R1())
        self.key = ec.generate_private_key(ec.SECP256R1())

    def td_report(self, report_data: bytes, attributes: int = 0) -> bytes:
        identity = struct.pack("<Q", attributes) + bytes(range(200)) + bytes(192)
        head = b"\x81" + bytes(127) + report_data.ljust(64, b"\0") + bytes(32 + 32 + 239 + 17)
        return (head + identity).ljust(1024, b"\0")

    def quote(
        self,
        report_data: bytes,
        attributes: int = 0,
        version: int = 4,
        module_signer: bytes = bytes(48),
        enclave_signer: bytes = QE_SIGNER,
        enclave_attributes: int = 0,
        vouched: Optional[bytes] = None,
    ) -> bytes:
        header = struct.pack("<HHI", version, 2, 0x81) + bytes(4)
        header += bytes.fromhex("939a7233f79c4ca9940a0db3957f0607") + bytes(20)
        identity = self.td_report(report_data, attributes)[512:912]
        body = bytes([2, 1, 6]).ljust(16, b"\0") + bytes(48) + module_signer + bytes(8) + identity
        body += report_data.ljust(64, b"\0")
        signed = header + (struct.pack("<HI", 2, len(body)) if version == 5 else b"") + body
        point = self.key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)[1:]
        enclave = bytearray(384)
        enclave[48] = enclave_attributes
        enclave[128:160] = enclave_signer
        enclave[256:258] = struct.pack("<H", 2)
        enclave[320:352] = vouched or hashlib.sha256(point + bytes(32)).digest()
        pem = self.pck.certificate.public_bytes(Encoding.PEM) + self.root.certificate.public_bytes(Encoding.PEM)
        certification = bytes(enclave) + big_endian_signature(self.pck.key, bytes(enclave), hashes.SHA256())
        certification += struct.pack("<H", 32) + bytes(32) + struct.pack("<HI", 5, len(pem)) + pem
        data = big_endian_signature(self.key, signed, hashes.SHA256()) + point
        data += struct.pack("<HI", 6, len(certification)) + certification
        return signed + struct.pack("<I", len(data)) + data


class HclMaker:
    """Paravisor's reports: claims beside a hardware report over their digest."""

    def __init__(self) -> None:
        self.ek = rsa.generate_private_key(65537, 2048)
        self.ak = rsa.generate_private_key(65537, 2048)

    def claims(self, **machine: Any) -> bytes:
        def jwk(name: str, key: rsa.RSAPrivateKey) -> dict[str, str]:
            raw = key.public_key().public_numbers().n.to_bytes(256, "big")
            return {"kid": name, "kty": "RSA", "e": "AQAB", "n": base64.urlsafe_b64encode(raw).decode().rstrip("=")}

        listed = [jwk("HCLAkPub", self.ak), jwk("HCLEkPub", self.ek)]
        machine = {"secure-boot": True, "vmUniqueId": "6332533D-5649-4D02-8AA7-8F64B7C3EE21", **machine}
        return json.dumps({"keys": listed, "vm-configuration": machine, "user-data": "ab" * 64}).encode()

    def report(self, hardware: bytes, claims: bytes, kind: int = 2, version: int = 1) -> bytes:
        capabilities = struct.pack("<I", 3) if version == 2 else b""
        size = 20 + len(capabilities) + len(claims)
        head = b"HCLA" + struct.pack("<III", 2, 1216 + size, 2) + bytes(16)
        middle = struct.pack("<IIIII", size, version, kind, 1, len(claims)) + capabilities
        return (head + hardware.ljust(1184, b"\0") + middle + claims).ljust(2600, b"\0")

    def attestation_area(self) -> PublicArea:
        return rsa_area(AZURE_AK_ATTRIBUTES, self.ak.public_key().public_numbers().n)

    def endorsement_area(self) -> PublicArea:
        modulus = self.ek.public_key().public_numbers().n.to_bytes(256, "big")
        return parse_public(tpm.EK_RSA_2048.fixed + sized(modulus))


Cbor = Union[int, bytes, str, None, list, dict]


def cbor(item: Cbor, open_map: bool = False) -> bytes:
    """Encode one item; maps are written in their own order."""

    def head(major: int, count: int) -> bytes:
        if count < 24:
            return bytes([major << 5 | count])
        size = 1 if count < 1 << 8 else 2 if count < 1 << 16 else 8
        return bytes([major << 5 | {1: 24, 2: 25, 8: 27}[size]]) + count.to_bytes(size, "big")

    if item is None:
        return b"\xf6"
    if isinstance(item, int):
        return head(0, item) if item >= 0 else head(1, -1 - item)
    if isinstance(item, bytes):
        return head(2, len(item)) + item
    if isinstance(item, str):
        return head(3, len(item.encode())) + item.encode()
    if isinstance(item, list):
        return head(4, len(item)) + b"".join(cbor(part) for part in item)
    inner = b"".join(cbor(key) + cbor(value) for key, value in item.items())
    return b"\xbf" + inner + b"\xff" if open_map else head(5, len(item)) + inner


class NitroMachine:
    """A NitroTPM under an authority of our own, and documents that it really signs."""

    MODULE = "i-0123456789abcdef0-tpm0000000000000000"

    def __init__(self, name: str = f"{MODULE}.eu-central-1.aws") -> None:
        self.root = Authority.root("aws.nitro-enclaves")
        self.zone = self.root.issue("zone", authority=True)
        self.leaf = self.zone.issue(name)

    def payload(self, key: bytes, challenge: bytes, **changes: Any) -> dict[str, Any]:
        return {
            "module_id": self.MODULE,
            "digest": "SHA384",
            "timestamp": int(NOW.timestamp() * 1000),
            "nitrotpm_pcrs": {pcr: bytes([pcr]) * 48 for pcr in range(24)},
            "certificate": self.leaf.der,
            "cabundle": [self.root.der, self.zone.der],
            "public_key": key,
            "user_data": None,
            "nonce": challenge,
            **changes,
        }

    def document(self, payload: bytes, protected: bytes = cbor({1: -35}), key: Any = None) -> bytes:
        to_sign = cbor(["Signature1", protected, b"", payload])
        signature = big_endian_signature(key or self.leaf.key, to_sign, hashes.SHA384())
        return cbor([protected, {}, payload, signature])


@pytest.fixture(scope="session")
def snp_machine() -> type[SnpMachine]:
    return SnpMachine


@pytest.fixture(scope="session")
def tdx_machine() -> type[TdxMachine]:
    return TdxMachine


@pytest.fixture(scope="session")
def hcl() -> HclMaker:
    return HclMaker()


@pytest.fixture(scope="session")
def nitro_machine() -> type[NitroMachine]:
    return NitroMachine


@pytest.fixture(scope="session")
def encode_cbor() -> Callable[..., bytes]:
    return cbor
