# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The whole list of volumes in one go: everything is decided, and refused, before anything is done."""

from __future__ import annotations

import fcntl
import os
import signal
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Iterator, Mapping, Optional, Sequence

from ..errors import FdeError
from . import pin as pins
from .apply import Outcome, Stopped, apply
from .found import Found
from .guarded import GuardedRunner
from .machine import Machine
from .pin import Pin
from .plan import plan
from .probe import probe
from .steps import Action, Plan, Step, described
from .wanted import State, Wanted, check_all

#: Seconds that a run waits for another one.
_PATIENCE = 3600


@dataclass(frozen=True)
class Planned:
    """One volume with what was found and what has to be done."""

    wanted: Wanted
    found: Found
    plan: Plan

    @property
    def will_be_there(self) -> bool:
        """Whether there is a volume after the run; one that is to be closed may never have been made."""
        if self.wanted.state is State.CLOSED:
            return self.found.pin is not None
        return self.wanted.state is not State.ERASED


class Interrupted(FdeError):
    """A volume could not be finished; ``reports`` tells what was done before, to that volume as well.

    ``code`` is that of a refusal, None where it was none.
    """

    def __init__(self, error: Stopped, reports: Sequence[Mapping[str, Any]]) -> None:
        super().__init__(error.subject, error.cause, error.remedy)
        self.code = error.code
        self.reports = reports


@contextmanager
def exclusively(machine: Machine) -> Iterator[Machine]:
    """Let no two runs work on the volumes of a machine at once, and yield the machine for this one.

    A second run waits for the first, and for every program that it has started. Raises ``FdeError`` when that takes
    longer than a person would wait.
    """
    machine.places.run.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = machine.places.run / ".lock"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        _lock(descriptor, path)
        yield replace(machine, runner=GuardedRunner(machine.runner, descriptor))
    finally:
        os.close(descriptor)


def _lock(descriptor: int, path: Path) -> None:
    def give_up(_signal: int, _frame: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(_PATIENCE)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    except TimeoutError as error:
        raise FdeError(
            str(path),
            "another run, or a program that it started, has worked on the volumes of this machine for an hour",
            f"Wait for it, or see with 'fuser -v {path}' what it is",
        ) from error
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def plan_all(machine: Machine, volumes: Sequence[Wanted], *, foretelling: bool = False) -> tuple[Planned, ...]:
    """Return the plans of all volumes. Raises ``FdeError`` when one of them is refused.

    When only ``foretelling``, what is not installed is no reason to refuse: it would be installed before.
    """
    check_all(tuple(volumes))
    planned = []
    for wanted in volumes:
        found = probe(machine, wanted)
        warning = None
        if foretelling and found.missing:
            warning = f"this system lacks {', '.join(found.missing)}"
            found = replace(found, missing=())
        planned.append(Planned(wanted, found, plan(found, wanted).with_warnings(warning)))
    _check_nodes(planned)
    return tuple(planned)


def _check_nodes(planned: Sequence[Planned]) -> None:
    """Raise ``FdeError`` when two paths lead to one device: the second volume would be made over the first."""
    seen: dict[str, str] = {}
    for one in planned:
        if one.found.device is None:
            continue
        other = seen.setdefault(one.found.device.node, one.wanted.device)
        if other != one.wanted.device:
            raise FdeError(
                one.wanted.device, f"it is the same device as {other}", "Name each device for one volume only"
            )


def apply_all(machine: Machine, planned: Sequence[Planned]) -> list[Mapping[str, Any]]:
    """Take the steps of all plans in the order of the list and return a report of each volume.

    Where those before it were wiped, hours lie between the plan of a volume and its first step: each is looked at again
    before anything is done to it. Raises ``Interrupted``.
    """
    reports: list[Mapping[str, Any]] = []
    for one in planned:
        try:
            found = _found_again(machine, one) if one.plan.steps else one.found
            outcome = apply(machine, one.wanted, found, one.plan)
        except Stopped as error:
            raise Interrupted(error, [*reports, report(one, error.outcome, _left(machine, one))]) from error
        after = probe(machine, one.wanted, try_keys=False) if one.plan.steps else one.found
        reports.append(report(one, outcome, after))
    return reports


def _found_again(machine: Machine, one: Planned) -> Found:
    """Return a volume as it is when its turn comes. Raises ``Stopped`` unless what was decided still holds."""
    try:
        found = probe(machine, one.wanted)
        check_unchanged(one, Planned(one.wanted, found, plan(found, one.wanted)))
        return found
    except OSError as error:
        cause = f"it cannot be looked at again: {error.strerror or error}"
        raise Stopped(_not_begun(one, cause), Outcome((), one.found.pin)) from error
    except FdeError as error:
        raise Stopped(error, Outcome((), one.found.pin)) from error


def check_unchanged(decided: Planned, now: Planned) -> None:
    """Raise ``FdeError`` unless a volume is on the device that it was on, and needs the steps that were decided."""
    if _device_of(decided) != _device_of(now):
        raise _not_begun(decided, "another device is in its place since this run began")
    before, after = _steps_of(decided), _steps_of(now)
    if before != after:
        told = [", ".join(step.action.value for step in steps) or "nothing" for steps in (before, after)]
        raise _not_begun(
            decided, f"it changed since this run began: to be done was '{told[0]}', and is now '{told[1]}'"
        )


def _not_begun(one: Planned, cause: str) -> FdeError:
    remedy = f"Nothing was done to volume '{one.wanted.name}'. Check that it is the right device, and run again"
    return FdeError(one.wanted.device, cause, remedy)


def _device_of(one: Planned) -> tuple[object, ...]:
    device = one.found.device
    return () if device is None else (device.node, device.size, device.identity)


def _steps_of(one: Planned) -> list[Step]:
    """Volumes share a unit's file, so an earlier one may have written what this one was to write as well."""
    return [step for step in one.plan.steps if step.action is not Action.CONFIGURE]


def _left(machine: Machine, one: Planned) -> Found:
    """Return what a failed run left, or what it began with where nothing can be read any more."""
    try:
        return probe(machine, one.wanted, try_keys=False)
    except (FdeError, OSError):
        return replace(one.found, pin=pins.load(machine.places.pin(one.wanted.name)))


def foretell(planned: Sequence[Planned]) -> list[Mapping[str, Any]]:
    """Return the reports of a run that changes nothing, with the steps that would be taken."""
    return [report(one, Outcome(one.plan.steps, one.found.pin), one.found) for one in planned]


def state_of(found: Found) -> str:
    """Return the state of a volume in one word."""
    if found.pin is None:
        return "absent"
    if found.pin.state is not pins.PinState.READY:
        return str(found.pin.state.value)
    if found.mounts:
        return "mounted"
    return "closed" if found.mapping is None else "open"


def report(one: Planned, outcome: Outcome, after: Found) -> Mapping[str, Any]:
    """Return what is told about a volume, in types that JSON has; never a secret."""
    pin, header = after.pin, after.header
    return {
        "name": one.wanted.name,
        "device": one.wanted.device,
        "node": None if after.device is None else after.device.node,
        "size": None if after.device is None else after.device.size,
        "uuid": None if pin is None else pin.uuid,
        "profile": None if pin is None else pin.profile,
        "journal": None if pin is None else pin.journal,
        "state_before": state_of(one.found),
        "state": state_of(after),
        "mounted_at": [mounted.path for mounted in after.mounts],
        "file_system": None if after.file_system is None else vars(after.file_system),
        "unlock": [] if header is None else [described(slot.method) for slot in header.enrolled],
        "escrow": _escrow(pin),
        "steps": [shown(step) for step in outcome.taken],
        "warnings": list(one.plan.warnings),
        "handover": None if outcome.handover is None else outcome.handover.report(),
    }


def _escrow(pin: Optional[Pin]) -> Optional[Mapping[str, Any]]:
    """Return what is told about a recovery key: the digest of its envelope, and whether that arrived."""
    kept = None if pin is None else pin.pending or pin.escrow
    return None if pin is None or kept is None else {"digest": kept.digest, "confirmed": pin.pending is None}


def difference(planned: Sequence[Planned], reports: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Return Ansible's diff: each volume as it was, and as it is or would be, with the steps between."""
    result = []
    for one, told in zip(planned, reports):
        if one.plan.steps:
            header = f"volume {one.wanted.name}"
            before = f"state: {told['state_before']}\n"
            steps = "".join(f"- {step['action']}: {step['subject']}\n" for step in told["steps"])
            after = f"state: {one.wanted.state.value}\n{steps}"
            result.append({"before_header": header, "after_header": header, "before": before, "after": after})
    return result


def shown(step: Step) -> dict[str, str]:
    """Return a step as plain values."""
    return {"action": step.action.value, "subject": step.subject}
