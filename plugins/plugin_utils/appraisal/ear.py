# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The attestation result in the manner of EAR: one status for each part of the machine.

It is plain JSON and not signed: it never leaves the control node but by the operator's own hand.
Source: draft-fv-rats-ear (claims), draft-ietf-rats-ar4si (trustworthiness vector and its tiers).
"""

from __future__ import annotations

import datetime
from typing import Any, Mapping, Sequence

from .judgement import Check, Result, Status
from .policy import Policy
from .rules.table import PARTS

PROFILE = "tag:github.com,2023:veraison/ear"
VERIFIER = {"developer": "cvm.fde", "build": "cvm.fde appraisal policy 1"}
#: The tiers of AR4SI, each by the least number of its range.
NONE, AFFIRMING, WARNING, CONTRAINDICATED = 0, 2, 32, 96
_STATUS = {NONE: "none", AFFIRMING: "affirming", WARNING: "warning", CONTRAINDICATED: "contraindicated"}
#: Part → the claims of the trustworthiness vector that its checks speak of.
_CLAIMS: Mapping[str, tuple[str, ...]] = {
    "tpm": ("instance-identity", "hardware"),
    "boot": ("configuration", "executables"),
    "volume": ("file-system", "storage-opaque"),
}


def attestation_result(result: Result, policy: Policy, issued: datetime.datetime) -> dict[str, Any]:
    """Return the result of one appraisal, with one submodule for the TPM, the boot and the volume."""
    submodules = {}
    for part, names in PARTS.items():
        checks = [check for check in result.checks if check.name in names]
        tier = _tier(checks)
        submodules[part] = {
            "ear.status": _STATUS[tier],
            "ear.appraisal-policy-id": f"{policy.name}@sha256:{policy.digest}",
            "ear.trustworthiness-vector": dict.fromkeys(_CLAIMS[part], tier),
        }
    return {
        "eat_profile": PROFILE,
        "iat": int(issued.timestamp()),
        "exp": int(issued.timestamp()) + policy.valid_for,
        "ear.verifier-id": VERIFIER,
        "submods": submodules,
    }


def _tier(checks: Sequence[Check]) -> int:
    """Return the worst tier of some checks: what failed contradicts, what was not judged or was waived warns."""
    found = {check.status for check in checks}
    if Status.FAILED in found:
        return CONTRAINDICATED
    if not checks or Status.UNKNOWN in found:
        return NONE
    return WARNING if Status.WAIVED in found else AFFIRMING
