# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Google Compute Engine: the platform certifies its own attestation key of every confidential VM.

The certificate is in the TPM (NV 0x01c10000 for RSA, 0x01c10002 for ECC), its key is the primary key of the template
beside it. So the quote must come from that key; no credential is needed.
Source: go-tpm-tools, server/verify.go and server/instance_info.go (extension 1.3.6.1.4.1.11129.2.1.21).
"""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from typing import Sequence

from cryptography import x509

from ..endorsement import EK_CERTIFICATE, verify_chain
from ..errors import AppraisalError
from ..hardware import der
from ..hardware.certificates import read_certificate
from .trust import (
    NO_REVOCATION,
    AkTrust,
    Attester,
    Binding,
    Detail,
    HostIdentity,
    Remark,
    RoadName,
    digest,
    few,
    fingerprints,
    same_key,
)

_INSTANCE = "1.3.6.1.4.1.11129.2.1.21"
_CRITICAL = ("2.5.29.15", "2.5.29.19", "2.5.29.37", _INSTANCE)
_AK_CERTIFICATE = x509.ObjectIdentifier("2.23.133.8.3")
#: Google's authorities say that they are for endorsement keys, and certify attestation keys as well.
_AUTHORITIES_FOR = frozenset((_AK_CERTIFICATE, EK_CERTIFICATE))
_PRODUCTION = der.CONTEXT | 1


@dataclass(frozen=True)
class GcpAkCertificate:
    """The certificate (DER), the intermediates that came with it (DER), and the roots that the caller trusts."""

    certificate: bytes
    intermediates: Sequence[bytes]
    authorities: Sequence[x509.Certificate]

    def establish(self, attester: Attester, now: datetime.datetime) -> AkTrust:
        """See `trust.Road`."""
        attester.require_attestation_key()
        certificate = read_certificate(self.certificate)
        if not same_key(certificate.public_key(), attester.ak.key):
            raise AppraisalError("other-key", "the certificate is for another key than the attestation key")
        _require_leaf(certificate)
        between = [read_certificate(raw) for raw in few(self.intermediates)]
        chain = _chain(certificate, self.authorities, between, now)
        host = _instance(certificate)
        bindings = (
            Binding("attestation key", "certificate", "the certificate is for this key"),
            Binding("certificate", "authority", f"{len(chain) - 1} signatures lead to an authority that was given"),
            Binding("certificate", "instance", "the platform wrote the instance into it"),
        )
        hardware = Remark("hardware-report", "the platform, not the processor, says that the machine is confidential")
        return AkTrust(
            RoadName.GCP_AK_CERTIFICATE, attester.ak.name, digest(attester.ak.key), None, host, None, bindings,
            fingerprints(chain), (), (NO_REVOCATION, hardware), now,
        )  # fmt: skip


def _chain(
    certificate: x509.Certificate,
    authorities: Sequence[x509.Certificate],
    between: Sequence[x509.Certificate],
    now: datetime.datetime,
) -> tuple[x509.Certificate, ...]:
    try:
        return verify_chain(certificate, authorities, between, now, _AUTHORITIES_FOR)
    except AppraisalError as error:
        # The TPM holds the certificate alone, so with the root alone there never is a chain.
        if error.code == "no-chain" and not between:
            why = f"{error.reason}: give Google's intermediate, whose signature is on it, beside the root"
            raise AppraisalError("no-chain", why) from error
        raise


def _require_leaf(certificate: x509.Certificate) -> None:
    wrong = AppraisalError("not-an-ak-certificate", "the certificate was not issued for an attestation key")
    for extension in certificate.extensions:
        value = extension.value
        if extension.critical and extension.oid.dotted_string not in _CRITICAL:
            raise AppraisalError("unsupported", "the certificate has a critical extension that is not understood")
        if isinstance(value, x509.BasicConstraints) and value.ca:
            raise wrong
        if isinstance(value, x509.KeyUsage) and not value.digital_signature:
            raise wrong
        # Today's certificates name no purpose. One that does must name this one.
        if isinstance(value, x509.ExtendedKeyUsage) and _AK_CERTIFICATE not in value:
            raise wrong


def _instance(certificate: x509.Certificate) -> HostIdentity:
    """Read which instance the certificate is of, and refuse one that was not made in production."""
    try:
        extension = certificate.extensions.get_extension_for_oid(x509.ObjectIdentifier(_INSTANCE)).value
    except x509.ExtensionNotFound as error:
        raise AppraisalError("no-instance", "the certificate does not say which instance it is of") from error
    raw = extension.value if isinstance(extension, x509.UnrecognizedExtension) else b""
    whole = der.Values(raw, "instance in the certificate")
    values = whole.inside(der.SEQUENCE)
    whole.end()
    zone, project_number, project = values.text(), values.integer(), values.text()
    instance, name = values.integer(), values.text()
    production = False
    if values.tag == der.CONTEXT:
        explicit = values.inside(der.CONTEXT)
        production = _production(explicit.inside(der.SEQUENCE))
        explicit.end()
    values.end()
    if not production:
        raise AppraisalError("not-production", "the certificate was not issued by the platform's production")
    details: dict[str, Detail] = {
        "zone": zone,
        "project": project,
        "project_number": project_number,
        "instance_name": name,
    }
    return HostIdentity("gcp", str(instance), details)


def _production(flags: der.Values) -> bool:
    """Return the flag among the security properties that counts; the others are passed over, each once, in order."""
    production, before = False, 0
    while flags.tag:
        tag = flags.tag
        if tag <= before:
            raise AppraisalError("malformed", "the security properties in the certificate are not in order")
        before = tag
        value = flags.inside(tag)
        if tag == _PRODUCTION:
            production = value.boolean()
            value.end()
    flags.end()
    return production
