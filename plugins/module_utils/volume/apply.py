# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Taking the steps of a plan, in order, and stopping at the first that fails.

Whatever ends a run between two steps, or within one, leaves a state that the next plan knows. A volume is made in RAM:
its header reaches the disk when everything in it is proven, as the last thing before the pin says that it is ready.
"""

from __future__ import annotations

import contextlib
import uuid
from dataclasses import dataclass, replace
from typing import Callable, Mapping, Optional, Sequence, Union

from ..dm.table import SECTOR
from ..errors import FdeError, Refusal, certain
from ..luks2 import keyslots
from ..luks2.area import HeaderArea
from ..luks2.change import Draft, draft
from ..luks2.digest import volume_key_id
from ..luks2.enrolment import enrolled
from ..luks2.enrolment import plan as plan_keyslots
from ..luks2.method import Recovery
from ..luks2.profile import LAYOUT
from ..luks2.recovery_key import new_recovery_key
from ..luks2.secret import random_secret, wipe
from ..luks2.volume import attach_with_key, attach_with_secret, detach, format_volume
from . import erasure, file_system, opening, persistence, storing
from . import pin as pins
from .adoption import adopted_key_id
from .credentials import credential, secret
from .found import Found
from .machine import Machine
from .pin import Pin, PinState
from .probe import boot_entry, means
from .random_key import fresh_volume_key
from .recovery import fingerprints, handover, pending_key
from .sealing import Handover, seal_recovery_key
from .steps import Action, Plan, Step
from .using import nothing_opens
from .wanted import Wanted


@dataclass(frozen=True)
class Outcome:
    """What a volume is after the run. ``handover`` is an encrypted recovery key that the control node must store."""

    taken: tuple[Step, ...]
    pin: Optional[Pin]
    handover: Optional[Handover] = None


class Stopped(FdeError):
    """A step failed; ``outcome`` is what was reached before. ``code`` is that of a refusal, None where it was none."""

    def __init__(self, error: FdeError, outcome: Outcome) -> None:
        super().__init__(error.subject, error.cause, error.remedy)
        self.code = error.code if isinstance(error, Refusal) else None
        self.outcome = outcome


def apply(machine: Machine, wanted: Wanted, found: Found, planned: Plan) -> Outcome:
    """Take the steps of a plan. Raises ``Stopped``; what was done until then stays."""
    with contextlib.ExitStack() as scope:
        work = _Work(machine, wanted, found, scope)
        taken: list[Step] = []
        try:
            for step in planned.steps:
                machine.announce(f"{wanted.name}: {step.action.value} {step.subject}")
                work.take(step)
                taken.append(step)
        except Exception as error:
            work.give_up()
            if not isinstance(error, (FdeError, OSError)):
                raise
            raise Stopped(_told(error, step, wanted), work.outcome(taken)) from error
        return work.outcome(taken)


def _told(error: Union[FdeError, OSError], step: Step, wanted: Wanted) -> FdeError:
    if isinstance(error, FdeError):
        return error
    cause = f"'{step.action.value}' failed: {error.strerror or error}"
    return FdeError(wanted.device, cause, "Mend the cause and run again")


class _Work:
    """The steps, one method each, and what they hand to each other."""

    def __init__(self, machine: Machine, wanted: Wanted, found: Found, scope: contextlib.ExitStack) -> None:
        self.pin = found.pin
        self._sealed: Optional[Handover] = None
        self._retiring: tuple[int, ...] = ()
        self._machine = machine
        self._wanted = wanted
        self._found = found
        self._scope = scope
        self._area: Optional[HeaderArea] = None if found.header is None else found.header.area
        self._draft: Optional[Draft] = None
        self._volume_key: Optional[bytearray] = None
        self._temporary_key: Optional[bytearray] = None
        self._steps: Mapping[Action, Callable[[Step], None]] = {
            Action.UNMOUNT: self._unmount,
            Action.CLOSE: self._close,
            Action.PIN: self._pin,
            Action.CLEAR: self._clear,
            Action.FORMAT: self._format,
            Action.CHANGE_KEYSLOTS: self._change_keyslots,
            Action.OPEN: self._open,
            Action.MAKE_FILE_SYSTEM: self._make_file_system,
            Action.STORE: self._store,
            Action.READY: self._ready,
            Action.HAND_OVER: self._hand_over,
            Action.ADOPT: self._adopt,
            Action.REDO: self._redo,
            Action.SETTLE: self._settle,
            Action.CONFIGURE: self._configure,
            Action.MOUNT: self._mount,
            Action.REMOUNT: self._remount,
            Action.DESTROY: self._destroy,
            Action.DISCARD: self._discard,
            Action.FORGET: self._forget,
        }

    def take(self, step: Step) -> None:
        """Take one step."""
        self._steps[step.action](step)

    def outcome(self, taken: Sequence[Step]) -> Outcome:
        """Return what was reached."""
        waiting = handover(self._machine, self.pin) if self._wanted.has(Recovery) else None
        return Outcome(tuple(taken), self.pin, waiting)

    def give_up(self) -> None:
        """Close what was being made: nobody may write to a volume that the next run makes anew."""
        if self._volume_key is not None and self.pin is not None and self.pin.state is PinState.INITIALIZING:
            with contextlib.suppress(FdeError):
                detach(self._machine.runner, self._wanted.name)

    @property
    def _node(self) -> str:
        return certain(self._found.device).node

    @property
    def _size(self) -> int:
        return certain(self._found.device).size

    def _save(self, pin: Pin) -> None:
        pins.save(self._machine.places.pin(pin.name), pin)
        self.pin = pin

    def _pinned(self) -> Pin:
        return certain(self.pin)

    # Making

    def _pin(self, step: Step) -> None:
        wanted, device = self._wanted, certain(self._found.device)
        if step.subject == "erasing" and self.pin is not None:
            self._save(self.pin.having(state=PinState.ERASING))
            return
        self._save(
            Pin(
                name=wanted.name,
                uuid=step.uuid or str(uuid.uuid4()),
                device=device.path,
                state=PinState(step.subject),
                profile=wanted.profile.name,
                journal=wanted.journal,
                file_system=wanted.file_system.value,
                size=device.size,
                identity=device.identity,
            )
        )

    def _clear(self, _step: Step) -> None:
        erasure.clear(self._node, self._size, self._pinned().uuid)

    def _format(self, _step: Step) -> None:
        wanted, pin = self._wanted, self._pinned()
        made = self._new_draft(HeaderArea(self._node, bytes(LAYOUT.offset)))
        self._volume_key = self._scope.enter_context(fresh_volume_key(wanted.profile.volume_key_size, wanted))
        self._temporary_key = random_secret(64)
        self._scope.callback(wipe, self._temporary_key)
        format_volume(
            self._machine.runner,
            self._node,
            header=made.path,
            volume_key=self._volume_key,
            temporary_key=self._temporary_key,
            uuid=pin.uuid,
            profile=wanted.profile,
            wipe=wanted.wipe,
        )
        self.pin = replace(pin, volume_key_id=volume_key_id(self._volume_key, wanted.name, pin.uuid))

    def _new_draft(self, area: HeaderArea) -> Draft:
        self._machine.places.run.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._draft = self._scope.enter_context(draft(area, str(self._machine.places.run)))
        return self._draft

    def _make_file_system(self, _step: Step) -> None:
        wanted, mapper = self._wanted, self._machine.mapper
        device = mapper.get(wanted.name)
        if wanted.profile.integrity is not None and not wanted.wipe:
            file_system.prepare(device.path, device.size * SECTOR, wanted.file_system)
        file_system.make(self._machine.runner, device.path, wanted.file_system, wanted.label, wanted.format_options)

    # Keyslots

    def _change_keyslots(self, step: Step) -> None:
        if self._draft is None:
            changed, planned = self._new_draft(certain(self._area)), certain(step.keyslots)
        else:
            # The temporary keyslot goes when every other one is proven.
            changed = self._draft
            planned = plan_keyslots(enrolled(changed.area().header()), self._wanted.unlock)
        self._retiring = tuple(one.keyslot for one in step.retiring)
        if not planned.adds:
            for slot in planned.removes:
                keyslots.remove(self._machine.runner, changed.path, slot)
            return
        with contextlib.ExitStack() as secrets:
            recovery = None
            if any(isinstance(method, keyslots.Recovery) for method in planned.adds):
                recovery = new_recovery_key()
                secrets.callback(wipe, recovery)
            given = secrets.enter_context(means(self._wanted, recovery))
            unlock = secrets.enter_context(credential(self._found, self._wanted, self._temporary_key))
            keyslots.change(self._machine.runner, changed.path, planned, unlock, given)
            if recovery is not None:
                self._sealed = seal_recovery_key(self._machine.runner, self._wanted, self._pinned().uuid, recovery)

    def _store(self, _step: Step) -> None:
        pin, new = self._pinned(), certain(self._draft).area()
        before = self._area if pin.state is PinState.READY else None
        pending = pending_key(pin, before, new, self._wanted, self._sealed, self._retiring)
        if self._sealed is not None:
            # Kept until the control node has it: whatever ends this run, the next one hands it over.
            pins.write(self._machine.places.envelope(pin.name), self._sealed.content, 0o600)
        self.pin = storing.write(self._machine, pin, self._node, new, pending=pending)
        self._area = new

    def _ready(self, _step: Step) -> None:
        self.pin = storing.finish(self._machine, self._pinned(), certain(self._area))

    def _hand_over(self, step: Step) -> None:
        pin, slots = self._pinned(), fingerprints(certain(self._area))
        retiring = tuple(slots[one.keyslot] for one in step.retiring)
        self._save(pin.having(pending=replace(certain(pin.pending), retiring=retiring)))

    # What was interrupted

    def _redo(self, _step: Step) -> None:
        self._area = storing.redo(self._machine, self._pinned(), self._node)
        self._ready(_step)

    def _settle(self, _step: Step) -> None:
        self._ready(_step)

    def _adopt(self, _step: Step) -> None:
        wanted, header, device = self._wanted, certain(self._found.header), certain(self._found.device)
        old = self.pin
        with secret(self._found, self._wanted) as key:
            key_id = adopted_key_id(self._machine, wanted.name, header.area, key)
        pin = Pin(
            name=wanted.name,
            uuid=certain(header.uuid),
            device=device.path,
            state=PinState.READY,
            profile=wanted.profile.name,
            journal=wanted.journal,
            file_system=wanted.file_system.value,
            size=device.size,
            identity=device.identity,
            volume_key_id=key_id,
            escrow=None if old is None else old.escrow,
            pending=None if old is None else old.pending,
        )
        self.pin = storing.finish(self._machine, pin, header.area)

    # Using

    def _open(self, _step: Step) -> None:
        wanted, pin, machine = self._wanted, self._pinned(), self._machine
        if self._volume_key is not None:
            attach_with_key(
                machine.runner, wanted.name, self._node,
                header=certain(self._draft).path, volume_key=self._volume_key, journal=wanted.journal,
            )  # fmt: skip
        elif not self._found.credentials.authority:
            raise nothing_opens(wanted)
        else:
            header = str(opening.put_header(machine.places, wanted.name, certain(self._area)))
            if self._found.credentials.by_tpm:
                opening.attach(machine.runner, wanted, self._node, header, pin.volume_key_id)
            else:
                with secret(self._found, self._wanted) as key:
                    attach_with_secret(machine.runner, wanted.name, self._node, header=header, secret=key)
        try:
            opening.check(machine.mapper, pin, self._node)
        except FdeError:
            detach(machine.runner, wanted.name)
            raise

    def _mount(self, _step: Step) -> None:
        wanted = self._wanted
        path = self._machine.mapper.get(wanted.name).path
        found = file_system.identify(self._machine.runner, path)
        if found is None or found.type != wanted.file_system.value:
            raise FdeError(
                f"/dev/mapper/{wanted.name}",
                f"it holds {'no file system' if found is None else found.type}, not {wanted.file_system.value}",
                "Look at it by hand; nothing is made over it",
            )
        file_system.mount(
            self._machine.runner, f"/dev/mapper/{wanted.name}", wanted.file_system.value, certain(wanted.mount)
        )

    def _remount(self, _step: Step) -> None:
        file_system.remount(self._machine.runner, f"/dev/mapper/{self._wanted.name}", certain(self._wanted.mount))

    def _unmount(self, step: Step) -> None:
        file_system.unmount(self._machine.runner, step.subject)

    def _close(self, step: Step) -> None:
        if step.subject != self._wanted.name:
            self._machine.mapper.remove(step.subject)
            return
        detach(self._machine.runner, self._wanted.name)
        self._machine.places.header(self._wanted.name).unlink(missing_ok=True)

    def _configure(self, _step: Step) -> None:
        entry = boot_entry(self._wanted, self.pin, self._found.device)
        persistence.wanted_files(self._machine.places, self._wanted.name, entry).write(self._machine.places)
        if (self._machine.places.root / "run/systemd/system").is_dir():
            persistence.reload(self._machine.runner)

    # Erasing

    def _destroy(self, _step: Step) -> None:
        erasure.destroy(self._node, self._size, self._pinned().uuid)

    def _discard(self, _step: Step) -> None:
        erasure.discard(self._machine.runner, self._node, self._size, self._pinned().uuid)

    def _forget(self, _step: Step) -> None:
        erasure.unmark(self._node, self._size)
        places, name = self._machine.places, self._wanted.name
        storing.forget_copies(places, name)
        for path in (places.envelope(name), places.header(name), places.pin(name)):
            pins.forget(path)
        self.pin = None
