# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The anchor: does the TPM remember the volume, in a place that only the image can write."""

from __future__ import annotations

import hmac

from ....module_utils.tpm.anchor import SIZE, State, anchor_name
from ..case import Case
from ..errors import AppraisalError
from ..quote import require_nonce, require_signature
from ..reference import BANK
from .rule import Rule


def _anchor_signature(case: Case) -> str:
    what = "certification of the anchor"
    require_signature(case.attestation, case.certified.signature, case.certification, what)
    require_nonce(case.certification, case.challenge.nonce, what)
    now, then = case.quote.clock, case.certification.clock
    if (now.reset_count, now.restart_count) != (then.reset_count, then.restart_count):
        raise AppraisalError("other-boot", "quote and certification of the anchor are not from the same boot")
    return "the attestation key certified it under the nonce of this round"


def _anchor_policy(case: Case) -> str:
    expected = anchor_name(case.reference.policy_key, case.evidence.values[BANK])
    if not hmac.compare_digest(case.certification.index_name, expected):
        raise AppraisalError(
            "foreign-anchor", "what is at the anchor's place is not an anchor of this image, booted as in this boot"
        )
    if case.certification.offset != 0 or len(case.certification.contents) != SIZE:
        raise AppraisalError("foreign-anchor", "the certification does not cover the whole anchor")
    return "only signed phases of the image, booted as in this boot, can have written it"


def _anchor_state(case: Case) -> str:
    if case.anchor.state is not State.READY:
        raise AppraisalError("anchor-not-ready", "the volume's creation was never finished")
    return f"it is ready, at generation {case.anchor.generation}"


def _header_committed(case: Case) -> str:
    """Compare the header on the disk with the anchor. It is the machine's own word; the boot agent makes sure of it."""
    if case.evidence.header is None:
        return "the machine says nothing of the header on its disk"
    if not any(hmac.compare_digest(case.evidence.header, digest) for digest in case.anchor.pinned):
        raise AppraisalError(
            "header-not-committed",
            "the header on the disk is not the one that the anchor pins: the next boot refuses it",
        )
    return "the header on the disk is the one that the anchor pins"


RULES = (
    Rule("anchor_signature", ("attestation_key", "quote_signature"), _anchor_signature),
    Rule("anchor_policy", ("anchor_signature", "quote_digest", "pcr_7", "pcr_12"), _anchor_policy),
    Rule("anchor_state", ("anchor_policy",), _anchor_state),
    Rule("header_committed", ("anchor_state",), _header_committed),
)
