# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The quote: did that key sign it, for us, over just what was asked for."""

from __future__ import annotations

from .. import quote
from ..case import Case
from .rule import Rule, signing_hash


def _quote_signature(case: Case) -> str:
    # The agent's key is a primary one, so no endorsement key is above it.
    quote.require_signature(case.attestation, case.evidence.quote.signature, case.quote, "quote")
    return "the attestation key signed it"


def _quote_nonce(case: Case) -> str:
    quote.require_nonce(case.quote, case.challenge.nonce, "quote")
    return "it answers the nonce of this round"


def _quote_selection(case: Case) -> str:
    quote.require_selection(case.quote, case.challenge.selection, "quote")
    return "it covers exactly the PCRs that were asked for"


def _quote_digest(case: Case) -> str:
    quote.require_values(case.quote, case.evidence.values, signing_hash(case.attestation))
    return "the PCR values are those that were quoted"


RULES = (
    Rule("quote_signature", ("attestation_key",), _quote_signature),
    Rule("quote_nonce", ("quote_signature",), _quote_nonce),
    Rule("quote_selection", ("quote_signature",), _quote_selection),
    Rule("quote_digest", ("quote_signature", "quote_selection"), _quote_digest),
)
