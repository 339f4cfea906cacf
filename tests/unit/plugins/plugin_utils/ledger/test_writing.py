# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How records and documents are kept: all or none, once, and compressed."""

from __future__ import annotations

import random

import pytest
from ansible_collections.cvm.fde.plugins.plugin_utils.ledger.documents import DOCUMENT_LIMIT
from ansible_collections.cvm.fde.plugins.plugin_utils.ledger.ledger import Ledger
from ansible_collections.cvm.fde.plugins.plugin_utils.ledger.records import Attestation
from ansible_collections.cvm.fde.plugins.plugin_utils.ledger.schema import documents
from ansible_collections.cvm.fde.plugins.plugin_utils.ledger.verification import verify
from sqlalchemy import func, select

ATTESTED = Attestation("web1", "trusted", "pinned", volume="fde-crypt")


def test_several_records_are_added_all_or_none(ledger: Ledger) -> None:
    with pytest.raises(ValueError, match="at most 16777216 bytes"):
        ledger.append_all([(ATTESTED, {}), (ATTESTED, {"log": bytes(DOCUMENT_LIMIT + 1)})])
    assert ledger.head().sequence == 0
    assert ledger.append_all([]) == ()


def test_a_document_is_kept_once_however_often_it_is_seen(ledger: Ledger) -> None:
    for number in range(3):
        ledger.append(ATTESTED, {"log": b"the same log", "copy": b"the same log", "quote": b"%d" % number})
    with ledger.database.reading() as connection:
        assert connection.scalar(select(func.count()).select_from(documents)) == 4
    assert verify(ledger).sound


def test_a_document_is_kept_compressed(ledger: Ledger) -> None:
    entry = ledger.append(ATTESTED, {"log": b"EV_POST_CODE " * 5000})
    with ledger.database.reading() as connection:
        assert connection.scalar(select(func.length(documents.c.content))) < 1000
    assert ledger.documents(entry) == {"log": b"EV_POST_CODE " * 5000}


def test_the_largest_document_that_does_not_compress_is_kept(ledger: Ledger) -> None:
    noise = random.Random(1).randbytes(DOCUMENT_LIMIT)
    entry = ledger.append(ATTESTED, {"log": noise})
    assert ledger.documents(entry)["log"] == noise
    assert verify(ledger).sound
