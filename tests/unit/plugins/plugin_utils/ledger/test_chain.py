# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whatever is done to a chain of entries shows when it is followed, or needs a remembered head to show."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Iterable, Optional

import pytest
from ansible_collections.cvm.fde.plugins.module_utils.errors import FdeError
from ansible_collections.cvm.fde.plugins.plugin_utils.ledger.chain import EMPTY, Finding, Flaw, Follower, Head, link
from ansible_collections.cvm.fde.plugins.plugin_utils.ledger.records import Anchor, Attestation, columns_of
from hypothesis import given
from hypothesis import strategies as st

Rows = list[dict[str, object]]


def chain_of(records: Iterable[Attestation], head: Head = EMPTY) -> Rows:
    rows: Rows = []
    for number, record in enumerate(records):
        columns = {**columns_of(record, {}), "recorded": f"2026-05-04T03:02:01.{number:06d}Z"}
        rows.append(link(columns, head))
        head = head_of(rows)
    return rows


def head_of(rows: Rows) -> Head:
    return Head(int(str(rows[-1]["sequence"])), str(rows[-1]["digest"])) if rows else EMPTY


def follow(rows: Rows, remembered: Optional[Head] = None) -> list[Finding]:
    follower = Follower(remembered)
    findings = [finding for row in rows for finding in follower.follow(row)]
    return findings + follower.end()


def flaws(rows: Rows, remembered: Optional[Head] = None) -> set[Flaw]:
    return {finding.flaw for finding in follow(rows, remembered)}


attestations = st.builds(
    Attestation,
    host=st.sampled_from(["web1", "web2"]),
    verdict=st.sampled_from(["trusted", "untrusted"]),
    road=st.just("pinned"),
    volume=st.none() | st.just("fde-crypt"),
    anchor=st.none() | st.builds(Anchor, st.integers(0, 2**64 - 1), st.integers(0, 2), st.integers(0, 9)),
)
chains = st.lists(attestations, min_size=2, max_size=8).map(chain_of)


@given(chains)
def test_an_untouched_chain_is_sound_against_every_head_it_ever_had(rows: Rows) -> None:
    for length in range(len(rows) + 1):
        assert follow(rows, head_of(rows[:length])) == []


@given(chains, st.data())
def test_an_edit_of_any_column_of_any_entry_shows(rows: Rows, data: st.DataObject) -> None:
    position = data.draw(st.integers(0, len(rows) - 1))
    column = data.draw(st.sampled_from(sorted(rows[0])))
    value = data.draw(
        st.sampled_from([None, "", "0", "web3", "a" * 64, 0, 1, 2, 3, b"", 1.0, True]).filter(
            lambda value: (type(value), value) != (type(rows[position][column]), rows[position][column])
        )
    )
    rows[position] = {**rows[position], column: value}
    assert follow(rows)


@given(chains, st.data())
def test_an_entry_dropped_before_the_last_one_shows(rows: Rows, data: st.DataObject) -> None:
    position = data.draw(st.integers(0, len(rows) - 2))
    del rows[position]
    assert flaws(rows) == {Flaw.MISSING, Flaw.DETACHED}


@given(chains, st.data())
def test_entries_in_another_order_show(rows: Rows, data: st.DataObject) -> None:
    shuffled = data.draw(st.permutations(rows).filter(lambda order: order != rows))
    assert flaws(shuffled) & {Flaw.MISPLACED, Flaw.MISSING}


@given(chains, st.data())
def test_entries_that_trade_their_numbers_show(rows: Rows, data: st.DataObject) -> None:
    one, other = data.draw(st.lists(st.integers(0, len(rows) - 1), min_size=2, max_size=2, unique=True))
    rows[one], rows[other] = (
        {**rows[other], "sequence": rows[one]["sequence"]},
        {**rows[one], "sequence": rows[other]["sequence"]},
    )
    assert Flaw.EDITED in flaws(rows)


@given(chains, attestations, st.data())
def test_an_inserted_entry_shows_even_with_a_good_digest_of_its_own(
    rows: Rows, forged: Attestation, data: st.DataObject
) -> None:
    position = data.draw(st.integers(0, len(rows) - 1))
    rows.insert(position, chain_of([forged], head_of(rows[:position]))[0])
    assert follow(rows)


@given(chains, st.data())
def test_a_missing_end_shows_only_against_a_remembered_head(rows: Rows, data: st.DataObject) -> None:
    remembered = head_of(rows)
    shorter = rows[: data.draw(st.integers(0, len(rows) - 1))]
    assert follow(shorter) == []
    assert flaws(shorter, remembered) == {Flaw.TRUNCATED}


@given(chains, st.data())
def test_a_chain_written_again_from_some_entry_on_shows_only_against_a_remembered_head(
    rows: Rows, data: st.DataObject
) -> None:
    remembered = head_of(rows)
    kept = rows[: data.draw(st.integers(0, len(rows) - 1))]
    forged = kept + chain_of([Attestation("forged", "trusted", "pinned")] * (len(rows) + 1), head_of(kept))
    assert follow(forged) == []
    assert flaws(forged, remembered) == {Flaw.REWRITTEN}


def test_a_row_with_good_digests_that_is_no_record_shows() -> None:
    columns = {**columns_of(Attestation("web1", "trusted", "pinned"), {}), "recorded": "yesterday"}
    assert flaws([link(columns, EMPTY)]) == {Flaw.MALFORMED}


def test_the_digest_of_an_entry_is_what_the_documentation_says_it_is() -> None:
    """Whoever reads an export with another tool relies on these bytes."""
    columns = {**columns_of(Attestation("web1", "trusted", "pinned"), {}), "recorded": "2026-05-04T03:02:01.000000Z"}
    canonical = (
        '{"action":null,"ak":null,"documents":"{}","ek":null,"generation":null,"host":"web1","key":null,'
        '"kind":"attestation","operator":null,"previous":"' + "0" * 64 + '","reason":null,'
        '"recorded":"2026-05-04T03:02:01.000000Z","reference_set":null,"reset_count":null,"road":"pinned",'
        '"root_hash":null,"sequence":1,"state":null,"verdict":"trusted","volume":null,"volume_key_id":null}'
    )
    expected = hashlib.sha256(b"cvm.fde ledger entry\0" + canonical.encode()).hexdigest()
    assert link(columns, EMPTY)["digest"] == expected


def test_the_documentation_explains_every_finding() -> None:
    page = (Path(__file__).resolve().parents[5] / "docs/ledger.md").read_text()
    table = page.partition("| finding | what happened |")[2].partition("\n\n")[0]
    assert set(re.findall(r"^\| `([a-z]+)` \|", table, re.MULTILINE)) == {flaw.value for flaw in Flaw}


@pytest.mark.parametrize(
    "text", ["", "1", "1:abc", "x:" + "0" * 64, "-1:" + "0" * 64, "1:" + "0" * 64 + "0", "1:" + "G" * 64]
)
def test_what_is_no_head_is_refused(text: str) -> None:
    with pytest.raises(FdeError, match="ledger head"):
        Head.parse(text)


def test_a_head_is_read_as_it_was_printed() -> None:
    head = Head(17, "ab" * 32)
    assert Head.parse(f"{head}\n") == head
