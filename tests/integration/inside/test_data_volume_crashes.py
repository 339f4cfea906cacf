# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Data volumes whose making, changing and erasing is interrupted, at every step and by disks that fail or are full."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.cvm.fde.plugins.module_utils.dm.device import DeviceMapper
from ansible_collections.cvm.fde.plugins.module_utils.dm.table import Linear, Other
from ansible_collections.cvm.fde.plugins.module_utils.errors import FdeError, Refusal
from ansible_collections.cvm.fde.plugins.module_utils.luks2.area import read_area
from ansible_collections.cvm.fde.plugins.module_utils.luks2.method import Passphrase, Recovery
from ansible_collections.cvm.fde.plugins.module_utils.luks2.profile import LAYOUT
from ansible_collections.cvm.fde.plugins.module_utils.volume import boot
from ansible_collections.cvm.fde.plugins.module_utils.volume.erasure import mark
from ansible_collections.cvm.fde.plugins.module_utils.volume.wanted import State, UnlockWith, Wanted
from instance import PowerCut
from owner import NAME, Owner, drop_caches

MIB = 1 << 20
SIZE = 48 * MIB


def cut_before(action: str) -> Callable[[str], None]:
    """Return what ends a run before its first step with that action."""

    def announce(text: str) -> None:
        if text.split()[1] == action:
            raise PowerCut(text)

    return announce


def recoverable(owner: Owner, device: str, **options: Any) -> Wanted:
    """Return a volume that a recovery key opens; nothing here depends on what opens it."""
    defaults = {"unlock": (Recovery(),), "certificates": (owner.certificate(),), "profile": "confidential"}
    return owner.wants(device, **{**defaults, **options})


def pinned(owner: Owner) -> str:
    """Return the state of the pin, ``nothing`` where there is none."""
    path = owner.machine.places.pin(NAME)
    return str(json.loads(path.read_text())["state"]) if path.exists() else "nothing"


@pytest.fixture
def alive(capsys: pytest.CaptureFixture[str]) -> Callable[[], None]:
    """Show that a long test goes on: a guest that says nothing is taken to hang."""

    def show() -> None:
        with capsys.disabled():
            print(".", end="", flush=True)

    return show


@dataclass(frozen=True)
class Moment:
    """What would be left if the power failed before a step: the disk as it was flushed, in a file, and the pin."""

    step: str
    disk: Path
    pin: bytes

    def restore(self, owner: Owner, device: str) -> None:
        with self.disk.open("rb") as kept, open(device, "r+b") as target:
            shutil.copyfileobj(kept, target, MIB)
        pin = owner.machine.places.pin(NAME)
        pin.unlink(missing_ok=True)
        if self.pin:
            pin.write_bytes(self.pin)


@pytest.fixture
def album() -> Iterator[Path]:
    """A directory of the host for moments: a process that held ten disks would be too large for the guest."""
    directory = Path("/exchange/moments")
    directory.mkdir()
    yield directory
    shutil.rmtree(directory)


def watched(owner: Owner, device: str, wanted: Wanted, album: Path) -> list[Moment]:
    """Run, and return the moment before every step."""
    backing = Path("/sys/block", Path(device).name, "loop/backing_file").read_text().strip()
    pin = owner.machine.places.pin(NAME)
    moments = []

    def announce(text: str) -> None:
        disk = album / str(len(moments))
        owner.runner.run(["cp", "--sparse=always", backing, str(disk)])
        moments.append(Moment(text, disk, pin.read_bytes() if pin.exists() else b""))

    owner.run(wanted, announce)
    return moments


#: What is made in different ways: with and without authentication, with and without a journal.
STACKS = {("confidential", "ext4"): SIZE, ("authenticated", "ext4"): SIZE, ("aegis", "btrfs"): 160 * MIB}


@pytest.mark.parametrize(("profile", "kind"), STACKS)
def test_a_creation_whose_power_fails_before_any_step_is_made_anew(
    owner: Owner, disk: Callable[..., str], alive: Callable[[], None], album: Path, profile: str, kind: str
) -> None:
    device = disk(STACKS[profile, kind])
    wanted = recoverable(owner, device, profile=profile, file_system=kind)
    moments = watched(owner, device, wanted, album)
    states = [str(json.loads(moment.pin)["state"]) if moment.pin else "nothing" for moment in moments]
    assert states == ["nothing", *["initializing"] * 7, "ready"], [moment.step for moment in moments]
    # The last one first: its recovery key is the one that was handed over last.
    for moment in reversed(moments):
        alive()
        owner.cut_power()
        moment.restore(owner, device)
        again = owner.run(wanted) if moment is not moments[-1] else owner.run(opened_by_key(owner, wanted))
        assert again["state"] == "mounted", moment.step
        (owner.mount_point / "file").write_text("kept")


def opened_by_key(owner: Owner, wanted: Wanted) -> Wanted:
    return replace(wanted, unlock_with=UnlockWith(recovery_key=owner.recovery_key))


def test_a_creation_that_is_killed_is_made_anew_though_everything_is_still_open(
    owner: Owner, disk: Callable[..., str]
) -> None:
    device = disk(SIZE)
    wanted = recoverable(owner, device)
    for step in ("make-file-system", "store", "ready"):
        with pytest.raises(PowerCut):
            owner.run(wanted, cut_before(step))
        assert owner.machine.mapper.find(NAME) is not None and pinned(owner) == "initializing"
        again = owner.run(wanted)
        assert (again["steps"][0]["action"], again["state"]) == ("close", "mounted")
        owner.cut_power()
        write(device, bytes(SIZE))
        owner.machine.places.pin(NAME).unlink()


@pytest.mark.parametrize("first", ["format", "ready"])
@pytest.mark.parametrize("torn", [False, True], ids=["before its mark", "within its mark"])
def test_a_second_attempt_that_is_cut_short_of_its_mark_is_made_anew(
    owner: Owner, disk: Callable[..., str], first: str, torn: bool
) -> None:
    """The first attempt has left its mark on the disk, or its header."""
    device = disk(SIZE)
    wanted = recoverable(owner, device)
    for action in (first, "clear"):
        with pytest.raises(PowerCut):
            owner.run(wanted, cut_before(action))
        owner.cut_power()
    if torn:
        # A disk writes a sector as a whole or not at all.
        write(device, mark(json.loads(owner.machine.places.pin(NAME).read_text())["uuid"])[:512])
        drop_caches()
    assert owner.run(wanted)["state"] == "mounted"


def test_a_change_of_keyslots_cut_before_any_step_loses_neither_data_nor_keys(
    owner: Owner, disk: Callable[..., str], alive: Callable[[], None]
) -> None:
    device = disk(SIZE)
    wanted = recoverable(owner, device)
    owner.run(wanted)
    (owner.mount_point / "file").write_text("kept")
    key = UnlockWith(recovery_key=owner.recovery_key)
    one = {"passphrase": "one passphrase", "unlock": (Recovery(), Passphrase())}
    change = replace(wanted, **one, unlock_with=key)
    for step in ("change-keyslots", "store", "ready"):
        alive()
        with pytest.raises(PowerCut):
            owner.run(change, cut_before(step))
        owner.cut_power()
        boot.header(owner.machine, NAME)
        assert sorted(owner.run(change)["unlock"]) == ["passphrase", "recovery"]
        assert (owner.mount_point / "file").read_text() == "kept"
        assert not owner.machine.places.saved(NAME).exists()
        assert owner.run(replace(wanted, unlock_with=key))["unlock"] == ["recovery"]


def test_a_torn_header_is_finished_at_the_next_boot_or_run(owner: Owner, disk: Callable[..., str]) -> None:
    device = disk(SIZE)
    wanted = recoverable(owner, device)
    owner.run(wanted)
    key = UnlockWith(recovery_key=owner.recovery_key)
    change = replace(wanted, passphrase="one passphrase", unlock=(Recovery(), Passphrase()), unlock_with=key)
    before = read_area(device, LAYOUT.offset).content
    with pytest.raises(PowerCut):
        owner.run(change, cut_before("ready"))
    owner.cut_power()
    after = read_area(device, LAYOUT.offset).content
    for torn in (after[:4096] + before[4096:], before[: LAYOUT.metadata_size] + after[LAYOUT.metadata_size :]):
        write(device, torn)
        boot.header(owner.machine, NAME)
        assert read_area(device, LAYOUT.offset).content == after
    write(device, b"somebody else's".ljust(4096))
    foreign = read_area(device, LAYOUT.offset).content
    for look in (lambda: boot.header(owner.machine, NAME), lambda: owner.run(change)):
        with pytest.raises(Refusal, match="is not the one that is pinned"):
            look()
    untouched = read_area(device, LAYOUT.offset).content == foreign
    assert untouched
    write(device, before[:4096] + after[4096:])
    told = owner.run(change)
    assert [step["action"] for step in told["steps"]] == ["redo", "open", "mount"]
    assert read_area(device, LAYOUT.offset).content == after


def write(device: str, content: bytes) -> None:
    """Overwrite the beginning of a device."""
    with open(device, "r+b", buffering=0) as file:
        file.write(content)


def test_an_erasure_whose_power_fails_before_any_step_is_finished(
    owner: Owner, disk: Callable[..., str], alive: Callable[[], None], album: Path
) -> None:
    device = disk(SIZE)
    wanted = recoverable(owner, device, boot=True)
    owner.run(wanted)
    erased = replace(wanted, state=State.ERASED)
    moments = watched(owner, device, erased, album)
    assert len(moments) == 7
    for moment in moments:
        alive()
        moment.restore(owner, device)
        if json.loads(moment.pin)["state"] == "erasing":
            with pytest.raises(FdeError, match="was interrupted"):
                owner.run(wanted)
        assert owner.run(erased)["state"] == "absent", moment.step
        with open(device, "rb") as file:
            left = any(file.read(LAYOUT.offset))
        assert not left
        assert not owner.machine.places.pin(NAME).exists()


@pytest.mark.parametrize("discards", [True, False], ids=["blank", "random behind the header"])
def test_an_erasure_that_is_cut_short_of_forgetting_the_pin_is_finished(
    owner: Owner, disk: Callable[..., str], discards: bool
) -> None:
    """The disk has no number of its own, and the last that named the volume on it is overwritten."""
    device = disk(160 * MIB)
    if not discards:
        Path("/sys/block", Path(device).name, "queue/discard_max_bytes").write_text("0")
    wanted = recoverable(owner, device)
    owner.run(wanted)
    owner.run(replace(wanted, state=State.CLOSED))
    with open(device, "r+b") as file:
        file.seek(150 * MIB)
        file.write(b"encrypted")
    erased = owner.wants(device, state="erased")
    pin = owner.machine.places.pin(NAME)
    kept = []
    owner.run(erased, lambda text: kept.append(pin.read_bytes()) if "forget" in text else None)
    assert not pin.exists()
    left = any(Path(device).read_bytes())
    assert left is not discards
    pin.write_bytes(kept[0])
    told = owner.run(erased)
    assert [step["action"] for step in told["steps"]] == ["forget"] and told["state"] == "absent"
    assert not pin.exists()


def test_a_full_file_system_stops_before_anything_is_touched(owner: Owner, disk: Callable[..., str]) -> None:
    device = disk(SIZE)
    etc = owner.root / "etc"
    etc.mkdir(parents=True)
    wanted = recoverable(owner, device)
    owner.runner.run(["mount", "-t", "tmpfs", "-o", "size=64k", "full", str(etc)])
    try:
        with pytest.raises(OSError, match="No space"), (etc / "filler").open("wb", buffering=0) as filler:
            while True:
                filler.write(bytes(4096))
        with pytest.raises(FdeError, match="No space left"):
            owner.run(wanted)
        touched = any(Path(device).read_bytes())
        assert not touched
        (etc / "filler").unlink()
        owner.run(wanted)
        header = read_area(device, LAYOUT.offset).content
        # The copy of the new header has no room.
        key = UnlockWith(recovery_key=owner.recovery_key)
        change = replace(wanted, passphrase="one passphrase", unlock=(Recovery(), Passphrase()), unlock_with=key)
        with pytest.raises(FdeError, match="No space left"):
            owner.run(change)
        unchanged = read_area(device, LAYOUT.offset).content == header
        assert unchanged
        assert owner.run(wanted)["steps"] == []
        owner.run(replace(wanted, state=State.ERASED))
    finally:
        owner.runner.run(["umount", str(etc)])


def test_a_dying_disk_leaves_what_the_next_run_finishes(
    owner: Owner, disk: Callable[..., str], mapper: DeviceMapper
) -> None:
    below = disk(SIZE)
    sectors = SIZE // 512
    healthy = (Linear(0, sectors, below, 0),)
    dying = (Other(0, sectors, "flakey", f"{below} 0 0 3600 1 error_writes"),)
    mapper.create("flaky", healthy)
    # There is no udev in here to make the node by which lsblk knows it.
    owner.runner.run(["dmsetup", "mknodes"])
    device = "/dev/mapper/flaky"
    wanted = recoverable(owner, device)
    mapper.swap("flaky", dying)
    with pytest.raises(FdeError) as caught:
        owner.run(wanted)
    assert pinned(owner) == "initializing", str(caught.value)
    mapper.swap("flaky", healthy)
    assert owner.run(wanted)["state"] == "mounted"
    (owner.mount_point / "file").write_text("kept")
    owner.run(replace(wanted, state=State.CLOSED))
    key = UnlockWith(recovery_key=owner.recovery_key)
    change = replace(wanted, passphrase="one passphrase", unlock=(Recovery(), Passphrase()), unlock_with=key)
    mapper.swap("flaky", dying)
    with pytest.raises(FdeError):
        owner.run(change)
    mapper.swap("flaky", healthy)
    told = owner.run(change)
    assert (told["steps"][0]["action"], sorted(told["unlock"])) == ("redo", ["passphrase", "recovery"])
    assert (owner.mount_point / "file").read_text() == "kept"


def test_keys_that_a_disk_only_claims_to_have_overwritten_are_not_gone(
    owner: Owner, disk: Callable[..., str], mapper: DeviceMapper
) -> None:
    below = disk(SIZE)
    healthy = (Linear(0, SIZE // 512, below, 0),)
    lying = (Other(0, SIZE // 512, "flakey", f"{below} 0 0 3600 1 drop_writes"),)
    mapper.create("flaky", healthy)
    owner.runner.run(["dmsetup", "mknodes"])
    wanted = recoverable(owner, "/dev/mapper/flaky")
    owner.run(wanted)
    erased = replace(wanted, state=State.ERASED)
    with pytest.raises(FdeError, match="gives back something else than was written.*Do not trust"):
        owner.run(erased, lambda text: mapper.swap("flaky", lying) if "destroy" in text else None)
    assert pinned(owner) == "erasing" and read_area(below, LAYOUT.offset).present
    # The mark may not go without the pin either.
    mapper.swap("flaky", healthy)
    with pytest.raises(FdeError, match="gives back something else than was written"):
        owner.run(erased, lambda text: mapper.swap("flaky", lying) if "forget" in text else None)
    assert pinned(owner) == "erasing"
    mapper.swap("flaky", healthy)
    assert owner.run(erased)["state"] == "absent"


def test_a_device_without_a_number_is_not_named_by_nothing(
    owner: Owner, disk: Callable[..., str], mapper: DeviceMapper
) -> None:
    """Device-mapper's file of a UUID is there, and empty."""
    below = disk(SIZE)
    mapper.create("flaky", (Linear(0, SIZE // 512, below, 0),))
    owner.runner.run(["dmsetup", "mknodes"])
    device = mapper.get("flaky").path
    write(device, b"somebody's")
    with pytest.raises(Refusal, match="Overwrite its beginning by hand"):
        owner.run(recoverable(owner, device, force=""))
    with open(device, "rb") as file:
        assert file.read(10) == b"somebody's"


FAULTS = {"error_writes": "0 3600 1 error_writes", "drop_writes": "0 3600 1 drop_writes"}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("profile", ["confidential", "authenticated"])
def test_a_disk_that_fails_at_any_step_leaves_what_the_next_run_finishes(
    owner: Owner,
    disk: Callable[..., str],
    mapper: DeviceMapper,
    alive: Callable[[], None],
    fault: str,
    profile: str,
) -> None:
    below = disk(SIZE)
    sectors = SIZE // 512
    healthy = (Linear(0, sectors, below, 0),)
    failing = (Other(0, sectors, "flakey", f"{below} 0 {FAULTS[fault]}"),)
    mapper.create("flaky", healthy)
    owner.runner.run(["dmsetup", "mknodes"])
    wanted = recoverable(owner, "/dev/mapper/flaky", profile=profile)
    steps = ("pin", "clear", "format", "change-keyslots", "open", "make-file-system", "store", "ready", "mount")
    failed = set()
    for step in steps:
        alive()

        def fail(text: str, step: str = step) -> None:
            if text.split()[1] == step:
                mapper.swap("flaky", failing)

        try:
            owner.run(wanted, fail)
        except FdeError:
            failed.add(step)
        mapper.swap("flaky", healthy)
        # What was written to a disk that dropped it is in the caches only.
        owner.runner.run(["umount", str(owner.mount_point)], ok=())
        owner.cut_power()
        state = pinned(owner)
        assert state == ("ready" if step in ("ready", "mount") else "initializing"), step
        again = owner.run(opened_by_key(owner, wanted) if state == "ready" else wanted)
        assert again["state"] == "mounted", step
        (owner.mount_point / "file").write_text("kept")
        owner.run(replace(wanted, state=State.CLOSED))
        owner.run(opened_by_key(owner, wanted))
        assert (owner.mount_point / "file").read_text() == "kept"
        owner.run(replace(wanted, state=State.ERASED))
        write("/dev/mapper/flaky", bytes(SIZE))
    # A disk that drops what is written is noticed when the header is read back from it.
    assert failed >= {"clear", "format", "store"}, failed
