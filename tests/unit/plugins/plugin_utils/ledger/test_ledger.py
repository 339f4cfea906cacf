# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A host is judged and the verdict recorded in one transaction."""

from __future__ import annotations

import pytest
from ansible_collections.cvm.fde.plugins.plugin_utils.ledger.ledger import Conclusion, Ledger
from ansible_collections.cvm.fde.plugins.plugin_utils.ledger.memory import Past
from ansible_collections.cvm.fde.plugins.plugin_utils.ledger.records import Attestation, Identity

ATTESTED = Attestation("web1", "trusted", "pinned", volume="fde-crypt")
SHOWN = Identity("web1", "pinned", ek="11" * 32)


def test_a_conclusion_that_is_not_recorded_leaves_nothing(ledger: Ledger) -> None:
    seen: list[Past] = []

    def judge(past: Past) -> Conclusion:
        seen.append(past)
        return Conclusion(ATTESTED, {"result": b"{}"}, SHOWN)

    ledger.conclude("web1", "fde-crypt", SHOWN, {"quote": b"q"}, judge, record=False)
    assert ledger.head().sequence == 0
    ledger.conclude("web1", "fde-crypt", SHOWN, {"quote": b"q"}, judge)
    ledger.conclude("web1", "fde-crypt", SHOWN, {"quote": b"q"}, judge)
    assert [(past.enrolled, past.new) for past in seen] == [(False, True), (False, True), (True, False)]
    assert [entry.record for entry in ledger.entries()] == [SHOWN, ATTESTED, ATTESTED]


def test_a_judgement_that_fails_records_nothing(ledger: Ledger) -> None:
    def judge(past: Past) -> Conclusion:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError):
        ledger.conclude("web1", "fde-crypt", SHOWN, {"quote": b"q"}, judge)
    assert ledger.head().sequence == 0
