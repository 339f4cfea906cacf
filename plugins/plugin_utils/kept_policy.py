# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What an operator judged by, as the ledger keeps it beside each verdict, and as every version so far wrote it.

Keys were added over time. A document without one of them is read with what held before there was such a key; one that
never was written like this, with a key too many or too few, is refused.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Mapping, Optional, Sequence

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from .appraisal.case import Grounds
from .appraisal.endorsement import load_authorities
from .appraisal.errors import AppraisalError
from .appraisal.fields import Fields
from .appraisal.hardware.tdx_collateral import TdxCollateral
from .appraisal.policy import Policy, parse_policy
from .appraisal.roads.choice import PLATFORMS, Allowed
from .appraisal.roads.first_use import Approval
from .appraisal.roads.trust import RoadName

_FIRST = frozenset(("version", "authorities", "strategy", "endorsement_key", "host", "roads", "pins", "approval"))
_SECOND = _FIRST | {"appraisal_policy"}
#: The keys that documents had one after the other. Beside those of the second and third there may be an optional one.
_KEYS = (_FIRST, _SECOND, _SECOND | {"platform_authorities"})
_OPTIONAL = frozenset(("tdx_collateral",))
#: Checks that a policy could waive once, and that are not made any more.
_FORMER_CHECKS = frozenset(("pcr_9",))


@dataclass(frozen=True)
class KeptPolicy:
    """What was judged by; ``authorities`` are those of endorsement keys, `Allowed` has those of the platforms."""

    policy: Policy
    authorities: tuple[x509.Certificate, ...]
    allowed: Allowed
    strategy: Optional[str]
    endorsement_key: Optional[str]


def policy_document(grounds: Grounds) -> dict[str, Any]:
    """Return what the operator judged by, but for the manifests."""
    allowed, approval = grounds.allowed, grounds.allowed.approval
    collateral = {} if allowed.collateral is None else {"tdx_collateral": allowed.collateral.document()}
    return {
        **collateral,
        "version": 1,
        "appraisal_policy": grounds.policy.document(),
        "authorities": _pem(grounds.authorities),
        "platform_authorities": {road.value: _pem(listed) for road, listed in allowed.authorities.items() if listed},
        "strategy": grounds.strategy,
        "endorsement_key": grounds.endorsement_key,
        "host": allowed.host,
        "roads": [road.value for road in allowed.roads],
        "pins": list(allowed.pins),
        "approval": approval
        and {"host": approval.host, "key": approval.key, "by": approval.by, "at": approval.at.isoformat()},
    }


def kept_policy(found: Mapping[str, Any]) -> KeptPolicy:
    """Read what `policy_document` wrote, in this version or an earlier one.

    Raises ``AppraisalError`` or, for values of other types, what `case_file.judge_again` takes for malformed.
    """
    if found.get("version") != 1 or set(found) - _OPTIONAL not in _KEYS:
        raise AppraisalError("malformed", "the policy does not have the keys of any version")
    roads = tuple(RoadName(road) for road in found["roads"])
    authorities = _certificates(found["authorities"])
    collateral = found.get("tdx_collateral")
    return KeptPolicy(
        _policy(found, roads),
        authorities,
        Allowed(
            roads,
            str(found["host"]),
            tuple(map(str, found["pins"])),
            _approval(found["approval"]),
            None if collateral is None else TdxCollateral.from_document(collateral),
            _platforms(found, authorities),
        ),
        found["strategy"],
        found["endorsement_key"],
    )


def _policy(found: Mapping[str, Any], roads: tuple[RoadName, ...]) -> Policy:
    """Return the appraisal policy. Before there was one, every check had to pass, on the roads that were allowed."""
    if "appraisal_policy" not in found:
        return replace(Policy(), roads=roads)
    written = found["appraisal_policy"]
    waived = [check for check in written["waived_checks"] if check not in _FORMER_CHECKS]
    return parse_policy({**written, "waived_checks": waived})


def _platforms(
    found: Mapping[str, Any], authorities: tuple[x509.Certificate, ...]
) -> Mapping[RoadName, tuple[x509.Certificate, ...]]:
    """Return the authorities of the platforms' roads. Before they had their own, one list counted on every road."""
    if "platform_authorities" not in found:
        return dict.fromkeys(PLATFORMS, authorities)
    return {RoadName(road): _certificates(listed) for road, listed in found["platform_authorities"].items()}


def _approval(found: Any) -> Optional[Approval]:
    if found is None:
        return None
    fields = Fields(found, "approval")
    return Approval(fields.text("host", 255), fields.text("key", 128), fields.text("by", 255), fields.moment("at"))


def _pem(certificates: Sequence[x509.Certificate]) -> list[str]:
    return [certificate.public_bytes(Encoding.PEM).decode() for certificate in certificates]


def _certificates(listed: Sequence[str]) -> tuple[x509.Certificate, ...]:
    return tuple(one for pem in listed for one in load_authorities(pem.encode()))
