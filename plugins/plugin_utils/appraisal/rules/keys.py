# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The keys: is the attestation key one of a TPM, and of which one."""

from __future__ import annotations

import hmac

from ....module_utils.tpm import templates
from ..case import Case
from ..endorsement import parse_certificate, verify_endorsement
from ..errors import AppraisalError, Undecided
from ..quote import require_attestation_key
from ..roads import choice
from ..roads.endorsement_key import Activation, names_key
from .rule import Rule


def _attestation_key(case: Case) -> str:
    key = case.attestation
    require_attestation_key(key)
    if not templates.AK_ECC_P256.made(key.raw):
        raise AppraisalError("bad-attestation-key", "the attestation key was not made from this collection's template")
    _tried = key.key
    return "it is a restricted signing key of its TPM"


def _endorsement_key(case: Case) -> str:
    key = case.endorsement
    if not any(template.made(key.raw) for template in (templates.EK_RSA_2048, templates.EK_ECC_P256)):
        raise AppraisalError("bad-endorsement-key", "the endorsement key was not made from a standard template")
    _tried = key.key
    known = case.grounds.endorsement_key
    if known is not None and not names_key(known, key):
        raise AppraisalError("other-machine", "it is not the endorsement key that this machine is known by")
    return "it is a restricted storage key by a standard template"


def _endorsement_certificate(case: Case) -> str:
    if not case.grounds.authorities:
        raise Undecided("no authority for endorsement keys was given")
    if case.identity.endorsement_certificate is None:
        raise Undecided("the TPM holds no certificate of its endorsement key")
    certificate = parse_certificate(case.identity.endorsement_certificate)
    chain = verify_endorsement(certificate, case.endorsement, case.grounds.authorities, (), case.grounds.now)
    return f"a given authority vouches for the endorsement key, over {len(chain) - 1} signatures"


def _credential_activation(case: Case) -> str:
    if not hmac.compare_digest(case.evidence.activated, case.challenge.secret):
        raise AppraisalError("not-activated", "the TPM did not return the secret that only it could decrypt")
    return "the attestation key is in the TPM of the endorsement key"


def _road(case: Case) -> str:
    activation = Activation(case.endorsement, case.attestation.name, case.challenge.secret, case.evidence.activated)
    grounds = case.grounds
    shown = choice.Shown(
        case.attester,
        activation,
        case.identity.endorsement_certificate,
        case.evidence.platform,
        case.reference.sha384,
    )
    case.trust = choice.walk(grounds.allowed, shown, grounds.authorities, grounds.now, grounds.policy.hardware)
    return f"the road {case.trust.road.value} leads to the attestation key"


RULES = (
    Rule("endorsement_key", (), _endorsement_key),
    Rule("endorsement_certificate", ("endorsement_key",), _endorsement_certificate),
    Rule("attestation_key", (), _attestation_key),
    Rule("credential_activation", ("endorsement_key", "attestation_key"), _credential_activation),
)

#: Which road was taken, where an operator allows others than the default.
ROAD = Rule("road", ("endorsement_key", "credential_activation", "quote_nonce", "quote_digest"), _road)
