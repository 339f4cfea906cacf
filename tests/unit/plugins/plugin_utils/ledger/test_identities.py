# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Two hosts with one key, and one host with two keys, are conflicts until an operator says otherwise."""

from __future__ import annotations

import pytest
from ansible_collections.cvm.fde.plugins.plugin_utils.ledger.identities import Conflict, Register, Trouble
from ansible_collections.cvm.fde.plugins.plugin_utils.ledger.ledger import Conclusion, Ledger
from ansible_collections.cvm.fde.plugins.plugin_utils.ledger.memory import Past
from ansible_collections.cvm.fde.plugins.plugin_utils.ledger.records import (
    Action,
    Attestation,
    Decision,
    Identity,
    Kind,
    Record,
)
from ansible_collections.cvm.fde.plugins.plugin_utils.ledger.verification import verify

EK1, EK2, EK3, AK1, AK2 = (f"{number:02x}" * 32 for number in range(1, 6))


def shows(host: str, ek: str | None, ak: str | None = None) -> Identity:
    return Identity(host, "ek-certificate" if ek else "azure-hcl", ek=ek, ak=ak)


def approves(host: str, key: str) -> Decision:
    return Decision(host, Action.APPROVE_IDENTITY, "ann", "the machine was built anew", key=key)


def retires(host: str) -> Decision:
    return Decision(host, Action.RETIRE_HOST, "ann", "decommissioned")


def attested(ledger: Ledger, shown: Identity) -> tuple[Conflict, ...]:
    """Let the host that shows an identity be attested, and return the conflicts that this made known."""

    def judge(past: Past) -> Conclusion:
        found.extend(past.conflicts)
        return Conclusion(Attestation(shown.host, "trusted", shown.road), {}, shown)

    found: list[Conflict] = []
    ledger.conclude(shown.host, "fde-crypt", shown, {}, judge)
    return tuple(found)


def troubles(*records: Record, host: str | None = None) -> list[tuple[str, str, str]]:
    return [(trouble.trouble.value, trouble.host, trouble.key) for trouble in Register(records).conflicts(host)]


@pytest.mark.parametrize(
    ("records", "expected"),
    [
        pytest.param([shows("a", EK1), shows("b", EK2)], [], id="two hosts with a key each"),
        pytest.param([shows("a", EK1), shows("a", EK1)], [], id="the same key again"),
        pytest.param([shows("a", EK1, AK1), shows("a", EK1, AK2)], [], id="a new AK of the same TPM"),
        pytest.param([shows("a", EK1), shows("b", EK1)], [("shared-key", "b", EK1)], id="one EK on two hosts"),
        pytest.param(
            [shows("a", EK1, AK1), shows("b", None, AK1)], [("shared-key", "b", AK1)], id="one AK on two roads"
        ),
        pytest.param(
            [shows("a", EK1, AK1), shows("b", EK2, AK2), shows("b", EK2, AK1)],
            [("shared-key", "b", EK2)],
            id="an AK that is another host's under its own EK",
        ),
        pytest.param([shows("a", EK1), shows("a", EK2)], [("new-key", "a", EK2)], id="a known host with a new EK"),
        pytest.param(
            [shows("a", EK1), shows("a", EK2), shows("a", EK1)],
            [("new-key", "a", EK2)],
            id="the old key coming back settles nothing",
        ),
        pytest.param([shows("a", EK1), shows("a", None, AK1)], [("new-key", "a", AK1)], id="a road without EK"),
        pytest.param(
            [shows("a", EK1), shows("b", EK2), shows("b", EK1)],
            [("shared-key", "b", EK1), ("new-key", "b", EK1)],
            id="a known host with the key of another one",
        ),
        pytest.param([shows("a", EK1), shows("b", EK1), approves("b", EK1)], [], id="sharing approved"),
        pytest.param([shows("a", EK1), shows("a", EK2), approves("a", EK2)], [], id="new key approved"),
        pytest.param(
            [shows("a", EK1), shows("a", EK2), approves("a", EK2), shows("a", EK1)],
            [("new-key", "a", EK1)],
            id="the old key after the new one was approved",
        ),
        pytest.param([shows("a", EK1), shows("a", EK2), approves("a", EK1)], [], id="new key rejected"),
        pytest.param(
            [shows("a", EK1), shows("a", EK2), approves("a", EK3)],
            [("new-key", "a", EK2)],
            id="an approval of a key that was never shown",
        ),
        pytest.param(
            [shows("a", EK1), shows("b", EK1), approves("b", EK1), shows("c", EK1)],
            [("shared-key", "c", EK1)],
            id="an approval is for one host",
        ),
        pytest.param([shows("a", EK1), retires("a"), shows("a", EK2)], [], id="a retired name used again"),
        pytest.param([shows("a", EK1), retires("a"), shows("b", EK1)], [], id="a retired host's TPM used again"),
        pytest.param([shows("a", EK1), shows("b", EK1), retires("a")], [], id="renamed and the old name retired"),
        pytest.param([shows("a", EK1), shows("b", EK1), retires("b")], [], id="the second one retired"),
        pytest.param(
            [shows("a", EK1), shows("b", EK1), shows("b", EK2), retires("a")],
            [("new-key", "b", EK1), ("new-key", "b", EK2)],
            id="one of several keys must still be chosen",
        ),
    ],
)
def test_the_register_tells_conflicts(records: list[Record], expected: list[tuple[str, str, str]]) -> None:
    assert troubles(*records) == expected


def test_a_conflict_concerns_every_host_that_it_names_and_no_other() -> None:
    records = [shows("a", EK1), shows("b", EK1), shows("c", EK2)]
    assert troubles(*records, host="a") == troubles(*records, host="b") == [("shared-key", "b", EK1)]
    assert troubles(*records, host="c") == []


def test_a_conflict_says_what_is_wrong() -> None:
    (shared,) = Register([shows("a", EK1), shows("b", EK1)]).conflicts()
    assert str(shared) == f"b holds key {EK1}, and so does a"
    (new,) = Register([shows("a", EK1), shows("a", EK2)]).conflicts()
    assert str(new) == f"a holds key {EK2}, but was known by key {EK1}"


def test_a_known_identity_is_recorded_once(ledger: Ledger) -> None:
    for _again in range(3):
        assert attested(ledger, shows("a", EK1, AK1)) == ()
    assert [entry.record for entry in ledger.entries(kind=Kind.IDENTITY)] == [shows("a", EK1, AK1)]


def test_a_cloned_tpm_is_reported_for_both_hosts_until_it_is_approved(ledger: Ledger) -> None:
    assert attested(ledger, shows("a", EK1)) == ()
    (conflict,) = attested(ledger, shows("b", EK1))
    assert (conflict.trouble, conflict.others) == (Trouble.SHARED_KEY, frozenset({"a"}))
    for _again in range(2):
        assert attested(ledger, shows("b", EK1)) == ledger.conflicts("a") == ledger.conflicts() == (conflict,)
    ledger.decide(approves("b", EK1))
    assert attested(ledger, shows("b", EK1)) == ledger.conflicts() == ()
    assert verify(ledger).sound


def test_the_register_for_one_host_agrees_with_the_register_of_all(ledger: Ledger) -> None:
    """One host is looked up through the hosts it shares keys with, however long that way is."""
    ledger.append_all(
        [(one, {}) for one in (shows("a", EK1, AK1), shows("b", EK2, AK1), shows("c", EK2, AK2), shows("d", EK3))]
    )
    whole = ledger.register()
    assert whole.conflicts()
    for host in "abcd":
        assert ledger.conflicts(host) == whole.conflicts(host)
