# SPDX-License-Identifier: GPL-3.0-or-later
"""The decision table: each row, and each pair of things that are wrong."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Callable

import pytest
from ansible_collections.cvm.fde.plugins.module_utils.agent.decision import (
    Action,
    Code,
    Decision,
    Probed,
    Volume,
    decide,
    refuse,
)
from ansible_collections.cvm.fde.plugins.module_utils.errors import Refusal
from ansible_collections.cvm.fde.plugins.module_utils.tpm.anchor import Anchor, Found, Standing, State

CURRENT, NEXT, OTHER = b"c" * 32, b"n" * 32, b"o" * 32
ABSENT, UNWRITTEN = Found(Standing.ABSENT), Found(Standing.UNWRITTEN)
FOREIGN, UNREADABLE = Found(Standing.FOREIGN), Found(Standing.UNREADABLE)
INITIALIZING = Found(Standing.OURS, Anchor(State.INITIALIZING))
READY = Found(Standing.OURS, Anchor(State.READY, header_current=CURRENT, generation=5))
CHANGING = Found(Standing.OURS, Anchor(State.READY, header_current=CURRENT, header_next=NEXT))

EMPTY = Volume("/dev/vda4", True)
OURS = Volume("/dev/vda4", True, CURRENT)
CHANGED = Volume("/dev/vda4", True, NEXT)
THEIRS = Volume("/dev/vda4", True, OTHER)
UNTYPED = Volume("/dev/vda4", False, CURRENT)


def outcome(anchor: Found, *volumes: Volume, disks: int = 1, foreign: int = 0) -> str:
    """Return the action or the code of the refusal."""
    probed = Probed(
        anchor,
        tuple(f"/dev/vd{number}" for number in range(disks)),
        volumes,
        tuple(f"/dev/vda{number}" for number in range(7, 7 + foreign)),
    )
    decided = decide(probed)
    return decided.code if isinstance(decided, Refusal) else decided.action.value


@pytest.mark.parametrize(
    ("anchor", "volumes", "expected"),
    [
        (ABSENT, (), Action.FIRST_BOOT),
        (ABSENT, (OURS,), Code.VOLUME_WITHOUT_ANCHOR),
        (ABSENT, (UNTYPED,), Code.VOLUME_WITHOUT_ANCHOR),
        (ABSENT, (EMPTY,), Code.PARTITION_FOREIGN),
        (UNWRITTEN, (), Action.FIRST_BOOT),
        (UNWRITTEN, (OURS,), Code.VOLUME_WITHOUT_ANCHOR),
        (UNWRITTEN, (EMPTY,), Code.PARTITION_FOREIGN),
        (INITIALIZING, (), Action.FIRST_BOOT),
        (INITIALIZING, (EMPTY,), Action.FIRST_BOOT),
        (INITIALIZING, (OURS,), Action.FIRST_BOOT),
        (INITIALIZING, (THEIRS,), Action.FIRST_BOOT),
        (INITIALIZING, (UNTYPED,), Code.PARTITION_FOREIGN),
        (READY, (OURS,), Action.OPEN),
        (READY, (), Code.VOLUME_MISSING),
        (READY, (EMPTY,), Code.HEADER_MISMATCH),
        (READY, (THEIRS,), Code.HEADER_MISMATCH),
        (READY, (CHANGED,), Code.HEADER_MISMATCH),
        (READY, (UNTYPED,), Code.PARTITION_FOREIGN),
        (READY, (OURS, OURS), Code.VOLUME_DUPLICATE),
        (READY, (OURS, THEIRS), Code.VOLUME_DUPLICATE),
        (READY, (replace(OURS, generation=4),), Code.ROLLED_BACK),
        (READY, (replace(OURS, generation=5),), Action.OPEN),
        (READY, (replace(OURS, generation=6),), Action.OPEN),
        (CHANGING, (OURS,), Action.OPEN),
        (CHANGING, (CHANGED,), Action.OPEN),
        (CHANGING, (THEIRS,), Code.HEADER_MISMATCH),
        (FOREIGN, (), Action.FIRST_BOOT),
        (FOREIGN, (OURS,), Code.ANCHOR_FOREIGN),
        (FOREIGN, (EMPTY,), Code.PARTITION_FOREIGN),
        (UNREADABLE, (), Code.ANCHOR_UNREADABLE),
        (UNREADABLE, (OURS,), Code.ANCHOR_UNREADABLE),
    ],
)
def test_each_row(anchor: Found, volumes: tuple[Volume, ...], expected: str) -> None:
    assert outcome(anchor, *volumes) == expected


@pytest.mark.parametrize("anchor", [ABSENT, UNWRITTEN, INITIALIZING, READY, FOREIGN, UNREADABLE])
@pytest.mark.parametrize("disks", [0, 2, 3])
def test_nothing_is_done_without_exactly_one_disk(anchor: Found, disks: int) -> None:
    assert outcome(anchor, disks=disks) == Code.DISK_AMBIGUOUS
    assert outcome(anchor, OURS, disks=disks, foreign=1) == Code.DISK_AMBIGUOUS


@pytest.mark.parametrize("anchor", [ABSENT, UNWRITTEN, INITIALIZING, READY, FOREIGN])
def test_nothing_is_done_beside_a_foreign_partition(anchor: Found) -> None:
    assert outcome(anchor, foreign=1) == Code.PARTITION_FOREIGN
    assert outcome(anchor, OURS, foreign=1) == Code.PARTITION_FOREIGN


def test_an_anchor_of_zeros_pins_no_header() -> None:
    blank = Found(Standing.OURS, Anchor(State.READY))
    assert outcome(blank, Volume("/dev/vda4", True, bytes(32))) == Code.HEADER_MISMATCH


#: What the host can do to a machine that is ready, each alone refused under its code.
ANOMALIES: dict[Code, Callable[[Probed], Probed]] = {
    Code.DISK_AMBIGUOUS: lambda probed: replace(probed, disks=(*probed.disks, "/dev/vdb")),
    Code.PARTITION_FOREIGN: lambda probed: replace(probed, foreign=("/dev/vda7",)),
    Code.VOLUME_DUPLICATE: lambda probed: replace(probed, volumes=(*probed.volumes, OURS, OURS)),
    Code.VOLUME_MISSING: lambda probed: replace(probed, volumes=()),
    Code.ANCHOR_FOREIGN: lambda probed: replace(probed, anchor=FOREIGN),
    Code.VOLUME_WITHOUT_ANCHOR: lambda probed: replace(probed, anchor=ABSENT),
    Code.ANCHOR_UNREADABLE: lambda probed: replace(probed, anchor=UNREADABLE),
    Code.HEADER_MISMATCH: lambda probed: replace(
        probed, volumes=tuple(replace(volume, header_digest=OTHER) for volume in probed.volumes)
    ),
    Code.ROLLED_BACK: lambda probed: replace(
        probed, volumes=tuple(replace(volume, generation=1) for volume in probed.volumes)
    ),
}


@pytest.mark.parametrize("code", ANOMALIES)
def test_each_anomaly_is_named(code: Code) -> None:
    decided = decide(ANOMALIES[code](Probed(READY, ("/dev/vda",), (OURS,))))
    assert isinstance(decided, Refusal) and decided.code == code


@pytest.mark.parametrize(("one", "other"), list(itertools.permutations(ANOMALIES, 2)))
def test_no_pair_of_anomalies_opens_the_volume(one: Code, other: Code) -> None:
    probed = ANOMALIES[other](ANOMALIES[one](Probed(READY, ("/dev/vda",), (OURS,))))
    decided = decide(probed)
    if probed.volumes == () and probed.anchor.standing in (Standing.ABSENT, Standing.FOREIGN):
        # No volume and no anchor of ours: indistinguishable from a new machine, and it gets a new volume key.
        assert isinstance(decided, Decision) and decided.action is Action.FIRST_BOOT
    else:
        assert isinstance(decided, Refusal)


def test_a_decision_names_the_volume_to_open_or_to_replace() -> None:
    opened = decide(Probed(READY, ("/dev/vda",), (OURS,)))
    made_anew = decide(Probed(INITIALIZING, ("/dev/vda",), (THEIRS,)))
    assert opened == Decision(Action.OPEN, OURS)
    assert made_anew == Decision(Action.FIRST_BOOT, THEIRS)


@pytest.mark.parametrize("code", Code)
def test_each_code_explains_itself(code: Code) -> None:
    refusal = refuse(code, "/dev/vda", "detail")
    assert refusal.code == code.value
    assert refusal.cause == f"{code.sentence} (detail)"
    assert code.value == code.value.lower() and " " not in code.value
    assert not code.sentence.endswith(".") and not code.remedy.endswith(".")
