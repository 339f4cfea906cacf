# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Roads over the endorsement key (EK): whoever vouches for it, the attestation key is bound to it by activation.

The credential that the controller made can be opened only by the TPM that holds both keys. The EK is believed by its
certificate, because the operator pinned it, or because a hardware report names it (``azure``).
Source: TPM 2.0 Library part 1, section 24; TCG EK Credential Profile 2.5.
"""

from __future__ import annotations

import datetime
import hmac
import secrets
from dataclasses import dataclass, field, replace
from typing import Sequence

from cryptography import x509

from ....module_utils.tpm import templates as tpm
from ..credential import SECRET_SIZE, Credential, make_credential
from ..endorsement import verify_endorsement
from ..errors import AppraisalError
from ..hardware.certificates import read_certificate
from ..structures import PublicArea
from .trust import NO_REVOCATION, AkTrust, Attester, Binding, Remark, RoadName, digest, few, fingerprints


@dataclass(frozen=True)
class Activation:
    """A secret encrypted for one pair of keys, and what the machine made of it."""

    endorsement: PublicArea
    attestation_name: bytes
    secret: bytes = field(repr=False)
    answer: bytes = field(repr=False, default=b"")

    @classmethod
    def begin(cls, endorsement: PublicArea, attestation: PublicArea) -> tuple[Activation, Credential]:
        """Choose a secret; return what to keep, and the credential to send. Raises ``AppraisalError``."""
        if not any(template.made(endorsement.raw) for template in (tpm.EK_RSA_2048, tpm.EK_ECC_P256)):
            raise AppraisalError("bad-endorsement-key", "the endorsement key was not made from a standard template")
        secret = secrets.token_bytes(SECRET_SIZE)
        return cls(endorsement, attestation.name, secret), make_credential(endorsement, attestation.name, secret)

    def answered(self, answer: bytes) -> Activation:
        return replace(self, answer=answer)

    def require_answer(self, attester: Attester) -> Binding:
        """Check that the TPM of the EK holds the attester's key. Raises ``AppraisalError``."""
        if not hmac.compare_digest(self.attestation_name, attester.ak.name):
            raise AppraisalError("other-attestation-key", "the credential was made for another attestation key")
        if len(self.secret) < 16 or not hmac.compare_digest(self.answer, self.secret):
            raise AppraisalError("not-activated", "the TPM did not return the secret that only it could decrypt")
        return Binding(
            "attestation key", "endorsement key", "the TPM that holds both decrypted a credential made for the pair"
        )


@dataclass(frozen=True)
class EkCertificate:
    """The EK's certificate under an authority that the caller trusts. ``intermediates`` (DER) may come from anyone."""

    activation: Activation
    certificate: bytes
    authorities: Sequence[x509.Certificate]
    intermediates: Sequence[bytes] = ()

    def establish(self, attester: Attester, now: datetime.datetime) -> AkTrust:
        """See `trust.Road`."""
        attester.require_attestation_key(self.activation.endorsement)
        certificate = read_certificate(self.certificate)
        between = [read_certificate(der) for der in few(self.intermediates)]
        ek = self.activation.endorsement
        chain = verify_endorsement(certificate, ek, self.authorities, between, now)
        bindings = (
            self.activation.require_answer(attester),
            Binding("endorsement key", "certificate", "the certificate is for this key, as one of a TPM"),
            Binding("certificate", "authority", f"{len(chain) - 1} signatures lead to an authority that was given"),
        )
        return _trust(RoadName.EK_CERTIFICATE, self.activation, attester, bindings, now, (NO_REVOCATION,), chain)


@dataclass(frozen=True)
class PinnedEk:
    """An EK that the operator knows beforehand, from the platform's control plane or an own TPM.

    ``pin`` is the EK's Name (hex, with the two bytes of its algorithm), the digest in it, or the SHA-256 digest of
    the key's SubjectPublicKeyInfo.
    """

    activation: Activation
    pin: str

    def establish(self, attester: Attester, now: datetime.datetime) -> AkTrust:
        """See `trust.Road`."""
        attester.require_attestation_key(self.activation.endorsement)
        if not names_key(self.pin, self.activation.endorsement):
            raise AppraisalError("other-endorsement-key", "the endorsement key is not the one that was pinned")
        bindings = (
            self.activation.require_answer(attester),
            Binding("endorsement key", "pin", "the operator named this key beforehand"),
        )
        maker = Remark("tpm-maker", "nobody but the operator's pin says that the endorsement key is one of a TPM")
        return _trust(RoadName.PINNED_EK, self.activation, attester, bindings, now, (maker,))


def names_key(text: str, key: PublicArea) -> bool:
    """Tell whether an operator's text names this key: by the SHA-256 digest of its SubjectPublicKeyInfo, which is
    what results and the ledger call it by, by its Name, or by the digest in the Name. All in hex.
    """
    legal = (digest(key.key), key.name.hex(), key.name[2:].hex())
    return any(hmac.compare_digest(text.lower().encode(), known.encode()) for known in legal)


def _trust(
    road: RoadName,
    activation: Activation,
    attester: Attester,
    bindings: tuple[Binding, ...],
    now: datetime.datetime,
    not_checked: tuple[Remark, ...],
    chain: Sequence[x509.Certificate] = (),
) -> AkTrust:
    ek = digest(activation.endorsement.key)
    ak = digest(attester.ak.key)
    return AkTrust(
        road, attester.ak.name, ak, ek, None, None, bindings, fingerprints(chain), (), not_checked, now
    )  # fmt: skip
