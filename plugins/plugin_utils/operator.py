# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What an operator gave a task to judge by, read from its options. Whatever is wrong with it fails the task."""

from __future__ import annotations

import re
import urllib.parse
from dataclasses import replace
from typing import Any, Callable, Mapping, Optional

from ansible.errors import AnsibleActionFail
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from .appraisal.endorsement import load_authorities
from .appraisal.errors import AppraisalError
from .appraisal.hardware.tdx_collateral import TdxCollateral
from .appraisal.policy import Policy
from .appraisal.reference import Reference, load_reference
from .appraisal.roads.choice import PLATFORMS, Allowed
from .appraisal.roads.first_use import Approval
from .appraisal.roads.trust import RoadName
from .control_node import authorities_of
from .files import Read
from .policy_file import load_policy

#: Each road of a platform, by its name among the options of ``platform_ca``.
PLATFORM_CA = {road.value.replace("-", "_"): road for road in PLATFORMS}
#: The argument specification of ``platform_ca``.
PLATFORM_CA_OPTIONS = {option: {"type": "list", "elements": "path", "default": []} for option in PLATFORM_CA}
#: A SHA-256 digest, or a TPM Name with its two bytes of algorithm, in hex.
_PIN = re.compile(r"(000b)?[0-9a-f]{64}", re.IGNORECASE)


def policy_from(path: Optional[str], roads: Optional[list[str]], read: Read) -> Policy:
    """Return the policy of a file, or the default one; ``roads`` is the option of that name, which can only narrow it
    where there is a file.
    """
    if path is None:
        return Policy() if roads is None else replace(Policy(), roads=_roads(roads))
    try:
        policy = load_policy(read(path))
    except AppraisalError as error:
        raise AnsibleActionFail(f"{path}: {error.reason}. See docs/appraisal-policy.md for what it may say") from error
    if roads is None:
        return policy
    chosen = _roads(roads)
    beyond = [road.value for road in chosen if road not in policy.roads]
    if beyond:
        raise AnsibleActionFail(f"roads: the policy does not allow {beyond[0]}. Allow it there, or leave it out")
    return replace(policy, roads=chosen)


def references_from(args: Mapping[str, Any], read: Read) -> tuple[Reference, ...]:
    """Return the reference sets of the options ``manifest``, ``manifest_signature`` and ``manifest_key``."""
    paths = [str(path) for path in args["manifest"]]
    signatures = [str(path) for path in args["manifest_signature"] or [f"{path}.sig" for path in paths]]
    if not paths or len(signatures) != len(paths):
        raise AnsibleActionFail("manifest_signature: there must be one for each manifest. Name them in the same order")
    key, found = read(args["manifest_key"]), []
    for path, signature in zip(paths, signatures):
        try:
            found.append(load_reference(read(path), read(signature), key))
        except AppraisalError as error:
            raise AnsibleActionFail(f"{path}: {error.reason}. Seal the image again, or name the right files") from error
    if len({reference.name for reference in found}) != len(found):
        raise AnsibleActionFail("manifest: two of them have the same name. Give each image a name of its own")
    return tuple(found)


def allowed_from(
    args: Mapping[str, Any],
    host: str,
    policy: Policy,
    approval: Optional[Callable[[], Optional[Approval]]],
    read: Read,
) -> Allowed:
    """Return which roads a host may take. ``approval`` looks into the ledger, where there is one."""
    pins = tuple(str(pin) for pin in args["pinned_ek"])
    if pins and RoadName.PINNED_EK not in policy.roads:
        raise AnsibleActionFail("pinned_ek: roads does not allow the road pinned-ek. Add it, or leave pinned_ek out")
    if not all(_PIN.fullmatch(pin) for pin in pins):
        raise AnsibleActionFail("pinned_ek: a pin is a SHA-256 digest of 64 hexadecimal digits. Name it in full")
    collateral = _collateral(args["tdx_collateral"], policy, read)
    platforms = platform_authorities(args["platform_ca"], read)
    allowed = Allowed(policy.roads, host, pins, collateral=collateral, authorities=platforms or {})
    if RoadName.FIRST_USE not in policy.roads:
        return allowed
    if approval is None:
        raise AnsibleActionFail("roads: first-use needs approvals. Name the ledger that they are in")
    return replace(allowed, approval=approval())


def platform_authorities(
    named: Optional[Mapping[str, Any]], read: Read
) -> Optional[dict[RoadName, tuple[x509.Certificate, ...]]]:
    """Return the authorities of each platform's road, by the option ``platform_ca``; None where it is not given."""
    if named is None:
        return None
    return {road: authorities_of(named[option] or (), read) for option, road in PLATFORM_CA.items()}


def _collateral(named: Optional[Mapping[str, Any]], policy: Policy, read: Read) -> Optional[TdxCollateral]:
    """Return Intel's documents. Its service gives the signers' certificates in a header, percent-encoded."""
    if named is None:
        return None
    if RoadName.AZURE_TDX not in policy.roads:
        raise AnsibleActionFail("tdx_collateral: roads does not allow the road azure-tdx. Add it, or leave this out")
    path = str(named["issuer_chain"])
    try:
        chain = load_authorities(urllib.parse.unquote_to_bytes(read(path)))
    except AppraisalError as error:
        raise AnsibleActionFail(f"{path}: {error.reason}. Name a file with certificates in PEM form") from error
    return TdxCollateral(
        tuple(read(str(info)) for info in named["tcb_info"]),
        read(str(named["enclave_identity"])),
        tuple(certificate.public_bytes(Encoding.DER) for certificate in chain),
    )


def _roads(named: list[str]) -> tuple[RoadName, ...]:
    if not named:
        raise AnsibleActionFail("roads: no road is allowed. Name one, or leave the option out")
    return tuple(dict.fromkeys(RoadName(road) for road in named))
