# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The quote: did that key sign it, for us, over just what was asked for."""

from __future__ import annotations

import hmac

from ..case import Case
from ..errors import AppraisalError
from ..structures import qualified_name, same_selection, verify_by
from .rule import Rule, match_digest


def _quote_signature(case: Case) -> str:
    verify_by(case.attestation, case.evidence.quote.signature, case.quote.raw)
    if case.quote.qualified_signer != qualified_name(case.attestation):
        raise AppraisalError("other-signer", "the quote names another signer than the attestation key")
    return "the attestation key signed it"


def _quote_nonce(case: Case) -> str:
    if not hmac.compare_digest(case.quote.extra_data, case.challenge.nonce):
        raise AppraisalError("other-nonce", "the quote answers another nonce: it is old, or another machine's")
    return "it answers the nonce of this round"


def _quote_selection(case: Case) -> str:
    if not same_selection(case.quote.selection, case.challenge.selection):
        raise AppraisalError("other-selection", "the quote covers other PCRs than were asked for")
    return "it covers exactly the PCRs that were asked for"


def _quote_digest(case: Case) -> str:
    match_digest(case.quote, case.evidence.values, case.attestation)
    return "the PCR values are those that were quoted"


RULES = (
    Rule("quote_signature", ("attestation_key",), _quote_signature),
    Rule("quote_nonce", ("quote_signature",), _quote_nonce),
    Rule("quote_selection", ("quote_signature",), _quote_selection),
    Rule("quote_digest", ("quote_signature", "quote_selection"), _quote_digest),
)
