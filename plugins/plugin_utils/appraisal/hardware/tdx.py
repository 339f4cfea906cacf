# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Intel TDX: the report of a trust domain (TDREPORT), and the quote that makes it verifiable elsewhere.

A TDREPORT proves nothing outside its machine; its MAC is for the quoting enclave, whose quote is signed by a key that
Intel certified (PCK). Which firmware versions are still good is said by documents of Intel's (TCB info, enclave
identity), which `tdx_collateral` reads.
Source: Intel TDX DCAP Quoting Library API, appendix A.3 (quote of version 4 and 5); Intel TDX module ABI, section
TDREPORT_STRUCT; Intel SGX PCK certificate specification.
"""

from __future__ import annotations

import datetime
import hashlib
import hmac
from dataclasses import dataclass
from typing import Sequence

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from ..endorsement import CHAIN_LIMIT, verify_chain
from ..errors import AppraisalError
from .certificates import read_certificate
from .fields import Fields, ecdsa_signature

TD_REPORT_SIZE = 1024
QUOTE_LIMIT = 16384
_TEE_TDX = 0x81
_ECDSA_P256 = 2
_INTEL = bytes.fromhex("939a7233f79c4ca9940a0db3957f0607")
#: The signer and product number of Intel's own quoting enclave for trust domains (its published enclave identity).
_TD_QE_SIGNER = bytes.fromhex("dc9e2a7c6f948f17474e34a7fc43ed030f7c1563f1babddf6340c82e0e54a8c5")
_TD_QE_PRODUCT = 2
_SGX_DEBUG = 2
PCK_EXTENSION = "1.2.840.113741.1.13.1"
#: Length of the body by its kind in a quote of version 5: TDX 1.0 and 1.5.
_BODIES = {2: 584, 3: 648}
_CERTIFICATION_PCK_CHAIN, _CERTIFICATION_QE_REPORT = 5, 6


@dataclass(frozen=True)
class TdReport:
    """What a trust domain is. ``identity`` is everything from its attributes to its last runtime register."""

    identity: bytes
    report_data: bytes

    @property
    def debug(self) -> bool:
        """Whether the host may read the trust domain (any of the TUD attributes, bits 0 to 7)."""
        return self.identity[0] != 0

    @property
    def measurement(self) -> bytes:
        """MRTD: what the trust domain was built from."""
        return self.identity[16:64]


@dataclass(frozen=True)
class TdQuote:
    """A quote in parts. ``signed`` is what the attestation key of the quoting enclave signed."""

    signed: bytes
    report: TdReport
    tcb_svn: bytes
    module_signer: bytes
    signature: bytes
    attestation_key: bytes
    enclave_report: bytes
    enclave_signature: bytes
    authentication: bytes
    certificates: tuple[x509.Certificate, ...]


def parse_td_report(data: bytes) -> TdReport:
    """Read a TDREPORT, which may be followed by zeros. Raises ``AppraisalError``."""
    reader = Fields(data, "TD report")
    if reader.u8() != _TEE_TDX:
        raise AppraisalError("unsupported", "the TD report is not one of a trust domain")
    reader.take(127)  # sub-type, processor's version, digests of the two structures below
    report_data = reader.take(64)
    reader.zeros(32)
    reader.take(32 + 239 + 17)  # MAC, TCB
    identity = reader.take(400)
    reader.take(TD_REPORT_SIZE - reader.position)
    reader.zeros(len(data) - reader.position)
    return TdReport(identity, report_data)


def parse_quote(data: bytes) -> TdQuote:
    """Read a quote of version 4 or 5, which may be followed by zeros. Raises ``AppraisalError``."""
    reader = Fields(data, "TD quote", QUOTE_LIMIT)
    version, key_kind, tee = reader.u16(), reader.u16(), reader.u32()
    reader.take(4)
    if version not in (4, 5) or key_kind != _ECDSA_P256 or tee != _TEE_TDX or reader.take(16) != _INTEL:
        raise AppraisalError("unsupported", "the TD quote is not one of version 4 or 5 by Intel's enclave on P-256")
    reader.take(20)
    body_size = 584
    if version == 5:
        kind, body_size = reader.u16(), reader.u32()
        if _BODIES.get(kind) != body_size:
            raise AppraisalError("unsupported", "the TD quote has a body that is not one of TDX 1.0 or 1.5")
    body = Fields(reader.take(body_size), "body of the TD quote")
    signed = data[: reader.position]
    tcb_svn, _module, module_signer, _module_attributes = body.take(16), body.take(48), body.take(48), body.take(8)
    report = TdReport(body.take(400), body.take(64))
    size = reader.u32()
    evidence = Fields(reader.take(size), "signature of the TD quote", QUOTE_LIMIT)
    reader.zeros(len(data) - reader.position)
    return TdQuote(signed, report, tcb_svn, module_signer, *_signature_data(evidence))


def _signature_data(reader: Fields) -> tuple[bytes, bytes, bytes, bytes, bytes, tuple[x509.Certificate, ...]]:
    signature, key = reader.take(64), reader.take(64)
    if reader.u16() != _CERTIFICATION_QE_REPORT:
        raise AppraisalError("unsupported", "the TD quote is not certified by a report of the quoting enclave")
    size = reader.u32()
    certification = Fields(reader.take(size), "certification of the TD quote", QUOTE_LIMIT)
    reader.end()
    report, report_signature = certification.take(384), certification.take(64)
    authentication = certification.take(certification.u16())
    if certification.u16() != _CERTIFICATION_PCK_CHAIN:
        raise AppraisalError("unsupported", "the TD quote does not carry the certificates of its platform")
    pem = certification.take(certification.u32())
    certification.end()
    return signature, key, report, report_signature, authentication, _certificates(pem.rstrip(b"\0"))


def _certificates(pem: bytes) -> tuple[x509.Certificate, ...]:
    if pem.count(b"-----BEGIN") not in range(1, CHAIN_LIMIT + 1):
        raise AppraisalError("malformed", f"the TD quote does not carry 1 to {CHAIN_LIMIT} certificates")
    try:
        found = x509.load_pem_x509_certificates(pem)
    except (ValueError, x509.InvalidVersion) as error:
        raise AppraisalError("malformed", "the certificates in the TD quote cannot be read") from error
    return tuple(read_certificate(certificate.public_bytes(Encoding.DER)) for certificate in found)


def verify_quote(
    quote: TdQuote, authorities: Sequence[x509.Certificate], now: datetime.datetime
) -> tuple[x509.Certificate, ...]:
    """Check every signature from the trust domain's report up to Intel, and return the chain, leaf first.

    ``authorities`` are the roots that the caller trusts. Not judged here: how old the firmware is, and revocation.
    Raises ``AppraisalError``.
    """
    leaf = quote.certificates[0]
    if not any(extension.oid.dotted_string == PCK_EXTENSION for extension in leaf.extensions):
        raise AppraisalError("not-a-pck", "the first certificate in the TD quote is not one of a platform (PCK)")
    chain = verify_chain(leaf, authorities, quote.certificates[1:], now)
    platform = leaf.public_key()
    if not isinstance(platform, ec.EllipticCurvePublicKey) or platform.curve.name != "secp256r1":
        raise AppraisalError("not-a-pck", "the key in the platform's certificate is not on the curve P-256")
    _verify(platform, quote.enclave_signature, quote.enclave_report, "the platform did not sign the enclave's report")
    _quoting_enclave(quote)
    try:
        key = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), b"\x04" + quote.attestation_key)
    except ValueError as error:
        raise AppraisalError("bad-key", "the attestation key of the TD quote is not a point of its curve") from error
    _verify(key, quote.signature, quote.signed, "the quoting enclave did not sign this TD quote")
    if any(quote.module_signer):
        raise AppraisalError("other-tdx-module", "the TDX module of the machine is not Intel's")
    return chain


def _quoting_enclave(quote: TdQuote) -> None:
    """Check that the enclave is Intel's and that it vouches for the quote's attestation key.

    Any enclave with the right to provision can have a report signed by the platform, so its signer matters.
    """
    report = quote.enclave_report
    if report[48] & _SGX_DEBUG:
        raise AppraisalError("other-enclave", "the quoting enclave can be debugged")
    if report[128:160] != _TD_QE_SIGNER or int.from_bytes(report[256:258], "little") != _TD_QE_PRODUCT:
        raise AppraisalError("other-enclave", "the enclave that made the TD quote is not Intel's quoting enclave")
    bound = hashlib.sha256(quote.attestation_key + quote.authentication).digest()
    if not hmac.compare_digest(bound.ljust(64, b"\0"), report[320:384]):
        raise AppraisalError("other-enclave", "the quoting enclave does not vouch for the key of this TD quote")


def _verify(key: ec.EllipticCurvePublicKey, signature: bytes, message: bytes, reason: str) -> None:
    try:
        key.verify(ecdsa_signature(signature), message, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature as error:
        raise AppraisalError("bad-report-signature", reason) from error
