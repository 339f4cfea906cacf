# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs the tests under ``inside`` in User-mode Linux, and tests the guest itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible_collections.cvm.fde.tests.integration import in_guest, uml

INSIDE = Path(__file__).resolve().parent / "inside"
#: Their names are given as ids below: pytest would put numbers in the place of long ones, which -k does not find.
FUNCTIONS = list(in_guest.functions(INSIDE))


@pytest.fixture(scope="session")
def guests(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[in_guest.Guests]:
    if why := uml.missing():
        pytest.skip(why)
    with in_guest.Guests(INSIDE, in_guest.chosen(request, "test_inside"), tmp_path_factory) as found:
        yield found


@pytest.mark.parametrize("function", FUNCTIONS, ids=FUNCTIONS)
def test_inside(function: str, guests: in_guest.Guests) -> None:
    guests.check(function)


def test_the_exit_status_of_a_command_comes_back(tmp_path: Path) -> None:
    if why := uml.missing():
        pytest.skip(why)
    outcome = uml.Guest(uml.tools_tree()).run(
        ["sh", "-c", "echo said; echo kept > /exchange/file; exit 41"], exchange=tmp_path
    )
    assert (outcome.status, outcome.output) == (41, "said\n")
    assert (tmp_path / "file").read_text() == "kept\n"


def test_a_hung_guest_is_ended(tmp_path: Path) -> None:
    if why := uml.missing():
        pytest.skip(why)
    with pytest.raises(uml.GuestError, match="said nothing for 30 s(.|\n)*before the hang"):
        guest = uml.Guest(uml.tools_tree(), idle=30)
        guest.run(["sh", "-c", "echo before the hang; exec sleep 600"], exchange=tmp_path)


def test_a_guest_that_dies_is_reported(tmp_path: Path) -> None:
    if why := uml.missing():
        pytest.skip(why)
    with pytest.raises(uml.GuestError, match="ended before its command"):
        uml.Guest(uml.tools_tree()).run(["poweroff", "-ff"], exchange=tmp_path)


@pytest.mark.parametrize(
    ("before", "attempts"),
    [([], 2), ([{"id": "one", "outcome": "passed"}], 2), ([{"id": "one", "outcome": "failed"}], 1)],
)
def test_a_guest_that_fell_silent_is_started_once_more_unless_a_test_failed(
    before: list[dict[str, str]],
    attempts: int,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tried: list[Path] = []

    def attempt(_guests: in_guest.Guests, _functions: object, exchange: Path) -> tuple[bool, list[dict[str, str]]]:
        tried.append(exchange)
        return True, [*before, {"id": "", "outcome": "ending", "text": f"silent in {exchange.name}"}]

    monkeypatch.setattr(in_guest.Guests, "_attempt", attempt)
    with in_guest.Guests(INSIDE, ["test_clone.py::test_one"], tmp_path_factory) as guests:
        *_, ending = guests.results("test_clone.py")
    assert len(tried) == attempts and all(exchange.is_dir() for exchange in tried)
    assert ending["silence"] == ("silent in first" if attempts == 2 else "")
