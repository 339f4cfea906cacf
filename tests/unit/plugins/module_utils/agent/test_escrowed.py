# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whatever interrupts the two rounds of a recovery key, however often: one that is in escrow opens the volume."""

from __future__ import annotations

import base64
import hashlib
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Optional, cast

import pytest
from ansible_collections.cvm.fde.plugins.module_utils.agent import escrowed
from ansible_collections.cvm.fde.plugins.module_utils.agent.escrowed import Record, Slot
from ansible_collections.cvm.fde.plugins.module_utils.agent.machine import Machine
from ansible_collections.cvm.fde.plugins.module_utils.errors import FdeError
from ansible_collections.cvm.fde.plugins.module_utils.luks2.keyslots import Enrolled, Plan, Recovery
from ansible_collections.cvm.fde.plugins.modules import root_recovery_round

#: One round is cut short before one of these steps; without a cut it comes to its end.
CUTS = ("add: record", "add: change", "store", "confirm", "confirm: change", "confirm: record", None)
ROOM = 2


class Cut(Exception):
    """The machine lost its power, or the control node its connection."""


@dataclass(frozen=True)
class State:
    """What is left between two runs. A keyslot, its salt and its key are one number here, and so is an envelope."""

    header: tuple[int, ...] = ()
    record: Record = Record()
    stored: tuple[int, ...] = ()


@dataclass
class Fake:
    """A machine whose header is a list of numbers, and whose cuts can be chosen."""

    state: State = State()
    cut: Optional[str] = None
    round: str = ""
    numbers: Iterator[int] = field(default_factory=lambda: count(1))

    @property
    def machine(self) -> Machine:
        return cast(Machine, SimpleNamespace(runner=None, tcti=""))

    def step(self, name: str) -> None:
        if name == self.cut:
            raise Cut

    def probe(self, _machine: Machine) -> Any:
        return SimpleNamespace(disk=self.area(self.state.header))

    def area(self, salts: Sequence[int]) -> Any:
        keyslots = {str(salt): {"kdf": {"salt": str(salt)}} for salt in sorted(salts)}
        header = SimpleNamespace(uuid="6a2f0e55", metadata={"keyslots": keyslots})
        return SimpleNamespace(header=lambda: header)

    def enrolled(self, header: Any) -> list[Enrolled]:
        return [Enrolled(Recovery(), int(name)) for name in header.metadata["keyslots"]]

    def change(self, _machine: Machine, edit: Callable[[Any], None]) -> None:
        salts = list(self.state.header)
        copy = SimpleNamespace(path=salts, area=lambda: self.area(salts))
        edit(copy)
        self.step(f"{self.round}: change")
        assert len(copy.path) <= ROOM
        self.state = replace(self.state, header=tuple(copy.path))

    def change_keyslots(self, _runner: None, header: list[int], planned: Plan, *_means: Any) -> None:
        header += [next(number for number in self.numbers if number not in header) for _method in planned.adds]
        for slot in planned.removes:
            header.remove(slot.keyslot)

    def seal(self, *_arguments: Any) -> bytes:
        return os.urandom(8)

    def write(self, record: Record, _path: Path) -> None:
        self.step(f"{self.round}: record")
        self.state = replace(self.state, record=record)

    def run(self, certificate: bytes, cut: Optional[str], overwrites: bool) -> None:
        """Carry out what the module and its action do."""
        self.cut, path = cut, Path()
        with suppress(Cut):
            self.round = "add"
            handover = escrowed.add(self.machine, "host", [certificate], path)
            [made] = [slot for slot in (self.state.record.pending,) if slot and slot.envelope == handover.digest]
            self.step("store")
            stored = {*(() if overwrites else self.state.stored), int(made.salt)}
            self.state = replace(self.state, stored=tuple(sorted(stored)))
            self.step("confirm")
            self.round = "confirm"
            escrowed.confirm(self.machine, handover.digest, path)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Fake:
    one = Fake()
    monkeypatch.setattr(escrowed.commit, "probe", one.probe)
    monkeypatch.setattr(escrowed.commit, "change", one.change)
    monkeypatch.setattr(escrowed, "change_keyslots", one.change_keyslots)
    monkeypatch.setattr(escrowed, "enrolled", one.enrolled)
    monkeypatch.setattr(escrowed, "seal", one.seal)
    monkeypatch.setattr(escrowed, "read", lambda *_path: one.state.record)
    monkeypatch.setattr(escrowed, "write", one.write)
    return one


def shape(state: State) -> tuple[Any, ...]:
    """Return what tells a state from others once the names of its keys do not count."""
    slots = (state.record.escrowed, state.record.pending)
    roles = [tuple(slot is not None and slot.salt == str(salt) for slot in slots) for salt in state.header]
    known = [slot and (int(slot.salt) in state.header, slot.recipients) for slot in slots]
    return (*known, *((*role, salt in state.stored) for role, salt in zip(roles, state.header)))


@pytest.mark.parametrize(
    ("certificates", "overwrites"),
    [((b"one",), False), ((b"one",), True), ((b"one", b"two", b"three"), False), ((b"one", b"two", b"three"), True)],
    ids=["a directory", "a store that has room for one", "other certificates", "other certificates and a small store"],
)
def test_after_any_row_of_interruptions_a_stored_envelope_opens_the_volume(
    fake: Fake, certificates: Sequence[bytes], overwrites: bool
) -> None:
    todo: list[tuple[State, tuple[Any, ...]]] = [(State(), ())]
    seen = {shape(State())}
    while todo:
        before, path = todo.pop()
        for certificate in certificates:
            for cut in CUTS:
                fake.state = before
                fake.run(certificate, cut, overwrites)
                after, way = fake.state, (*path, (certificate, cut))
                opening = set(after.stored) & set(after.header)
                assert opening or not after.stored, way
                if cut is None:
                    record = after.record
                    assert record.pending is None and record.escrowed is not None, way
                    assert after.header == (int(record.escrowed.salt),) and opening, way
                if shape(after) not in seen:
                    seen.add(shape(after))
                    todo.append((after, way))
    assert len(seen) > 5


def test_an_interrupted_confirmation_is_finished_with_the_same_key(fake: Fake) -> None:
    fake.run(b"one", None, False)
    fake.run(b"one", "confirm: record", False)
    [left], pending = fake.state.header, fake.state.record.pending
    assert escrowed.current(fake.machine, fake.state.record) is None and pending is not None
    assert escrowed.waiting(fake.machine, fake.state.record) == pending
    fake.run(b"one", None, False)
    assert fake.state.header == (left,)
    assert fake.state.record == Record(escrowed=Slot(str(left), pending.envelope))


def test_a_key_of_an_operator_stays_until_ours_is_in_escrow(fake: Fake) -> None:
    fake.state = State(header=(77,))
    fake.run(b"one", "store", False)
    assert 77 in fake.state.header
    fake.run(b"one", None, False)
    assert 77 not in fake.state.header


def test_a_key_whose_envelope_no_record_has_stays_until_another_is_in_escrow(fake: Fake) -> None:
    """Such a record was written before the envelope was kept in it."""
    fake.state = State(header=(5, 7), record=Record(pending=Slot("7", "digest")))
    fake.run(b"one", "store", False)
    assert 7 in fake.state.header and len(fake.state.header) == ROOM
    fake.run(b"one", None, False)
    assert not {5, 7} & set(fake.state.header)


@pytest.mark.parametrize(
    ("runs", "certificate", "rotate", "steps"),
    [
        ((), b"one", False, [root_recovery_round.MADE]),
        ((None,), b"one", False, []),
        ((None,), b"one", True, [root_recovery_round.ROTATED]),
        (("store",), b"one", False, [root_recovery_round.FINISHED]),
        (("store",), b"two", False, [root_recovery_round.FINISHED, root_recovery_round.ROTATED]),
        ((None, "store"), b"two", False, [root_recovery_round.FINISHED, root_recovery_round.ROTATED]),
        ((None, "store"), b"two", True, [root_recovery_round.FINISHED, root_recovery_round.ROTATED]),
        ((None, "confirm: record"), b"one", False, [root_recovery_round.FINISHED]),
        ((None, "confirm: record"), b"one", True, [root_recovery_round.FINISHED, root_recovery_round.ROTATED]),
    ],
)
def test_what_is_to_be_done_is_told_before_it_is_done(
    fake: Fake, runs: Sequence[Optional[str]], certificate: bytes, rotate: bool, steps: list[str]
) -> None:
    for cut in runs:
        fake.run(b"one", cut, False)
    wanted = {"host": "host", "certificates": [certificate.decode()], "rotate": rotate}
    found = root_recovery_round.look(fake.machine, wanted)
    assert (found["steps"], found["changed"], found["more"]) == (steps, bool(steps), len(steps) > 1)


def test_a_confirmation_that_is_repeated_changes_nothing(fake: Fake) -> None:
    fake.run(b"one", None, False)
    before = fake.state
    assert before.record.escrowed is not None
    escrowed.confirm(fake.machine, before.record.escrowed.envelope, Path())
    assert fake.state == before
    with pytest.raises(FdeError, match="not the one of this machine"):
        escrowed.confirm(fake.machine, hashlib.sha256(b"another").hexdigest(), Path())


def test_recipients_are_the_same_in_any_order() -> None:
    assert escrowed.recipients("host", [b"one", b"two"]) == escrowed.recipients("host", [b"two", b"one"])
    assert escrowed.recipients("host", [b"one"]) != escrowed.recipients("guest", [b"one"])


def test_a_record_is_on_the_disk_when_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, synced, sync = tmp_path / "cvm-fde/root.json", [], os.fsync

    def note(descriptor: int) -> None:
        synced.append("directory" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    content = base64.b64encode(b"an envelope").decode()
    record = Record(Slot("one", "digest"), Slot("two", "digest", content, "recipients"))
    escrowed.write(record, path)
    assert synced == ["file", "directory"]
    assert escrowed.read(path) == record
    assert [file.name for file in path.parent.iterdir()] == ["root.json"]


def test_a_record_without_the_envelope_is_still_read(tmp_path: Path) -> None:
    path = tmp_path / "root.json"
    path.write_text('{"version": 1, "escrowed": null, "pending": {"salt": "one", "envelope": "digest"}}')
    assert escrowed.read(path) == Record(pending=Slot("one", "digest"))
