# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who vouches for a TPM: the certificate of its endorsement key, up to an authority that the operator chose.

Every authority that is given is trusted as such, self-signed or not: a platform's intermediate can be named without
its root. Of each authority time, path length, permission to sign and purpose are judged, and one that is bound to names
is refused. Revocation lists are not consulted.
Source: TCG EK Credential Profile 2.5, section 3 (fields of an EK certificate); RFC 5280, section 6.
"""

from __future__ import annotations

import datetime
import warnings
from typing import Callable, Optional, Sequence, TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID, ObjectIdentifier

from .errors import AppraisalError
from .structures import PublicArea

EK_CERTIFICATE = ObjectIdentifier("2.23.133.8.1")
#: Manufacturer, model and version of a TPM, in the subject alternative name's directory name.
_TPM_ATTRIBUTES = frozenset(ObjectIdentifier(f"2.23.133.2.{number}") for number in (1, 2, 3))
#: Extensions that may be critical because they are checked here.
_UNDERSTOOD = frozenset(
    (
        ExtensionOID.BASIC_CONSTRAINTS,
        ExtensionOID.KEY_USAGE,
        ExtensionOID.EXTENDED_KEY_USAGE,
        ExtensionOID.SUBJECT_ALTERNATIVE_NAME,
        ExtensionOID.CERTIFICATE_POLICIES,
    )
)
CERTIFICATE_LIMIT = 16384
CHAIN_LIMIT = 6
_E = TypeVar("_E", bound=x509.ExtensionType)


def load_authorities(pem: bytes) -> list[x509.Certificate]:
    """Read the certificates of one PEM file. Raises ``AppraisalError`` when there is none."""
    try:
        found = x509.load_pem_x509_certificates(pem)
        _tried = [(one.not_valid_before_utc, one.not_valid_after_utc) for one in found]
    except (ValueError, x509.InvalidVersion) as error:
        raise AppraisalError("bad-authority", "the file holds no certificate in PEM form") from error
    return found


def parse_certificate(der: bytes) -> x509.Certificate:
    """Read one DER certificate. Raises ``AppraisalError``."""
    if len(der) > CERTIFICATE_LIMIT:
        raise AppraisalError("malformed", f"the certificate is longer than {CERTIFICATE_LIMIT} bytes")
    try:
        # The library warns of what is unusual, as the serial number 0 that AMD gives all its chips. What a stranger
        # sends shall not write to the operator's terminal.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            certificate = x509.load_der_x509_certificate(der)
            # It parses lazily; what cannot be read shall fail here and not in the middle of a judgement.
            _tried = (certificate.extensions, certificate.public_key(), certificate.issuer, certificate.subject)
            _dates = (certificate.not_valid_before_utc, certificate.not_valid_after_utc)
    except (
        ValueError,
        TypeError,
        UnsupportedAlgorithm,
        x509.InvalidVersion,
        x509.DuplicateExtension,
        x509.UnsupportedGeneralNameType,
    ) as error:
        raise AppraisalError("malformed", "the certificate cannot be read") from error
    return certificate


def verify_endorsement(
    certificate: x509.Certificate,
    endorsement: PublicArea,
    authorities: Sequence[x509.Certificate],
    intermediates: Sequence[x509.Certificate],
    now: datetime.datetime,
) -> tuple[x509.Certificate, ...]:
    """Check that a certificate names ``endorsement`` as an EK and leads to one of ``authorities``.

    Returns the chain from the certificate to the authority. ``intermediates`` may come from anyone. Raises
    ``AppraisalError``.
    """
    if _spki(certificate) != endorsement.key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo):
        raise AppraisalError("other-key", "the certificate is for another key than the TPM's endorsement key")
    _leaf(certificate)
    return verify_chain(certificate, authorities, intermediates, now, frozenset((EK_CERTIFICATE,)))


def verify_chain(
    certificate: x509.Certificate,
    authorities: Sequence[x509.Certificate],
    intermediates: Sequence[x509.Certificate],
    now: datetime.datetime,
    purposes: frozenset[ObjectIdentifier] = frozenset(),
) -> tuple[x509.Certificate, ...]:
    """Return a chain from ``certificate`` to one of ``authorities`` that was valid at ``now``.

    ``purposes`` are those for which an authority may be that names any: with none of them it must name none. A
    certificate that cannot be in the chain is passed over, since authorities are renewed and cross-signed; the reason
    is told when no chain is left. Raises ``AppraisalError``.
    """
    _valid_at(certificate, now)
    refused: list[AppraisalError] = []

    def may_issue(issuer: x509.Certificate, depth: int) -> bool:
        try:
            _require_issuer(issuer, depth, purposes)
            _valid_at(issuer, now)
        except AppraisalError as error:
            refused.append(error)
            return False
        return True

    found = _chain((certificate,), authorities, intermediates, may_issue)
    if found is not None:
        return found
    # That somebody who is no authority signed something is less telling than that an authority has expired.
    telling = [error for error in refused if error.code != "no-chain"]
    if telling or refused:
        raise (telling or refused)[-1]
    raise AppraisalError("no-chain", "no chain leads from the certificate to one of the given authorities")


def _chain(
    chain: tuple[x509.Certificate, ...],
    authorities: Sequence[x509.Certificate],
    intermediates: Sequence[x509.Certificate],
    may_issue: Callable[[x509.Certificate, int], bool],
) -> Optional[tuple[x509.Certificate, ...]]:
    """Return the first chain whose signatures hold, of at most ``CHAIN_LIMIT`` certificates, each good at its place."""
    if len(chain) >= CHAIN_LIMIT:
        return None
    depth = len(chain) - 1
    for authority in authorities:
        if _signed(chain[-1], authority) and may_issue(authority, depth):
            return (*chain, authority)
    for issuer in intermediates:
        if issuer not in chain and _signed(chain[-1], issuer) and may_issue(issuer, depth):
            found = _chain((*chain, issuer), authorities, intermediates, may_issue)
            if found is not None:
                return found
    return None


def _signed(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    if not isinstance(issuer.public_key(), (rsa.RSAPublicKey, ec.EllipticCurvePublicKey)):
        return False
    try:
        algorithm = certificate.signature_hash_algorithm
        if algorithm is None or algorithm.name not in ("sha256", "sha384", "sha512"):
            return False
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True


def _require_issuer(issuer: x509.Certificate, depth: int, purposes: frozenset[ObjectIdentifier]) -> None:
    """Check that a certificate may have ``depth`` authorities below it on the way to the one that is checked."""
    constraints = _extension(issuer, x509.BasicConstraints)
    usage = _extension(issuer, x509.KeyUsage)
    if constraints is None or not constraints.ca or (usage is not None and not usage.key_cert_sign):
        raise AppraisalError("no-chain", "the certificate was signed by somebody who is no authority")
    if constraints.path_length is not None and depth > constraints.path_length:
        raise AppraisalError("no-chain", "more authorities are below one of the chain than it allows")
    # What names an authority may certify is not judged here, so one that is bound to some certifies nothing.
    if _extension(issuer, x509.NameConstraints) is not None:
        raise AppraisalError("unsupported", "an authority of the chain may certify only some names")
    if any(extension.critical and extension.oid not in _UNDERSTOOD for extension in issuer.extensions):
        raise AppraisalError("no-chain", "an authority of the chain has a critical extension that is not understood")
    named = _extension(issuer, x509.ExtendedKeyUsage)
    if named is not None and not {*purposes, ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE} & set(named):
        raise AppraisalError("other-purpose", "an authority of the chain may certify keys for other purposes only")


def _valid_at(certificate: x509.Certificate, now: datetime.datetime) -> None:
    if now < certificate.not_valid_before_utc:
        raise AppraisalError("not-yet-valid", "a certificate of the chain is not valid yet")
    if now > certificate.not_valid_after_utc:
        raise AppraisalError("expired", "a certificate of the chain has expired")


def _leaf(certificate: x509.Certificate) -> None:
    """Check that a certificate says of itself that it is one of a TPM's endorsement key."""
    constraints = _extension(certificate, x509.BasicConstraints)
    if constraints is not None and constraints.ca:
        raise AppraisalError("not-an-ek-certificate", "the certificate is one of an authority")
    purposes = _extension(certificate, x509.ExtendedKeyUsage)
    if purposes is None or EK_CERTIFICATE not in purposes:
        raise AppraisalError("not-an-ek-certificate", "the certificate was not issued for an endorsement key")
    usage = _extension(certificate, x509.KeyUsage)
    if usage is not None and not (usage.key_encipherment or usage.key_agreement):
        raise AppraisalError("not-an-ek-certificate", "the certificate does not allow to encrypt to its key")
    names = _extension(certificate, x509.SubjectAlternativeName)
    found = {
        attribute.oid for name in (names or ()) if isinstance(name, x509.DirectoryName) for attribute in name.value
    }
    if not found >= _TPM_ATTRIBUTES:
        raise AppraisalError(
            "not-an-ek-certificate", "the certificate does not name manufacturer, model and version of a TPM"
        )
    unknown = [ext for ext in certificate.extensions if ext.critical and ext.oid not in _UNDERSTOOD]
    if unknown:
        raise AppraisalError("unsupported", "the certificate has a critical extension that is not understood")


def _extension(certificate: x509.Certificate, kind: type[_E]) -> Optional[_E]:
    try:
        return certificate.extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None


def _spki(certificate: x509.Certificate) -> bytes:
    return certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
