# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Filling the rest of a volume gives way to users; what it does to a real volume is tested in a guest."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from ansible_collections.cvm.fde.plugins.module_utils.agent import filling
from ansible_collections.cvm.fde.plugins.module_utils.agent.pace import Pace


class Watched:
    """A device whose pace at each look is known before; the clock only moves while somebody sleeps."""

    def __init__(self, paces: list[Pace], patch: pytest.MonkeyPatch) -> None:
        self.pace, self._paces = Pace.FULL, iter(paces)
        self.now, self.slept, self.looks, self.short = 0.0, [], 0, False
        patch.setattr(filling.time, "monotonic", lambda: self.now)
        patch.setattr(filling.time, "sleep", self._sleep)

    def _sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds

    def look(self) -> bool:
        self.looks += 1
        before, self.pace = self.pace, next(self._paces)
        return before is not self.pace


@pytest.fixture
def patch() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patched:
        yield patched


def test_users_are_looked_at_once_an_interval_not_before_each_piece(patch: pytest.MonkeyPatch) -> None:
    watch = Watched([Pace.FULL, Pace.FULL], patch)
    courtesy = filling._Courtesy(watch, lambda: watch.short)
    for _piece in range(1000):
        courtesy.wait()
    assert (watch.looks, watch.slept) == (1, [])
    watch.now += filling.INTERVAL
    courtesy.wait()
    courtesy.wait()
    assert (watch.looks, watch.slept) == (2, [])


def test_nothing_is_written_until_users_are_quiet(patch: pytest.MonkeyPatch) -> None:
    watch = Watched([Pace.PAUSED, Pace.PAUSED, Pace.FULL], patch)
    courtesy = filling._Courtesy(watch, lambda: watch.short)
    courtesy.wait()
    assert (watch.looks, watch.slept) == (3, [filling.INTERVAL] * 2)


def test_users_who_are_never_quiet_are_served_between_pieces(patch: pytest.MonkeyPatch) -> None:
    watch = Watched([Pace.PAUSED, Pace.GENTLE], patch)
    courtesy = filling._Courtesy(watch, lambda: watch.short)
    courtesy.wait()
    courtesy.wait()
    assert watch.slept == [filling.INTERVAL, filling._REST, filling._REST]


def test_users_who_need_the_room_are_not_waited_for(patch: pytest.MonkeyPatch) -> None:
    watch = Watched([Pace.PAUSED, Pace.GENTLE, Pace.PAUSED, Pace.FULL], patch)
    watch.short = True
    courtesy = filling._Courtesy(watch, lambda: watch.short)
    for _second in range(2):
        courtesy.wait()
        watch.now += filling.INTERVAL
    assert watch.slept == []
    watch.short = False
    courtesy.wait()
    assert watch.slept == [filling.INTERVAL]
