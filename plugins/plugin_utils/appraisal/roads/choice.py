# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which roads an operator allows for a machine, and the walk along them with what the machines of today send.

The roads are alternatives: the first one that leads to the attestation key counts, in the operator's order.
"""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from typing import Callable, Mapping, Optional, Sequence

from cryptography import x509

from ..errors import AppraisalError, Undecided
from .endorsement_key import Activation, EkCertificate, PinnedEk, names_key
from .first_use import Approval, FirstUse
from .trust import AkTrust, Attester, Road, RoadName

#: The roads for which a machine sends everything that they need. The others are for callers of their own.
OFFERED = (RoadName.EK_CERTIFICATE, RoadName.PINNED_EK, RoadName.FIRST_USE)


@dataclass(frozen=True)
class Allowed:
    """The operator's choice. ``pins`` are the endorsement keys that ``host`` may have, see `names_key`."""

    roads: tuple[RoadName, ...] = (RoadName.EK_CERTIFICATE,)
    host: str = ""
    pins: tuple[str, ...] = ()
    approval: Optional[Approval] = None

    @property
    def default(self) -> bool:
        return self.roads == (RoadName.EK_CERTIFICATE,)


@dataclass(frozen=True)
class Shown:
    """What a machine brought for any road."""

    attester: Attester
    activation: Activation
    certificate: Optional[bytes]


def walk(allowed: Allowed, shown: Shown, authorities: Sequence[x509.Certificate], now: datetime.datetime) -> AkTrust:
    """Return what the first road that is allowed and leads to the attestation key establishes.

    Raises ``AppraisalError`` when none does and one was contradicted, ``Undecided`` when all of them lack something.
    """
    contradicted: list[tuple[RoadName, AppraisalError]] = []
    lacking: list[str] = []
    for name in allowed.roads:
        try:
            return _road(name, allowed, shown, authorities).establish(shown.attester, now)
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


def _road(name: RoadName, allowed: Allowed, shown: Shown, authorities: Sequence[x509.Certificate]) -> Road:
    make = _MAKERS.get(name)
    if make is None:
        raise Undecided("the machine does not send what this road needs")
    return make(allowed, shown, authorities)


def _ek_certificate(_allowed: Allowed, shown: Shown, authorities: Sequence[x509.Certificate]) -> Road:
    if not authorities:
        raise Undecided("no authority for endorsement keys was given")
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


_Maker = Callable[[Allowed, Shown, Sequence[x509.Certificate]], Road]
_MAKERS: Mapping[RoadName, _Maker] = {
    RoadName.EK_CERTIFICATE: _ek_certificate,
    RoadName.PINNED_EK: _pinned_ek,
    RoadName.FIRST_USE: _first_use,
}
