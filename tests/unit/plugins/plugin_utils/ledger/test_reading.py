# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the ledger hands out again: entries in their order, and their documents."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest
from ansible_collections.cvm.fde.plugins.plugin_utils.ledger import reading
from ansible_collections.cvm.fde.plugins.plugin_utils.ledger.ledger import Ledger
from ansible_collections.cvm.fde.plugins.plugin_utils.ledger.records import (
    Action,
    Attestation,
    Decision,
    Identity,
    Kind,
)

KEY = "11" * 32
RETIRED = Decision("web1", Action.RETIRE_HOST, "ann", "decommissioned")


def attested(host: str) -> Attestation:
    return Attestation(host, "trusted", "pinned", volume="fde-crypt", volume_key_id=KEY)


def test_entries_come_back_in_their_order_with_their_documents(ledger: Ledger) -> None:
    records = [attested("web1"), Identity("web1", "pinned", ek=KEY), attested("web2"), RETIRED]
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
    identity = ledger.append(Identity("web1", "pinned", ek=KEY))
    assert list(ledger.entries(host="web1")) == [old, identity]
    assert list(ledger.entries(host="web1", kind=Kind.ATTESTATION)) == [old]
    assert list(ledger.entries(since=other.recorded)) == [other, identity]
    assert list(ledger.entries(since=identity.recorded + timedelta(seconds=1))) == []


def test_more_entries_than_a_page_holds_all_come_back(ledger: Ledger) -> None:
    written = ledger.append_all([(attested(f"web{number}"), {}) for number in range(1201)])
    assert tuple(ledger.entries()) == written


def test_one_document_of_each_entry_is_read_as_of_one_moment(filled: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "PAGE", 2)
    filled.append(Identity("host1", "pinned", ek=KEY), {"quote": b"of another kind"})
    filled.append(attested("host6"), {"log": b"and no quote"})
    found = filled.documents_called("quote", Kind.ATTESTATION)
    first = next(found)
    filled.append(attested("host7"), {"quote": b"too late"})
    assert [(entry.record.host, quote) for entry, quote in (first, *found)] == [
        (f"host{number}", b"quote %d" % number) for number in range(1, 6)
    ]
