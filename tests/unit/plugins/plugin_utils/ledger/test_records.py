# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What can be written into the ledger comes out of it as it went in; what cannot is refused at the door."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest
from ansible_collections.cvm.fde.plugins.plugin_utils.ledger.chain import EMPTY, link
from ansible_collections.cvm.fde.plugins.plugin_utils.ledger.records import (
    Action,
    Anchor,
    Attestation,
    Decision,
    Identity,
    columns_of,
    entry_of,
    text_of,
    time_of,
)
from hypothesis import given
from hypothesis import strategies as st

KEY = "ab" * 32
NOW = "2026-05-04T03:02:01.000009Z"

names = st.text(min_size=1, max_size=40).filter(str.isprintable)
words = st.from_regex(r"[a-z][a-z0-9-]{0,20}", fullmatch=True)
digests = st.binary(min_size=32, max_size=32).map(bytes.hex)
anchors = st.builds(Anchor, st.integers(0, 2**64 - 1), st.integers(0, 255), st.integers(0, 2**32 - 1))
records = st.one_of(
    st.builds(
        Attestation,
        host=names,
        verdict=words,
        road=words,
        volume=st.none() | names,
        volume_key_id=st.none() | digests,
        root_hash=st.none() | digests,
        reference_set=st.none() | names,
        anchor=st.none() | anchors,
    ),
    st.builds(Identity, host=names, road=words, ek=digests, ak=st.none() | digests),
    st.builds(Decision, names, st.just(Action.APPROVE_IDENTITY), names, names, key=digests),
    st.builds(Decision, names, st.just(Action.RENEW_VOLUME), names, names, volume=names),
    st.builds(Decision, names, st.just(Action.RETIRE_HOST), names, names),
)
moments = st.datetimes(min_value=datetime(1000, 1, 1), timezones=st.just(timezone.utc))
documents = st.dictionaries(words, digests, max_size=3)


@given(record=records, documents=documents)
def test_a_record_comes_out_of_its_columns_as_it_went_in(record, documents) -> None:
    row = link({**columns_of(record, documents), "recorded": NOW}, EMPTY)
    entry = entry_of(row)
    assert entry.record == record
    assert entry.documents == documents
    assert (entry.sequence, entry.previous, entry.digest) == (1, EMPTY.digest, row["digest"])


@given(records, st.data())
def test_columns_that_no_record_would_have_written_are_no_entry(record, data) -> None:
    row = link({**columns_of(record, {}), "recorded": NOW}, EMPTY)
    name = data.draw(st.sampled_from(sorted(row)))
    values = [-1, 2**70, "", "\0", b"x", "[" * 3000, 1.5, [], {}]
    row[name] = data.draw(st.sampled_from(values).filter(lambda value: value != row[name]))
    if name == "sequence" and isinstance(row[name], int):
        return  # The chain checks its numbers itself.
    with pytest.raises((ValueError, TypeError, RecursionError)):
        entry_of(row)


@pytest.mark.parametrize(
    "broken",
    [
        lambda: Attestation("", "trusted", "pinned"),
        lambda: Attestation("a\nb", "trusted", "pinned"),
        lambda: Attestation("a" * 256, "trusted", "pinned"),
        lambda: Attestation("\ud800", "trusted", "pinned"),
        lambda: Attestation("host", "Trusted!", "pinned"),
        lambda: Attestation("host", "trusted", ""),
        lambda: Attestation("host", "trusted", "pinned", volume_key_id="AB" * 32),
        lambda: Attestation("host", "trusted", "pinned", root_hash="abc"),
        lambda: Identity("host", "pinned"),
        lambda: Identity("host", "pinned", ek="not hex"),
        lambda: Anchor(-1, 2, 0),
        lambda: Anchor(2**64, 2, 0),
        lambda: Anchor(1, 256, 0),
        lambda: Anchor(1, 2, 2**32),
        lambda: Anchor(True, 2, 0),
        lambda: Decision("host", Action.APPROVE_IDENTITY, "ann", "because"),
        lambda: Decision("host", Action.RETIRE_HOST, "ann", "because", key=KEY),
        lambda: Decision("host", Action.RENEW_VOLUME, "ann", "because"),
        lambda: Decision("host", Action.RETIRE_HOST, "ann", "because", volume="fde-crypt"),
        lambda: Decision("host", Action.RETIRE_HOST, "ann", ""),
        lambda: columns_of(Identity("host", "pinned", ek=KEY), {"Upper": KEY}),
        lambda: columns_of(Identity("host", "pinned", ek=KEY), {"quote": "short"}),
        lambda: columns_of(Identity("host", "pinned", ek=KEY), {f"d{number}": KEY for number in range(65)}),
    ],
)
def test_what_is_no_record_is_refused_at_the_door(broken) -> None:
    with pytest.raises(ValueError):
        broken()


def test_an_anchor_names_the_parts_in_which_it_is_behind() -> None:
    highest = Anchor(10, 2, 5)
    assert Anchor(10, 2, 5).behind(highest) == ()
    assert Anchor(11, 2, 6).behind(highest) == ()
    assert Anchor(9, 2, 6).behind(highest) == ("generation",)
    assert Anchor(0, 1, 0).behind(highest) == ("generation", "state", "reset_count")


@given(moments, moments)
def test_moments_sort_as_their_texts_do(one: datetime, other: datetime) -> None:
    assert time_of(text_of(one)) == one
    assert (text_of(one) < text_of(other)) == (other - one > timedelta(0))


@pytest.mark.parametrize(
    "text",
    [
        "2026-11-27T00:00:00.000000",
        "2026-11-27T00:00:00Z",
        "2026-11-27T00:00:00.000000+00:00",
        "2026-11-27T01:00:00.000000+01:00",
        "2026-11-27 00:00:00.000000Z",
        "20261127T000000.000000Z",
        "2026-11-27T00:00:00.000000ZZ",
        "",
    ],
)
def test_a_time_that_the_ledger_does_not_write_like_that_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        time_of(text)
