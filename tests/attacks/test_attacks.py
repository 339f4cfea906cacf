# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs the attacks under ``inside`` in User-mode Linux, and keeps the document of all attacks true."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible_collections.cvm.fde.tests.attacks import catalogue, stock
from ansible_collections.cvm.fde.tests.integration import in_guest, uml

INSIDE = Path(__file__).resolve().parent / "inside"


@pytest.fixture(scope="session")
def guests(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[in_guest.Guests]:
    if why := uml.missing():
        pytest.skip(why)
    with in_guest.Guests(INSIDE, in_guest.chosen(request, "test_attack"), tmp_path_factory) as found:
        yield found


@pytest.mark.parametrize("function", list(in_guest.functions(INSIDE)))
def test_attack(function: str, guests: in_guest.Guests) -> None:
    guests.check(function)


def test_the_document_is_what_the_tests_say() -> None:
    assert catalogue.DOCUMENT.read_text() == catalogue.document(), "run: python -m tests.attacks.catalogue"


@pytest.mark.parametrize("kind", list(catalogue.Kind))
def test_every_kind_of_attack_is_tried(kind: catalogue.Kind) -> None:
    assert [one for one in catalogue.attacks() if one.kind is kind]


def test_what_systemd_does_by_itself_is_what_the_document_says() -> None:
    if why := uml.missing():
        pytest.skip(why)
    tree, recorded = uml.tools_tree(), json.loads(catalogue.STOCK.read_text())
    assert tree is not None
    if (version := stock.version(tree)) != recorded["systemd"]:
        pytest.skip(f"recorded of systemd {recorded['systemd']}, not {version}; run: python -m tests.attacks.stock")
    assert stock.measured(tree) == recorded, "run: python -m tests.attacks.stock"


def test_every_test_in_this_folder_that_runs_in_a_guest_is_an_attack() -> None:
    listed = {f"{Path(one.file).name}::{one.test}" for one in catalogue.attacks() if "tests/attacks/inside" in one.file}
    assert listed == set(in_guest.functions(INSIDE))
