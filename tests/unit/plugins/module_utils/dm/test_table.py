# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tables are rendered and read without loss, and nothing else passes for one."""

from __future__ import annotations

import contextlib

import pytest
from ansible_collections.cvm.fde.plugins.module_utils.dm.table import (
    Clone,
    Linear,
    Other,
    TableError,
    error,
    parse,
    render,
    zero,
)
from hypothesis import given
from hypothesis import strategies as st

CLONE = Clone(0, 98304, "254:4", "254:3", "254:0", 128, threshold=64, batch=16)


@pytest.mark.parametrize(
    ("table", "text"),
    [
        ((Linear(0, 2048, "254:1", 4096),), "0 2048 linear 254:1 4096\n"),
        (zero(8), "0 8 zero\n"),
        (error(8), "0 8 error\n"),
        (
            (CLONE,),
            "0 98304 clone 254:4 254:3 254:0 128 2 no_hydration no_discard_passdown "
            "4 hydration_threshold 64 hydration_batch_size 16\n",
        ),
        ((Clone(0, 8, "1:1", "1:2", "1:3", 8, hydrate=True, discard_passdown=True),), "0 8 clone 1:1 1:2 1:3 8 0\n"),
        (
            (Linear(0, 8, "1:1", 0), Linear(8, 8, "1:2", 16)),
            "0 8 linear 1:1 0\n8 8 linear 1:2 16\n",
        ),
    ],
)
def test_a_table_is_rendered_and_read_back(table, text):
    assert render(table) == text
    assert parse(text) == table


def test_what_dmsetup_prints_is_read_although_it_ends_lines_with_spaces():
    assert parse("0 100 zero \n") == zero(100)
    assert parse("0 499840 crypt capi:authenc(hmac(sha256),xts(aes))-plain64 :96:logon:x 0 254:0 0 \n") == (
        Other(0, 499840, "crypt", "capi:authenc(hmac(sha256),xts(aes))-plain64 :96:logon:x 0 254:0 0"),
    )


@pytest.mark.parametrize(
    "text",
    [
        "No devices found",
        "x 8 zero",
        "0 -8 zero",
        "0 8",
        "0 8 linear 1:1",
        "0 8 linear 1:1 x",
        "0 8 linear 1:1 0 0",
        "0 8 clone 1:1 1:2 1:3",
        "0 8 clone 1:1 1:2 1:3 8 2 no_hydration",
        "0 8 clone 1:1 1:2 1:3 8 0 1 hydration_threshold",
        "0 8 clone 1:1 1:2 1:3 8 0 0 0",
        "0 " + "9" * 30 + " zero",
    ],
)
def test_what_is_no_table_is_refused(text):
    with pytest.raises(TableError):
        parse(text)


@given(st.text(alphabet="0123456789 :abcdelinorz_-\n", max_size=80))
def test_any_text_is_read_or_refused(text):
    with contextlib.suppress(TableError):
        table = tuple(target for target in parse(text) if target.length)
        assert parse(render(table)) == table


@pytest.mark.parametrize(
    "target", [Linear(0, 0, "1:1", 0), Linear(-1, 8, "1:1", 0), Linear(0, 8, "1:1 0\n0 8 zero", 0)]
)
def test_a_target_that_is_none_is_a_bug(target):
    with pytest.raises(ValueError, match=r"no such target|line break"):
        render((target,))
