# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A torn header is finished, and nothing else on a disk is ever written over."""

from __future__ import annotations

import lzma
import os
from dataclasses import dataclass
from pathlib import Path

import pytest
from ansible_collections.cvm.fde.plugins.module_utils.errors import FdeError, Refusal
from ansible_collections.cvm.fde.plugins.module_utils.luks2.area import HeaderArea
from ansible_collections.cvm.fde.plugins.module_utils.luks2.digest import header_digest
from ansible_collections.cvm.fde.plugins.module_utils.luks2.profile import LAYOUT
from ansible_collections.cvm.fde.plugins.module_utils.runner import Runner
from ansible_collections.cvm.fde.plugins.module_utils.volume import boot
from ansible_collections.cvm.fde.plugins.module_utils.volume import pin as pins
from ansible_collections.cvm.fde.plugins.module_utils.volume.machine import Machine
from ansible_collections.cvm.fde.plugins.module_utils.volume.pin import Pin, PinState
from ansible_collections.cvm.fde.plugins.module_utils.volume.places import Places
from ansible_collections.cvm.fde.plugins.module_utils.volume.recovery import fingerprints

FIXTURES = Path(__file__).parents[1] / "luks2/fixtures"
UUID = "6a2f0e55-5b7e-4d0e-9d59-1c2f35e7a003"
BEHIND = b"what lies behind the header area"


def area(name: str = "2.8.8-authenticated") -> bytes:
    return lzma.decompress((FIXTURES / f"{name}.xz").read_bytes()).ljust(LAYOUT.offset, b"\0")


#: The new header has other bytes in a keyslot, the old one is as cryptsetup made it.
OLD = area()
NEW = OLD[:1_000_000] + bytes(byte ^ 1 for byte in OLD[1_000_000:1_001_000]) + OLD[1_001_000:]


class NoPrograms(Runner):
    """Comparing and writing a header takes no other program."""


@dataclass(frozen=True)
class Disk:
    """A machine whose change of a header was cut short, and its disk, a file."""

    machine: Machine
    path: Path

    def holds(self, content: bytes) -> None:
        self.path.write_bytes(content + BEHIND)

    def boot(self) -> None:
        boot.header(self.machine, "data")


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    path = tmp_path / "disk"
    places = Places(tmp_path / "root")
    current, following = (header_digest(content).hex() for content in (OLD, NEW))
    ready = Pin("data", UUID, str(path), PinState.READY, "authenticated", True, "ext4", 1 << 30)
    pin = ready.having(current=current, next=following)
    pins.save(places.pin("data"), pin)
    pins.write(places.replaced("data"), OLD, 0o600)
    pins.write(places.saved("data"), NEW, 0o600)
    return Disk(Machine(NoPrograms(), places), path)


@pytest.mark.parametrize("cut", [1_000_000 // 512 * 512 + 512 * number for number in range(1, 3)])
def test_a_header_torn_between_any_two_sectors_is_finished_at_boot(disk: Disk, cut: int) -> None:
    for torn in (NEW[:cut] + OLD[cut:], OLD[:cut] + NEW[cut:]):
        assert torn not in (OLD, NEW)
        disk.holds(torn)
        disk.boot()
        assert disk.path.read_bytes() == NEW + BEHIND


def test_a_disk_that_fails_says_that_the_next_run_finishes_it(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_descriptor: int, _content: bytes, _offset: int) -> int:
        raise OSError(5, "Input/output error")

    disk.holds(NEW[:1_000_448] + OLD[1_000_448:])
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", fail)
        with pytest.raises(FdeError, match="could not be written: Input/output error. Check the disk, then run again"):
            disk.boot()
    disk.boot()
    assert disk.path.read_bytes() == NEW + BEHIND


def test_a_header_that_was_not_written_at_all_is_opened_as_it_is(disk: Disk) -> None:
    disk.holds(OLD)
    disk.boot()
    assert disk.path.read_bytes() == OLD + BEHIND


FOREIGN = {
    "a database": b"somebody else's database ".ljust(LAYOUT.offset, b"x"),
    "nothing": bytes(LAYOUT.offset),
    "another volume": area("2.7.5-authenticated"),
    "one changed byte": NEW[:700_000] + b"\1" + NEW[700_001:],
    "half a sector of each": NEW[:1_000_100] + OLD[1_000_100:],
    "the second half": bytes(LAYOUT.offset // 2) + NEW[LAYOUT.offset // 2 :],
    "a smaller disk": NEW[: LAYOUT.offset - 4096 - len(BEHIND)],
}


@pytest.mark.parametrize("content", FOREIGN.values(), ids=FOREIGN)
def test_nothing_is_written_over_a_disk_that_holds_anything_else(disk: Disk, content: bytes) -> None:
    disk.holds(content)
    with pytest.raises(Refusal) as caught:
        disk.boot()
    assert caught.value.code == "header-changed"
    assert disk.path.read_bytes() == content + BEHIND


@pytest.mark.parametrize("lost", ["saved", "replaced"])
def test_nothing_is_written_when_one_of_the_copies_is_not_the_pinned_one(disk: Disk, lost: str) -> None:
    torn = NEW[:1_000_448] + OLD[1_000_448:]
    assert torn not in (OLD, NEW)
    copy = getattr(disk.machine.places, lost)("data")
    for content in (None, area("2.7.5-authenticated"), b""):
        copy.unlink() if content is None else copy.write_bytes(content)
        disk.holds(torn)
        with pytest.raises(Refusal):
            disk.boot()
        assert disk.path.read_bytes() == torn + BEHIND


def test_the_fingerprint_of_a_keyslot_follows_its_bytes_and_nothing_else() -> None:
    before, after = (fingerprints(HeaderArea("disk", content)) for content in (OLD, NEW))
    places = {
        int(name): (int(slot["area"]["offset"]), int(slot["area"]["size"]))
        for name, slot in HeaderArea("disk", OLD).header().metadata["keyslots"].items()
    }
    hit = [slot for slot, (start, size) in places.items() if start <= 1_000_000 < start + size]
    assert hit and len(set(before.values())) == len(before)
    assert [slot for slot in before if before[slot] != after[slot]] == hit
