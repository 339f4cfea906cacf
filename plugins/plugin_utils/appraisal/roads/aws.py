# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""AWS: the hypervisor signs a document over the NitroTPM's PCRs, a nonce and a key that the guest named.

The key is the guest's word, so the document alone proves nothing about where the key lives. What makes it evidence is
that the PCRs are the hypervisor's word: a quote is believed only in banks that the document has, with its values.
Source: see ``hardware.nitrotpm``.
"""

from __future__ import annotations

import datetime
import hmac
from dataclasses import dataclass, field
from typing import Mapping, Sequence

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from ..errors import AppraisalError
from ..hardware.nitrotpm import NitroDocument, parse_document, verify_document
from ..structures import PublicArea, Values
from .trust import NO_REVOCATION, AkTrust, Attester, Binding, HostIdentity, Remark, RoadName, digest, fingerprints, spki

_BANK = "sha384"
#: The PCRs that say which image runs, and that nothing was added to it.
IMAGE_PCRS = (4, 11, 12)
#: A document is made when it is asked for; clocks of AWS and of the controller may differ by as much as the second.
MAXIMUM_AGE = datetime.timedelta(minutes=5)
MAXIMUM_SKEW = datetime.timedelta(minutes=1)


@dataclass(frozen=True)
class AwsNitroTpm:
    """The document, and the roots that the caller trusts.

    ``now`` of `establish` is when the document was received: to judge an archived one again, give the time that was
    recorded then. Its certificates must be valid at its own time and at that one.
    """

    document: bytes
    authorities: Sequence[x509.Certificate]
    maximum_age: datetime.timedelta = MAXIMUM_AGE
    #: The image's legal SHA-384 PCRs, where known: what such an image says of its key is as good as the image.
    image: Mapping[int, frozenset[bytes]] = field(default_factory=dict)

    def establish(self, attester: Attester, now: datetime.datetime) -> AkTrust:
        """See `trust.Road`."""
        attester.require_attestation_key()
        document = parse_document(self.document)
        if document.timestamp - now > MAXIMUM_SKEW:
            raise AppraisalError("from-the-future", "the attestation document was made later than it was received")
        # A clock that runs behind by less than the allowed skew must not make a certificate "not yet valid".
        received = max(now, document.timestamp)
        chain = verify_document(document, self.authorities, (document.timestamp, received))
        if now - document.timestamp > self.maximum_age:
            raise AppraisalError("stale", "the attestation document was received too long after it was made")
        if document.nonce is None or not hmac.compare_digest(document.nonce, attester.nonce):
            raise AppraisalError("other-nonce", "the attestation document answers another nonce")
        _require_key(document, attester.ak)
        _require_values(document, {_BANK: attester.values.get(_BANK, {})} if self.image else attester.values)
        for pcr, legal in self.image.items():
            if document.pcrs.get(pcr) not in legal:
                raise AppraisalError("other-image", f"PCR {pcr} of the attestation document is not the image's")
        bindings = (
            Binding("attestation key", "attestation document", "the guest had it signed as its public_key"),
            Binding("PCR values", "attestation document", "they are those of the hypervisor"),
            Binding(
                "attestation document", "authority", f"{len(chain)} signatures lead to an authority that was given"
            ),
        )
        not_checked = (
            NO_REVOCATION,
            Remark("key-in-tpm", "that the key is held by the NitroTPM: the guest named it, with the PCRs above"),
        )
        host = HostIdentity("aws", document.instance, {"module_id": document.module})
        return AkTrust(
            RoadName.AWS_NITROTPM, attester.ak.name, digest(attester.ak.key), None, host, None, bindings,
            fingerprints(chain), (), not_checked, now,
        )  # fmt: skip


def _require_key(document: NitroDocument, ak: PublicArea) -> None:
    """Check that the document's key is the attestation key, as TPMT_PUBLIC, SubjectPublicKeyInfo or bare point."""
    legal = [ak.raw, spki(ak.key)]
    if isinstance(ak.key, ec.EllipticCurvePublicKey):
        legal.append(ak.key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint))
    found = document.public_key or b""
    if not any(hmac.compare_digest(found, known) for known in legal):
        raise AppraisalError("other-key", "the attestation document is for another key than the attestation key")


def _require_values(document: NitroDocument, values: Values) -> None:
    if set(values) != {_BANK} or not values[_BANK]:
        raise AppraisalError("pcrs-not-vouched", "the quote covers other banks than the document's, SHA-384")
    for pcr, value in values[_BANK].items():
        if not hmac.compare_digest(document.pcrs.get(pcr, b""), value):
            raise AppraisalError("pcr-values", f"PCR {pcr} has another value in the quote than in the document")
