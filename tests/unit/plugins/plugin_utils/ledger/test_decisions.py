# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What an operator can decide, and how long it stands."""

from __future__ import annotations

import pytest
from ansible_collections.cvm.fde.plugins.module_utils.errors import FdeError
from ansible_collections.cvm.fde.plugins.plugin_utils.ledger.ledger import Ledger
from ansible_collections.cvm.fde.plugins.plugin_utils.ledger.records import Action, Attestation, Decision, Identity

KEY1, KEY2 = "11" * 32, "22" * 32
ATTESTED = Attestation("web1", "trusted", "ek-certificate", volume="fde-crypt")


def approved(host: str, key: str) -> Decision:
    return Decision(host, Action.APPROVE_IDENTITY, "ann", "looked at it", key=key)


def retired(host: str) -> Decision:
    return Decision(host, Action.RETIRE_HOST, "ann", "decommissioned")


def test_a_decision_stands_until_something_else_happens(ledger: Ledger) -> None:
    approval, retirement = approved("web1", KEY1), retired("web1")
    ledger.append(Identity("web1", "pinned", ek=KEY1))
    assert not ledger.stands(approval)
    ledger.decide(approval)
    assert ledger.stands(approval)
    ledger.append(Identity("web1", "pinned", ek=KEY2))
    assert not ledger.stands(approval)
    assert not ledger.stands(retirement)
    ledger.decide(retirement)
    assert ledger.stands(retirement)
    assert ledger.approval("web1") is None
    ledger.append(ATTESTED)
    assert not ledger.stands(retirement)


def test_a_recovery_key_in_escrow_is_recorded_once_until_another_takes_its_place(ledger: Ledger) -> None:
    ledger.append(ATTESTED)

    def escrowed(digest: str) -> Decision:
        return Decision("web1", Action.ESCROW_KEY, "ann", "kept as a file", key=digest, volume="fde-crypt")

    first, second = escrowed("ab" * 32), escrowed("cd" * 32)
    assert not ledger.stands(first)
    ledger.decide(first)
    assert ledger.stands(first) and not ledger.stands(second)
    ledger.decide(second)
    found = ledger.escrowed("web1", "fde-crypt")
    assert found is not None and found.record == second
    ledger.decide(retired("web1"))
    assert ledger.escrowed("web1", "fde-crypt") is None
    with pytest.raises(FdeError):
        ledger.decide(first)


def test_an_operator_cannot_decide_about_what_was_never_recorded(ledger: Ledger) -> None:
    ledger.append(Identity("a", "pinned", ek=KEY1))
    for decision, cause in (
        (approved("a", KEY2), "never showed key"),
        (approved("b", KEY1), "nothing is recorded about this host"),
        (retired("b"), "nothing is recorded about this host"),
        (Decision("a", Action.RENEW_VOLUME, "ann", "reinstalled", volume="fde-crypt"), "no volume fde-crypt"),
    ):
        with pytest.raises(FdeError, match=cause):
            ledger.decide(decision)
    ledger.decide(retired("a"))
    with pytest.raises(FdeError, match="nothing is recorded about this host"):
        ledger.decide(retired("a"))
    assert ledger.head().sequence == 2
