# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is fuzzed takes good inputs and refuses damaged ones by its own error; a short look with every test run."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.judgement import Verdict, appraise
from ansible_collections.cvm.fde.plugins.plugin_utils.bounds import time_limit
from ansible_collections.cvm.fde.tests.vectors import MISSING

from . import target as targets
from .appraisal import honest
from .target import Target
from .targets import TARGETS

#: Damaged inputs for each target: this is a look, not the fuzzing, which is ``python -m tests.fuzz``.
LOOKS = 300
#: Seconds after which an input of some kilobytes is one without an end, however busy the machine is.
ENDLESS = 120

EACH = pytest.mark.parametrize("target", TARGETS.values(), ids=list(TARGETS))


def damaged(data: bytes, chance: random.Random) -> bytes:
    """Return bytes with a few edits: some changed, inserted, cut, repeated."""
    for _edit in range(chance.randint(1, 4)):
        place, size = chance.randrange(len(data) + 1), chance.choice((1, 1, 2, 4, 8, 64))
        piece = chance.choice((chance.randbytes(size), b"\0" * size, b"\xff" * size, data[place : place + size] * 2))
        data = data[:place] + piece + data[place + chance.choice((0, len(piece), size)) :]
    return data


@EACH
def test_good_inputs_are_taken(target: Target) -> None:
    for data in target.own():
        if target.strict:
            target.run(data)
        else:
            target.once(data)


@pytest.mark.parametrize("name", [target.name for target in TARGETS.values() if target.vectors])
def test_real_inputs_are_taken_or_refused(name: str) -> None:
    real = TARGETS[name].real()
    if not real:
        pytest.skip(MISSING)
    for data in real:
        TARGETS[name].once(data)


@EACH
def test_every_target_has_inputs_to_begin_with(target: Target) -> None:
    # Those of the judgement are edits, and any bytes are some.
    assert target.own() or target.name == "judgement"


def test_real_inputs_that_are_missed_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looking = Target("looking", lambda data: data, (), vectors=("found/*", "missed/*"))
    monkeypatch.setattr(targets, "VECTORS", tmp_path)
    (tmp_path / "found").mkdir()
    (tmp_path / "found/input").write_bytes(b"x")
    with pytest.raises(LookupError, match=r"no real input of looking is called missed/\* in"):
        looking.real()
    assert Target("found", lambda data: data, (), vectors=("found/*",)).real() == [b"x"]
    # Who has none at all is not asked for them.
    monkeypatch.setattr(targets, "VECTORS", tmp_path / "nowhere")
    assert looking.real() == []


@EACH
def test_damaged_inputs_are_taken_or_refused(target: Target) -> None:
    chance = random.Random(target.name)
    seeds = target.own() or [chance.randbytes(64) for _seed in range(16)]
    for _look in range(LOOKS):
        with time_limit(ENDLESS):
            target.once(damaged(chance.choice(seeds), chance)[: target.limit])


def test_the_answers_that_are_damaged_for_the_judgement_are_good_ones() -> None:
    assert appraise(*honest()).verdict is Verdict.TRUSTED
