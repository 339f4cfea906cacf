# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which roads an operator allows for a machine, and the walk along them with what the machine sent.

The roads are alternatives: the first one that leads to the attestation key counts, in the operator's order.
"""

from __future__ import annotations

import datetime
from dataclasses import dataclass, field
from typing import Callable, Mapping, Optional, Sequence

from cryptography import x509

from ..errors import AppraisalError, Undecided
from ..hardware.tdx_collateral import TdxCollateral
from ..platform import Platform
from ..policy import HardwareTerms
from .aws import IMAGE_PCRS, AwsNitroTpm
from .azure import AzureSnp, AzureTdx
from .endorsement_key import Activation, EkCertificate, PinnedEk, names_key
from .first_use import Approval, FirstUse
from .gcp import GcpAkCertificate
from .platform_key import ThroughPlatformKey
from .trust import NO_ID_KEY, AkTrust, Attester, Hardware, Road, RoadName

#: What a machine collects of its platform for each road that needs it; the words are those of `attest_round`.
PLATFORMS: Mapping[RoadName, str] = {
    RoadName.GCP_AK_CERTIFICATE: "google",
    RoadName.AZURE_SNP: "azure",
    RoadName.AZURE_TDX: "azure",
    RoadName.AWS_NITROTPM: "nitrotpm",
}
#: The only bank that AWS vouches for; a quote must cover it on that road.
NITROTPM_BANK = "sha384"


@dataclass(frozen=True)
class Allowed:
    """The operator's choice. ``pins`` are the endorsement keys that ``host`` may have, see `names_key`; ``collateral``
    is for `RoadName.AZURE_TDX`.

    ``authorities`` are those of each road of `PLATFORMS`. None counts on another road: who vouches for the keys of one
    cloud's TPMs could otherwise make up a chip of another's.
    """

    roads: tuple[RoadName, ...] = (RoadName.EK_CERTIFICATE,)
    host: str = ""
    pins: tuple[str, ...] = ()
    approval: Optional[Approval] = None
    collateral: Optional[TdxCollateral] = None
    authorities: Mapping[RoadName, Sequence[x509.Certificate]] = field(default_factory=dict)

    @property
    def default(self) -> bool:
        return self.roads == (RoadName.EK_CERTIFICATE,)


@dataclass(frozen=True)
class Shown:
    """What a machine brought for any road.

    ``image`` are the legal SHA-384 PCRs of the image that it runs, which `RoadName.AWS_NITROTPM` needs.
    """

    attester: Attester
    activation: Activation
    certificate: Optional[bytes]
    platform: Platform = field(default_factory=Platform)
    image: Mapping[int, frozenset[bytes]] = field(default_factory=dict)


def walk(
    allowed: Allowed,
    shown: Shown,
    authorities: Sequence[x509.Certificate],
    now: datetime.datetime,
    launched: Optional[HardwareTerms] = None,
) -> AkTrust:
    """Return what the first road that is allowed and leads to the attestation key establishes.

    ``authorities`` are those of `RoadName.EK_CERTIFICATE`. ``launched`` says what the processor may report as launched;
    to compare it is not done here. Raises ``AppraisalError`` when none does and one was
    contradicted, ``Undecided`` when all of them lack something.
    """
    contradicted: list[tuple[RoadName, AppraisalError]] = []
    lacking: list[str] = []
    for name in allowed.roads:
        try:
            trust = _road(name, allowed, shown, authorities).establish(shown.attester, now)
            _require_named_launch(trust.hardware, launched or HardwareTerms())
            return trust
        except AppraisalError as error:
            contradicted.append((name, error))
        except Undecided as undecided:
            lacking.append(f"{name.value}: {undecided.reason}")
    if not contradicted:
        raise Undecided("; ".join(lacking) or "no road is allowed")
    if len(contradicted) == 1 and not lacking:
        raise contradicted[0][1]
    reasons = [f"{name.value}: {error.reason}" for name, error in contradicted]
    raise AppraisalError("no-road", "; ".join([*reasons, *lacking]))


def _require_named_launch(hardware: Optional[Hardware], terms: HardwareTerms) -> None:
    """Ask for a policy that says whose word it takes, where a processor vouches for whoever was launched on it."""
    if hardware is None or terms.measurements or (terms.id_keys and hardware.id_key is not None):
        return
    signer = "nobody" if hardware.id_key == NO_ID_KEY else f"the key {hardware.id_key}"
    signed = "" if hardware.id_key is None else f", signed by {signer}"
    raise Undecided(
        "the policy names neither measurements nor signers of what may have been launched: here the measurement "
        f"{hardware.measurement}{signed}"
    )


def _road(name: RoadName, allowed: Allowed, shown: Shown, authorities: Sequence[x509.Certificate]) -> Road:
    return _MAKERS[name](allowed, shown, allowed.authorities.get(name, ()) if name in PLATFORMS else authorities)


def _given(authorities: Sequence[x509.Certificate], whose: str) -> Sequence[x509.Certificate]:
    if not authorities:
        raise Undecided(f"no authority {whose} was given")
    return authorities


def _ek_certificate(_allowed: Allowed, shown: Shown, authorities: Sequence[x509.Certificate]) -> Road:
    _given(authorities, "for endorsement keys")
    if shown.certificate is None:
        raise Undecided("the TPM holds no certificate of its endorsement key")
    return EkCertificate(shown.activation, shown.certificate, authorities)


def _pinned_ek(allowed: Allowed, shown: Shown, _authorities: Sequence[x509.Certificate]) -> Road:
    if not allowed.pins:
        raise Undecided("no endorsement key was pinned for this machine")
    named = [pin for pin in allowed.pins if names_key(pin, shown.activation.endorsement)]
    return PinnedEk(shown.activation, (named or allowed.pins)[0])


def _first_use(allowed: Allowed, shown: Shown, _authorities: Sequence[x509.Certificate]) -> Road:
    if allowed.approval is None:
        raise Undecided("no operator has approved the key of this machine yet")
    return FirstUse(allowed.host, allowed.approval, shown.activation)


def _google(_allowed: Allowed, shown: Shown, authorities: Sequence[x509.Certificate]) -> Road:
    google = shown.platform.google
    if google is None:
        raise Undecided("the machine has no key that Google certified")
    road = GcpAkCertificate(google.certificate, (), _given(authorities, "of Google's"))
    return ThroughPlatformKey(road, google.key, google.statement.attest, google.statement.signature)


def _azure_snp(_allowed: Allowed, shown: Shown, authorities: Sequence[x509.Certificate]) -> Road:
    azure = shown.platform.azure
    if azure is None:
        raise Undecided("the machine has no report of Azure's paravisor")
    if azure.vcek is None:
        raise Undecided("no certificate of the chip came with the report of Azure's paravisor")
    return AzureSnp(azure.report, azure.vcek, _given(authorities, "of AMD's"), azure.chain, shown.activation)


def _azure_tdx(allowed: Allowed, shown: Shown, authorities: Sequence[x509.Certificate]) -> Road:
    azure = shown.platform.azure
    if azure is None:
        raise Undecided("the machine has no report of Azure's paravisor")
    if azure.td_quote is None:
        raise Undecided("no quote of the trust domain came with the report of Azure's paravisor")
    roots = _given(authorities, "of Intel's")
    return AzureTdx(azure.report, azure.td_quote, roots, shown.activation, collateral=allowed.collateral)


def _nitrotpm(_allowed: Allowed, shown: Shown, authorities: Sequence[x509.Certificate]) -> Road:
    if shown.platform.nitrotpm is None:
        raise Undecided("the machine has no document of its NitroTPM")
    if not set(IMAGE_PCRS) <= set(shown.image):
        raise Undecided("the manifest lists no SHA-384 values, and AWS vouches for no others")
    return AwsNitroTpm(shown.platform.nitrotpm, _given(authorities, "of AWS's"), image=shown.image)


_Maker = Callable[[Allowed, Shown, Sequence[x509.Certificate]], Road]
_MAKERS: Mapping[RoadName, _Maker] = {
    RoadName.EK_CERTIFICATE: _ek_certificate,
    RoadName.GCP_AK_CERTIFICATE: _google,
    RoadName.AZURE_SNP: _azure_snp,
    RoadName.AZURE_TDX: _azure_tdx,
    RoadName.AWS_NITROTPM: _nitrotpm,
    RoadName.PINNED_EK: _pinned_ek,
    RoadName.FIRST_USE: _first_use,
}
