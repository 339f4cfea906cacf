# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Changing the header of the root volume so that the next boot accepts it.

The anchor pins the header. What this collection changes is pinned before it is written (``change``). What an operator
changed with systemd-cryptenroll or cryptsetup is on the disk already, and would be refused by the next boot: ``commit``
judges it, proves that it is a header of the volume that is open, and pins it.

While a change is written the EFI system partition holds a copy of the new header. The host may do to the copy what it
wants: it counts only when its digest is the one that the anchor pins as the next.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, Callable, Iterator, Mapping, Optional

from ..errors import FdeError
from ..luks2.area import HeaderArea, read_area
from ..luks2.change import BY_COPY, Draft, draft, is_mixture, on_disk, redo, store
from ..luks2.keyslots import Means, Tpm2, enrolled, require_proof
from ..luks2.policy import judge
from ..luks2.profile import LAYOUT
from ..luks2.volume import underlying
from ..tpm.anchor import Anchor, State
from . import anchoring, evidence
from .console import say
from .differences import differences, same_volume
from .esp import EfiPartition, efi_partition
from .machine import VOLUME, Machine
from .opening import expected

#: The copy of the new header on the EFI system partition.
SAVED = "header.next"
_LOCK = "lock"
#: What helps where a header that is to be pinned is perhaps not on the disk.
_NOT_PINNED = "Check the disk, then commit again; until then do not start the machine anew, the boot would refuse it"


class Action(str, Enum):
    """What is left to do about the header on the disk."""

    #: The anchor pins it.
    NOTHING = "nothing"
    #: The anchor pins another one beside it, which was never written.
    ABANDON = "abandon"
    #: It is the next one of the anchor, and was written as a whole.
    FINISH = "finish"
    #: It is the next one of the anchor, and was written in part; the copy on the EFI system partition is whole.
    REPAIR = "repair"
    #: It was changed without the anchor.
    COMMIT = "commit"


@dataclass(frozen=True)
class Root:
    """The header of the open root volume: on the disk, as the volume was opened with, and as the anchor has it."""

    disk: HeaderArea
    opened: HeaderArea
    anchor: Anchor


@dataclass(frozen=True)
class Outcome:
    """What is to be done, or was; ``digest`` is that of the header to be pinned, ``differences`` are sentences."""

    action: Action
    digest: str
    differences: tuple[str, ...]


def probe(machine: Machine) -> Root:
    """Look at the open root volume. Raises ``FdeError`` where there is none, or no anchor for it."""
    found = anchoring.look(machine)
    if found.anchor is None or found.anchor.state is not State.READY:
        raise FdeError("the anchor", f"it is {found.standing.value}", "Start the machine again: the boot tells why")
    device = underlying(machine.mapper, VOLUME)
    opened = replace(read_area(str(machine.paths.header)), device=device)
    # What the page cache holds after a write that failed never reached the disk.
    return Root(HeaderArea(device, on_disk(device, LAYOUT.offset)), opened, found.anchor)


def plan(root: Root) -> Action:
    """Return what is to be done about the header on the disk."""
    if root.disk.digest == root.anchor.header_current:
        return Action.ABANDON if any(root.anchor.header_next) else Action.NOTHING
    return Action.FINISH if root.disk.digest == root.anchor.header_next else Action.COMMIT


def commit(machine: Machine, *, seen: Optional[str] = None, dry_run: bool = False) -> Outcome:
    """Pin the header that is on the disk, and return what was done.

    With ``seen``, the digest (hexadecimal) of a header that was looked at before, no other one is pinned. Raises
    ``FdeError`` when the header is not one that this volume may have. The disk is only changed where a change of ours
    was cut short while it was written: its rest is written first (``Action.REPAIR``).
    """
    with locked(machine):
        root = probe(machine)
        action = plan(root)
        if action is Action.COMMIT and (whole := _torn(machine, root)) is not None:
            action, root = Action.REPAIR, replace(root, disk=whole)
        changed: tuple[str, ...] = ()
        if action in (Action.COMMIT, Action.FINISH, Action.REPAIR):
            check(machine, root.opened, root.disk)
            prove(machine, root.disk)
            changed = tuple(differences(root.opened, root.disk))
        if seen is not None and seen != root.disk.digest.hex():
            raise FdeError(root.disk.device, "its header is not the one that was looked at", "Look at it again")
        if not dry_run:
            _apply(machine, root, action)
        return Outcome(action, root.disk.digest.hex(), changed)


def _torn(machine: Machine, root: Root) -> Optional[HeaderArea]:
    """Return the saved copy of the pinned next header if the disk holds a mixture of the current one and that.

    Raises ``FdeError`` where that cannot be told: half of a header must not be pinned.
    """
    copy = _copy(machine, root.disk.device) if any(root.anchor.header_next) else None
    if copy is None or copy.digest != root.anchor.header_next:
        return None
    if root.opened.digest != root.anchor.header_current:
        raise FdeError(
            root.disk.device,
            "a change of its header was cut short, and the one before it is not at hand",
            "Start the machine again: the boot finishes the change",
        )
    return copy if is_mixture(root.disk.content, root.opened.content, copy.content) else None


def _apply(machine: Machine, root: Root, action: Action) -> None:
    if action is Action.REPAIR:
        repair(machine, root.disk)
    if action is Action.ABANDON:
        anchoring.update(machine, Anchor.unchanged)
    elif action is not Action.NOTHING:
        # Writes nothing: it makes sure that these bytes are on the disk itself, and not only in the page cache.
        remedy = _NOT_PINNED if action is Action.COMMIT else BY_COPY
        store(root.disk.device, root.disk, root.disk, remedy)
        anchoring.update(machine, lambda anchor: anchor.changing(root.disk.digest).changed())
        _keep(machine, root.disk)
    if action in (Action.ABANDON, Action.FINISH, Action.REPAIR):
        _forget(machine)


def change(machine: Machine, edit: Callable[[Draft], None], *, dry_run: bool = False) -> tuple[str, ...]:
    """Change the header by ``edit``, which works on a copy in RAM, and pin it; return the differences in words.

    Raises ``FdeError`` when the header on the disk is not committed, or the new one is not allowed; then nothing was
    written. A power cut at any later moment leaves the old header or the new one.
    """
    with locked(machine):
        root = probe(machine)
        if plan(root) is not Action.NOTHING:
            raise FdeError(
                root.disk.device, "its header was changed and not committed", "Look at the change, then commit it"
            )
        with draft(root.disk, str(machine.paths.state)) as copy:
            edit(copy)
            new = copy.area()
        check(machine, root.disk, new)
        if not dry_run and new.digest != root.disk.digest:
            replace_header(machine, root.disk, new)
        return tuple(differences(root.disk, new))


def replace_header(machine: Machine, old: HeaderArea, new: HeaderArea) -> None:
    """Write ``new`` over the committed header ``old`` of ``new.device``, so that a power cut leaves one of them."""
    _efi(machine).write(SAVED, new.content)
    anchoring.update(machine, lambda anchor: anchor.changing(new.digest))
    store(new.device, old, new)
    anchoring.update(machine, Anchor.changed)
    _keep(machine, new)
    _forget(machine)


def check(machine: Machine, old: HeaderArea, new: HeaderArea) -> None:
    """Raise ``FdeError`` unless ``new`` is a header that the boot would accept for the volume of ``old``."""
    header = new.header()
    judge(header, expected(machine)).require(new.device)
    if _creation(old) != _creation(new):
        raise FdeError(
            new.device,
            "the evidence of the volume's creation was removed or changed",
            "Put its token (type cvm-fde) back: the boot refuses a volume without it",
        )
    if not same_volume(old.header(), header):
        raise FdeError(
            new.device,
            "the header is that of another volume, or of another volume key",
            "Put the header back that belongs to this volume; this one is never committed",
        )


def _creation(area: HeaderArea) -> Optional[Mapping[str, Any]]:
    creation = evidence.found(area.header()).get(evidence.CREATION)
    return None if creation is None else creation.claims


def prove(machine: Machine, area: HeaderArea) -> None:
    """Raise ``FdeError`` unless the TPM opens every keyslot of the header that it should."""
    with draft(area, str(machine.paths.state)) as copy:
        for slot in enrolled(area.header()):
            if isinstance(slot.method, Tpm2):
                require_proof(machine.runner, copy.path, slot, Means(tpm2_device=machine.tcti))


def saved(machine: Machine, device: str) -> Optional[HeaderArea]:
    """Return the copy of the new header of an interrupted change, None where there is none of the right size."""
    try:
        return _copy(machine, device)
    except FdeError:
        # Whatever ails that file system, it does not decide: without the copy the header on the disk is judged.
        return None


def _copy(machine: Machine, device: str) -> Optional[HeaderArea]:
    content = _efi(machine).read(SAVED, LAYOUT.offset + 1)
    return HeaderArea(device, content) if content is not None and len(content) == LAYOUT.offset else None


def repair(machine: Machine, copy: HeaderArea) -> None:
    """Write the copy, whose digest the anchor pins, over what an interrupted change left."""
    judge(copy.header(), expected(machine)).require(copy.device)
    redo(copy.device, copy)


def settle(machine: Machine, opened: HeaderArea) -> None:
    """Pin nothing but the header that the volume was opened with, after a boot that found a change under way."""

    def settled(anchor: Anchor) -> Anchor:
        return anchor.changed() if opened.digest == anchor.header_next else anchor.unchanged()

    anchoring.update(machine, settled)
    _forget(machine)


def _forget(machine: Machine) -> None:
    """Remove the copy of a change that is over, if that can be done: it is only used for the digest that is pinned."""
    try:
        _efi(machine).remove(SAVED)
    except (FdeError, OSError) as error:
        say(f"a copy of the volume's header stays on the EFI system partition: {getattr(error, 'cause', error)}")


def _keep(machine: Machine, area: HeaderArea) -> None:
    """Make ``area`` the copy in RAM that later changes are compared with."""
    new = machine.paths.header.with_suffix(".new")
    new.unlink(missing_ok=True)
    area.store(str(new))
    os.replace(new, machine.paths.header)


def _efi(machine: Machine) -> EfiPartition:
    return efi_partition(machine.runner, machine.configuration)


@contextmanager
def locked(machine: Machine) -> Iterator[None]:
    """Be the only one that changes the header; waits for another."""
    machine.paths.state.mkdir(mode=0o700, parents=True, exist_ok=True)
    with open(machine.paths.state / _LOCK, "wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
