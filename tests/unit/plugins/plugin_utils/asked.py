# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A machine asked once, as the action plugin does it, and what became of one check."""

from __future__ import annotations

import base64
from typing import Any

from ansible_collections.cvm.fde.plugins.module_utils.tpm import rounds
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.case import Grounds
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.judgement import Result, Status
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.rules.table import DEFAULT_PCRS
from ansible_collections.cvm.fde.plugins.plugin_utils.attestation import Attestation


def attest(machine: Any, grounds: Grounds, **evidence: Any) -> Attestation:
    attestation = Attestation(grounds, DEFAULT_PCRS)
    asked = attestation.evidence_request(rounds.identity(machine.sources))
    request = rounds.Request(
        base64.b64decode(asked["nonce"]),
        {"sha256": tuple(asked["pcrs"])},
        base64.b64decode(asked["credential"]),
        base64.b64decode(asked["encrypted_seed"]),
    )
    attestation.judge({**rounds.evidence(machine.sources, request, machine.token), **evidence})
    return attestation


def status(result: Result, name: str) -> Status:
    return next(check.status for check in result.checks if check.name == name)
