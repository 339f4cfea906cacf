# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is remembered of a volume: how far it ever was, and which hosts showed its key."""

from __future__ import annotations

import pytest
from ansible_collections.cvm.fde.plugins.plugin_utils.ledger import memory
from ansible_collections.cvm.fde.plugins.plugin_utils.ledger.ledger import Ledger
from ansible_collections.cvm.fde.plugins.plugin_utils.ledger.records import Action, Anchor, Attestation, Decision

KEY1, KEY2 = "11" * 32, "22" * 32


def attested(
    host: str = "web1", volume: str = "fde-crypt", anchor: Anchor | None = None, key: str = KEY1
) -> Attestation:
    return Attestation(host, "trusted", "pinned", volume=volume, volume_key_id=key, anchor=anchor)


def decided(action: Action, host: str = "web1", volume: str | None = None) -> Decision:
    return Decision(host, action, "ann", "reinstalled after a disk failure", volume=volume)


def hosts_of_volume_key(ledger: Ledger, key: str) -> frozenset[str]:
    with ledger.database.reading() as connection:
        return memory.hosts_of_volume_key(connection, key)


def test_the_highest_anchor_is_the_highest_of_each_part(ledger: Ledger) -> None:
    assert ledger.highest_anchor("web1", "fde-crypt") is None
    for anchor in (Anchor(9, 1, 3), Anchor(10, 2, 3), Anchor(10, 2, 4), None, Anchor(4, 1, 1)):
        ledger.append(attested(anchor=anchor))
    assert ledger.highest_anchor("web1", "fde-crypt") == Anchor(10, 2, 4)


def test_generations_are_compared_as_numbers_up_to_the_largest(ledger: Ledger) -> None:
    largest = 2**64 - 1
    for generation in (2, 10, 2**63, largest, largest - 1):
        ledger.append(attested(anchor=Anchor(generation, 2, 2**32 - 1)))
    assert ledger.highest_anchor("web1", "fde-crypt") == Anchor(largest, 2, 2**32 - 1)


def test_the_highest_anchor_is_that_of_one_volume_of_one_host(ledger: Ledger) -> None:
    ledger.append(attested("web1", "fde-crypt", Anchor(5, 2, 1)))
    ledger.append(attested("web1", "data", Anchor(7, 2, 1)))
    ledger.append(attested("web2", "fde-crypt", Anchor(9, 2, 1)))
    assert ledger.highest_anchor("web1", "fde-crypt") == Anchor(5, 2, 1)
    assert ledger.highest_anchor("web3", "fde-crypt") is None


@pytest.mark.parametrize(
    ("decision", "forgotten"),
    [
        (decided(Action.RENEW_VOLUME, volume="fde-crypt"), {"fde-crypt"}),
        (decided(Action.RENEW_VOLUME, volume="data"), {"data"}),
        (decided(Action.RETIRE_HOST), {"fde-crypt", "data"}),
    ],
)
def test_only_an_operators_decision_begins_a_new_life_of_a_volume(
    ledger: Ledger, decision: Decision, forgotten: set[str]
) -> None:
    for volume in ("fde-crypt", "data"):
        ledger.append(attested("web1", volume, Anchor(5, 2, 1)))
        ledger.append(attested("web2", volume, Anchor(5, 2, 1)))
    ledger.decide(decision)
    for volume in ("fde-crypt", "data"):
        expected = None if volume in forgotten else Anchor(5, 2, 1)
        assert ledger.highest_anchor("web1", volume) == expected
        assert ledger.highest_anchor("web2", volume) == Anchor(5, 2, 1)
        ledger.append(attested("web1", volume, Anchor(1, 1, 2)))
    assert ledger.highest_anchor("web1", next(iter(forgotten))) == Anchor(1, 1, 2)


def test_a_volume_key_on_two_hosts_is_seen_until_one_of_them_is_retired(ledger: Ledger) -> None:
    ledger.append(attested("web1", key=KEY1))
    ledger.append(attested("web2", key=KEY2))
    assert hosts_of_volume_key(ledger, KEY1) == {"web1"}
    ledger.append(attested("web3", key=KEY1))
    assert hosts_of_volume_key(ledger, KEY1) == {"web1", "web3"}
    ledger.decide(decided(Action.RETIRE_HOST, "web1"))
    assert hosts_of_volume_key(ledger, KEY1) == {"web3"}
    ledger.append(attested("web1", key=KEY1))
    assert hosts_of_volume_key(ledger, KEY1) == {"web1", "web3"}
