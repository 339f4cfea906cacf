# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""AWS NitroTPM attestation documents: COSE_Sign1 over CBOR, signed by a certificate that lives three hours.

Source: AWS EC2 user guide, "Validate NitroTPM Attestation Document"; RFC 9052, section 4 (COSE_Sign1).
"""

from __future__ import annotations

import datetime
import re
from dataclasses import dataclass
from typing import Mapping, Optional, Sequence, Union

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from ..cbor import Item, Key, decode, encode_strings
from ..endorsement import verify_chain
from ..errors import AppraisalError
from .certificates import read_certificate
from .fields import ecdsa_signature

#: A document of the largest fields (three of 1 KiB) and a bundle of five certificates stays below.
DOCUMENT_LIMIT = 16384
BUNDLE_LIMIT = 5
FIELD_LIMIT = 1024
_PROTECTED_LIMIT = 16
_COSE_SIGN1 = b"\xd2"
_ALGORITHM, _ES384 = 1, -35
_REQUIRED = frozenset(("module_id", "timestamp", "digest", "nitrotpm_pcrs", "certificate", "cabundle"))
_OPTIONAL = frozenset(("public_key", "user_data", "nonce"))
_MODULE = re.compile(r"(i-[0-9a-f]{8,17})-tpm[0-9a-f]{1,16}")


@dataclass(frozen=True)
class NitroDocument:
    """An attestation document. ``instance`` is the part of ``module`` that names the EC2 instance."""

    module: str
    instance: str
    timestamp: datetime.datetime
    pcrs: Mapping[int, bytes]
    certificate: x509.Certificate
    bundle: tuple[x509.Certificate, ...]
    public_key: Optional[bytes]
    user_data: Optional[bytes]
    nonce: Optional[bytes]
    signed: bytes
    signature: bytes


def parse_document(data: bytes) -> NitroDocument:
    """Read a document, tagged as COSE_Sign1 or not. Raises ``AppraisalError``."""
    untagged = data[1:] if data[:1] == _COSE_SIGN1 else data
    parts = decode(untagged, "attestation document", DOCUMENT_LIMIT)
    if not isinstance(parts, list) or len(parts) != 4:
        raise _malformed("is not COSE_Sign1")
    protected, unprotected, payload, signature = parts
    if not isinstance(protected, bytes) or not isinstance(payload, bytes) or unprotected != {}:
        raise _malformed("is not COSE_Sign1")
    if decode(protected, "header of the attestation document", _PROTECTED_LIMIT) != {_ALGORITHM: _ES384}:
        raise AppraisalError("unsupported", "the attestation document is not signed by ES384")
    if not isinstance(signature, bytes) or len(signature) != 96:
        raise _malformed("does not have a signature of 96 bytes")
    fields = decode(payload, "payload of the attestation document", DOCUMENT_LIMIT, open_map=True)
    if not isinstance(fields, dict) or not _REQUIRED <= set(fields) <= _REQUIRED | _OPTIONAL:
        raise _malformed("does not have the fields of NitroTPM")
    signed = encode_strings(["Signature1", protected, b"", payload])
    return _document(fields, signed, signature)


def _document(fields: Mapping[Key, Item], signed: bytes, signature: bytes) -> NitroDocument:
    module, timestamp = fields["module_id"], fields["timestamp"]
    match = _MODULE.fullmatch(module) if isinstance(module, str) else None
    if match is None:
        raise _malformed("does not name a NitroTPM of an instance")
    # Milliseconds since 1970; the bound is the year 2106.
    if isinstance(timestamp, bool) or not isinstance(timestamp, int) or not 0 < timestamp < 1 << 42:
        raise _malformed("has no time of its making")
    if fields["digest"] != "SHA384":
        raise AppraisalError("unsupported", "the attestation document does not hold SHA-384 PCRs")
    bundle = fields["cabundle"]
    if not isinstance(bundle, list) or not 1 <= len(bundle) <= BUNDLE_LIMIT:
        raise _malformed(f"does not have 1 to {BUNDLE_LIMIT} certificates of authorities")
    return NitroDocument(
        match.group(0),
        match.group(1),
        datetime.datetime.fromtimestamp(timestamp / 1000, datetime.timezone.utc),
        _pcrs(fields["nitrotpm_pcrs"]),
        read_certificate(_bytes(fields["certificate"])),
        tuple(read_certificate(_bytes(certificate)) for certificate in bundle),
        _optional(fields.get("public_key")),
        _optional(fields.get("user_data")),
        _optional(fields.get("nonce")),
        signed,
        signature,
    )


def _pcrs(found: Item) -> dict[int, bytes]:
    if not isinstance(found, dict):
        raise _malformed("has no PCRs")
    pcrs = {}
    for number, value in found.items():
        if not isinstance(number, int) or not 0 <= number < 24 or not isinstance(value, bytes) or len(value) != 48:
            raise _malformed("has a PCR that does not exist")
        pcrs[number] = value
    return pcrs


def _bytes(found: Item) -> bytes:
    if not isinstance(found, bytes):
        raise _malformed("has a certificate that is not a byte string")
    return found


def _optional(found: Item) -> Optional[bytes]:
    if found is not None and (not isinstance(found, bytes) or len(found) > FIELD_LIMIT):
        raise _malformed(f"has a field that is not a byte string of at most {FIELD_LIMIT} bytes")
    return found


def verify_document(
    document: NitroDocument, authorities: Sequence[x509.Certificate], moments: Sequence[datetime.datetime]
) -> tuple[x509.Certificate, ...]:
    """Check the signature and the chain at each of ``moments``; return the chain, leaf first.

    Raises ``AppraisalError``.
    """
    chain: tuple[x509.Certificate, ...] = ()
    for moment in moments:
        chain = verify_chain(document.certificate, authorities, document.bundle, moment)
    leaf = document.certificate
    _require_leaf(leaf, document.module)
    key = leaf.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name != "secp384r1":
        raise AppraisalError("not-a-nitrotpm", "the key of the attestation document is not on the curve P-384")
    try:
        key.verify(ecdsa_signature(document.signature), document.signed, ec.ECDSA(hashes.SHA384()))
    except InvalidSignature as error:
        raise AppraisalError("bad-document-signature", "the NitroTPM did not sign this document") from error
    return chain


def _require_leaf(leaf: x509.Certificate, module: str) -> None:
    """Check that the certificate is of this very NitroTPM, and of no authority."""
    names: list[Union[str, bytes]] = [name.value for name in leaf.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    if len(names) != 1 or not isinstance(names[0], str) or names[0].partition(".")[0] != module:
        raise AppraisalError("other-instance", "document and certificate are of different instances")
    for extension in leaf.extensions:
        value = extension.value
        if isinstance(value, x509.BasicConstraints) and value.ca:
            raise AppraisalError("not-a-nitrotpm", "the certificate of the document is one of an authority")
        if isinstance(value, x509.KeyUsage) and not value.digital_signature:
            raise AppraisalError("not-a-nitrotpm", "the certificate of the document does not allow signatures")
        if extension.critical and not isinstance(value, (x509.BasicConstraints, x509.KeyUsage)):
            raise AppraisalError("unsupported", "the certificate has a critical extension that is not understood")


def _malformed(what: str) -> AppraisalError:
    return AppraisalError("malformed", f"the attestation document {what}")
