# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Copying yields to users, goes on when they are quiet, and never waits for ever."""

from __future__ import annotations

from pathlib import Path

import pytest
from ansible_collections.cvm.fde.plugins.module_utils.agent.pace import LIMITS, Load, Pace, Pacer, load_of

STAT = "100 0 800 5 40 0 320 7 3 9 12 2 0 64 1 0 0\n"


def after(pacer: Pacer, *rates: float) -> Pacer:
    for rate in rates:
        pacer = pacer.after(Load(0, 0), Load(int(rate), 0), 1.0)
    return pacer


@pytest.mark.parametrize(
    ("rates", "pace"),
    [
        ((), Pace.FULL),
        ((0,), Pace.FULL),
        ((LIMITS.busy,), Pace.FULL),
        ((LIMITS.busy + 1,), Pace.PAUSED),
        ((500, 0), Pace.PAUSED),
        ((500, 0, 0), Pace.FULL),
        ((500, 0, 500, 0), Pace.PAUSED),
        ((500,) * LIMITS.patience, Pace.PAUSED),
        ((500,) * (LIMITS.patience + 1), Pace.GENTLE),
        ((500,) * (LIMITS.patience + 1) + (0, 0), Pace.FULL),
    ],
)
def test_the_pace_follows_what_users_do(rates: tuple[float, ...], pace: Pace) -> None:
    assert after(Pacer(), *rates).pace is pace


def test_a_pause_after_a_quiet_moment_is_a_new_one() -> None:
    gentle = after(Pacer(), *[500] * (LIMITS.patience + 1))
    assert after(gentle, 0, 0, 500).pace is Pace.PAUSED


def test_a_large_request_that_takes_long_counts_as_well() -> None:
    assert Pacer().after(Load(5, 0), Load(6, 1), 1.0).pace is Pace.PAUSED


def test_two_looks_at_the_same_moment_are_no_load() -> None:
    assert Pacer().after(Load(0, 0), Load(1000, 0), 0.0).pace is Pace.FULL


def test_reads_writes_and_discards_count(tmp_path: Path) -> None:
    device = tmp_path / "block/dm-3"
    device.mkdir(parents=True)
    (device / "stat").write_text(STAT)
    assert load_of(3, tmp_path) == Load(142, 3)
