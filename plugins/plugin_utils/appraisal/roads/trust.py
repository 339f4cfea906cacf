# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Why an attestation key is believed to be one of a certain machine's TPM: what every road to that trust returns.

A road is what was brought to prove it, together with what the operator trusts; it is walked by `Road.establish`.
"""

from __future__ import annotations

import datetime
import hashlib
import hmac
from dataclasses import dataclass, field
from enum import Enum
from typing import Mapping, Optional, Protocol, Sequence, Union

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from ..errors import AppraisalError
from ..quote import require_attestation_key, require_signer
from ..structures import PublicArea, Values, VerifyingKey

#: No platform's chain has more certificates between a key and the authority. Certificates that all sign each other
#: make the search for a chain long: with this number it ends within a tenth of a second.
INTERMEDIATE_LIMIT = 4
Detail = Union[str, int, bool]
#: In the place of the key's digest, where nobody signed what was launched.
NO_ID_KEY = "00" * 48


class RoadName(str, Enum):
    """The roads, by the name that results and the ledger carry."""

    EK_CERTIFICATE = "ek-certificate"
    GCP_AK_CERTIFICATE = "gcp-ak-certificate"
    AZURE_SNP = "azure-snp"
    AZURE_TDX = "azure-tdx"
    AWS_NITROTPM = "aws-nitrotpm"
    PINNED_EK = "pinned-ek"
    FIRST_USE = "first-use"


@dataclass(frozen=True)
class Remark:
    """Something a reader of the result must know. ``code`` is stable, lower case with hyphens."""

    code: str
    text: str


@dataclass(frozen=True)
class Binding:
    """One link from a key to whoever vouches for it: ``what`` is bound to ``to``, because ``how``."""

    what: str
    to: str
    how: str


@dataclass(frozen=True)
class HostIdentity:
    """Which machine the platform says it is. ``instance`` is the platform's own name of it, to compare with the
    inventory.
    """

    platform: str
    instance: str
    details: Mapping[str, Detail] = field(default_factory=dict)


@dataclass(frozen=True)
class Hardware:
    """What a processor's report says beyond the keys, for a policy to judge. ``tcb`` has one number a component.

    ``status`` is the maker's own word on that firmware, as Intel's ``UpToDate``, where it was asked for. ``id_key`` is
    the digest (hex) of the key that signed what was launched, `NO_ID_KEY` where nobody did, None where no report says
    so.
    """

    tee: str
    product: str
    measurement: str
    tcb: Mapping[str, int]
    status: Optional[str] = None
    id_key: Optional[str] = None


@dataclass(frozen=True)
class AkTrust:
    """The outcome of a road: why this attestation key is believed, and how far that goes.

    ``ak`` and ``ek`` are the SHA-256 digests (hex) of the keys' SubjectPublicKeyInfo, ``certificates`` those of the
    certificates that were relied on, leaf first. ``warnings`` are about the machine, ``not_checked`` about this
    judgement.
    """

    road: RoadName
    ak_name: bytes
    ak: str
    ek: Optional[str]
    host: Optional[HostIdentity]
    hardware: Optional[Hardware]
    bindings: tuple[Binding, ...]
    certificates: tuple[str, ...]
    warnings: tuple[Remark, ...]
    not_checked: tuple[Remark, ...]
    judged_at: datetime.datetime

    def document(self) -> dict[str, object]:
        """Return the result as JSON has it."""
        host, hardware = self.host, self.hardware
        return {
            "road": self.road.value,
            "ak": {"name": self.ak_name.hex(), "sha256": self.ak},
            "ek": None if self.ek is None else {"sha256": self.ek},
            "host": host and {"platform": host.platform, "instance": host.instance, **host.details},
            "hardware": hardware and {**vars(hardware), "tcb": dict(hardware.tcb)},
            "bindings": [vars(binding) for binding in self.bindings],
            "certificates": list(self.certificates),
            "warnings": [vars(remark) for remark in self.warnings],
            "not_checked": [vars(remark) for remark in self.not_checked],
            "judged_at": self.judged_at.isoformat(),
        }


@dataclass(frozen=True)
class Attester:
    """What the machine showed, and what it was asked: the key, who its quote says signed it, and the quoted PCRs.

    That the quote is genuine, and that ``values`` are those which it covers, is for others to check.
    """

    ak: PublicArea
    signer: bytes
    nonce: bytes
    values: Values

    def require_attestation_key(self, endorsement: Optional[PublicArea] = None) -> None:
        """Check that the key can sign only what its TPM made, and that the quote names it as its signer.

        ``endorsement`` is the endorsement key that the road goes over, below which the key may be.
        """
        require_attestation_key(self.ak)
        require_signer(self.ak, self.signer, "quote", endorsement)


class Road(Protocol):
    """What every road offers."""

    def establish(self, attester: Attester, now: datetime.datetime) -> AkTrust:
        """Return why the attester's key is believed, judged as of ``now``, or raise ``AppraisalError``."""


NO_REVOCATION = Remark("revocation", "no revocation list was consulted")


def spki(key: object) -> bytes:
    """Return a key as DER SubjectPublicKeyInfo. Raises ``AppraisalError`` for kinds that no TPM here has."""
    if not isinstance(key, (rsa.RSAPublicKey, ec.EllipticCurvePublicKey)):
        raise AppraisalError("unsupported", "the certificate is for a key that is neither RSA nor ECC")
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def digest(key: VerifyingKey) -> str:
    """Return the SHA-256 digest (hex) of a key's SubjectPublicKeyInfo."""
    return hashlib.sha256(spki(key)).hexdigest()


def same_key(one: object, other: object) -> bool:
    return hmac.compare_digest(spki(one), spki(other))


def fingerprints(chain: Sequence[x509.Certificate]) -> tuple[str, ...]:
    return tuple(certificate.fingerprint(hashes.SHA256()).hex() for certificate in chain)


def few(intermediates: Sequence[bytes]) -> Sequence[bytes]:
    """Refuse more intermediate certificates than any platform has, before any is read."""
    if len(intermediates) > INTERMEDIATE_LIMIT:
        raise AppraisalError("malformed", f"more than {INTERMEDIATE_LIMIT} intermediate certificates were sent")
    return intermediates
