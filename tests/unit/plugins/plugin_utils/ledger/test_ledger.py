# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the ledger remembers, and what can be asked of it later."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest
from ansible_collections.cvm.fde.plugins.module_utils.errors import FdeError
from ansible_collections.cvm.fde.plugins.plugin_utils.ledger.documents import DOCUMENT_LIMIT
from ansible_collections.cvm.fde.plugins.plugin_utils.ledger.ledger import Conclusion, Ledger
from ansible_collections.cvm.fde.plugins.plugin_utils.ledger.records import (
    Action,
    Anchor,
    Attestation,
    Decision,
    Entry,
    Identity,
    Kind,
)
from ansible_collections.cvm.fde.plugins.plugin_utils.ledger.schema import documents
from ansible_collections.cvm.fde.plugins.plugin_utils.ledger.verification import verify
from sqlalchemy import func, select

KEY1, KEY2 = "11" * 32, "22" * 32


def attested(
    host: str = "web1", volume: str = "fde-crypt", anchor: Anchor | None = None, key: str = KEY1
) -> Attestation:
    return Attestation(host, "trusted", "pinned", volume=volume, volume_key_id=key, anchor=anchor)


def decided(action: Action, host: str = "web1", volume: str | None = None) -> Decision:
    return Decision(host, action, "ann", "reinstalled after a disk failure", volume=volume)


def test_entries_come_back_in_their_order_with_their_documents(ledger: Ledger) -> None:
    records = [attested(), Identity("web1", "pinned", ek=KEY1), attested("web2"), decided(Action.RETIRE_HOST)]
    before = datetime.now(timezone.utc)
    written = [ledger.append(record, {"quote": b"%d" % number}) for number, record in enumerate(records)]
    assert list(ledger.entries()) == written
    assert [entry.record for entry in written] == records
    assert [entry.sequence for entry in written] == [1, 2, 3, 4]
    assert [ledger.documents(entry) for entry in written] == [{"quote": b"%d" % number} for number in range(4)]
    assert all(before <= entry.recorded <= datetime.now(timezone.utc) for entry in written)
    assert str(ledger.head()) == f"4:{written[-1].digest}"


def test_entries_are_found_by_host_kind_and_time(ledger: Ledger) -> None:
    old = ledger.append(attested("web1"))
    other = ledger.append(attested("web2"))
    identity = ledger.append(Identity("web1", "pinned", ek=KEY1))
    assert list(ledger.entries(host="web1")) == [old, identity]
    assert list(ledger.entries(host="web1", kind=Kind.ATTESTATION)) == [old]
    assert list(ledger.entries(since=other.recorded)) == [other, identity]
    assert list(ledger.entries(since=identity.recorded + timedelta(seconds=1))) == []


def test_more_entries_than_a_page_holds_all_come_back(ledger: Ledger) -> None:
    written = ledger.append_all([(attested(f"web{number}"), {}) for number in range(1201)])
    assert tuple(ledger.entries()) == written


def test_several_records_are_added_all_or_none(ledger: Ledger) -> None:
    with pytest.raises(ValueError, match="at most 16777216 bytes"):
        ledger.append_all([(attested(), {}), (attested(), {"log": bytes(DOCUMENT_LIMIT + 1)})])
    assert ledger.head().sequence == 0
    assert ledger.append_all([]) == ()


def test_a_document_is_kept_once_however_often_it_is_seen(ledger: Ledger) -> None:
    for number in range(3):
        ledger.append(attested(), {"log": b"the same log", "copy": b"the same log", "quote": b"%d" % number})
    with ledger.database.reading() as connection:
        assert connection.scalar(select(func.count()).select_from(documents)) == 4
    assert verify(ledger).sound


def test_a_document_is_kept_compressed(ledger: Ledger) -> None:
    entry = ledger.append(attested(), {"log": b"EV_POST_CODE " * 5000})
    with ledger.database.reading() as connection:
        assert connection.scalar(select(func.length(documents.c.content))) < 1000
    assert ledger.documents(entry) == {"log": b"EV_POST_CODE " * 5000}


def test_the_largest_document_that_does_not_compress_is_kept(ledger: Ledger) -> None:
    import random

    noise = random.Random(1).randbytes(DOCUMENT_LIMIT)
    entry = ledger.append(attested(), {"log": noise})
    assert ledger.documents(entry)["log"] == noise
    assert verify(ledger).sound


def test_the_last_attestation_of_a_host_is_found(ledger: Ledger) -> None:
    assert ledger.latest("web1") is None
    ledger.append(attested("web1"))
    last = ledger.append(attested("web1"))
    ledger.append(attested("web2"))
    ledger.append(Identity("web1", "pinned", ek=KEY1))
    assert ledger.latest("web1") == last


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
    assert ledger.hosts_of_volume_key(KEY1) == {"web1"}
    ledger.append(attested("web3", key=KEY1))
    assert ledger.hosts_of_volume_key(KEY1) == {"web1", "web3"}
    ledger.decide(decided(Action.RETIRE_HOST, "web1"))
    assert ledger.hosts_of_volume_key(KEY1) == {"web3"}
    ledger.append(attested("web1", key=KEY1))
    assert ledger.hosts_of_volume_key(KEY1) == {"web1", "web3"}


def test_past_verdicts_are_appraised_again_from_what_was_kept(filled: Ledger) -> None:
    """Today's policy no longer accepts the second host's quote; the one of that day is among the documents too."""

    def appraise(entry: Entry, kept: dict[str, bytes]) -> tuple[str, bytes]:
        return ("untrusted" if kept["quote"] == b"quote 2" else "trusted"), kept["log"][:3]

    again = list(filled.reappraise(appraise))
    assert [reappraisal.result for reappraisal in again] == [
        ("untrusted" if number == 2 else "trusted", b"log") for number in range(1, 6)
    ]
    changed = [one.entry.record.host for one in again if one.result[0] != one.entry.record.verdict]
    assert changed == ["host2"]
    assert [one.entry.sequence for one in filled.reappraise(appraise, host="host3")] == [3]


def test_only_attestations_are_appraised_again(filled: Ledger) -> None:
    filled.append(Identity("host1", "pinned", ek=KEY1))
    filled.decide(decided(Action.RETIRE_HOST, "host2"))
    assert len(list(filled.reappraise(lambda entry, kept: None))) == 5


def test_an_appraisal_can_append_while_it_goes_through_the_past(filled: Ledger) -> None:
    list(filled.reappraise(lambda entry, kept: filled.append(decided(Action.RETIRE_HOST, entry.record.host))))
    assert verify(filled).entries == 10


def test_a_conclusion_that_is_not_recorded_leaves_nothing(ledger: Ledger) -> None:
    shown = Identity("web1", "pinned", ek=KEY1)
    seen = []

    def judge(past):
        seen.append(past)
        return Conclusion(attested(), {"result": b"{}"}, shown)

    ledger.conclude("web1", "fde-crypt", shown, {"quote": b"q"}, judge, record=False)
    assert ledger.head().sequence == 0
    ledger.conclude("web1", "fde-crypt", shown, {"quote": b"q"}, judge)
    ledger.conclude("web1", "fde-crypt", shown, {"quote": b"q"}, judge)
    assert [(past.enrolled, past.new) for past in seen] == [(False, True), (False, True), (True, False)]
    assert [entry.record for entry in ledger.entries()] == [shown, attested(), attested()]


def test_a_judgement_that_fails_records_nothing(ledger: Ledger) -> None:
    def judge(past):
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError):
        ledger.conclude("web1", "fde-crypt", Identity("web1", "pinned", ek=KEY1), {"quote": b"q"}, judge)
    assert ledger.head().sequence == 0


def test_a_decision_stands_until_something_else_happens(ledger: Ledger) -> None:
    approved = Decision("web1", Action.APPROVE_IDENTITY, "ann", "looked at it", key=KEY1)
    ledger.identify(Identity("web1", "pinned", ek=KEY1))
    assert not ledger.stands(approved)
    ledger.decide(approved)
    assert ledger.stands(approved)
    ledger.identify(Identity("web1", "pinned", ek=KEY2))
    assert not ledger.stands(approved)
    retired = decided(Action.RETIRE_HOST)
    assert not ledger.stands(retired)
    ledger.decide(retired)
    assert ledger.stands(retired)
    assert ledger.approval("web1") is None
    ledger.append(attested())
    assert not ledger.stands(retired)


def test_a_recovery_key_in_escrow_is_recorded_once_until_another_takes_its_place(ledger: Ledger) -> None:
    ledger.append(Attestation("web1", "trusted", "ek-certificate", volume="fde-crypt"))

    def escrowed(digest: str) -> Decision:
        return Decision("web1", Action.ESCROW_KEY, "ann", "kept as a file", key=digest, volume="fde-crypt")

    first, second = escrowed("ab" * 32), escrowed("cd" * 32)
    assert not ledger.stands(first)
    ledger.decide(first)
    assert ledger.stands(first) and not ledger.stands(second)
    ledger.decide(second)
    found = ledger.escrowed("web1", "fde-crypt")
    assert found is not None and found.record == second
    ledger.decide(Decision("web1", Action.RETIRE_HOST, "ann", "gone"))
    assert ledger.escrowed("web1", "fde-crypt") is None
    with pytest.raises(FdeError):
        ledger.decide(first)
