# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The service of the running system that brings its root to the end of its way, by strategy.

``clone``: copy the rest, map the volume linearly under the mounted root, say so in the anchor. All that have a volume:
grow to its end. ``overlay``: keep and compare the record of what the volume masks of the image.
"""

from __future__ import annotations

import fcntl
import sys
from contextlib import contextmanager
from typing import Iterator

from ..disk.growth import CannotGrow
from ..dm import clone
from ..dm.device import DeviceMapper
from ..errors import FdeError
from ..runner import Runner
from . import anchoring, masks
from .configuration import Strategy
from .filling import fill
from .hydration import Ears, hydrate, notify, settle
from .machine import Machine, this_machine
from .strategies import ROOTS

#: Below the agent's state directory: held by the process that brings the root to its end.
_LOCK = "hydrate.lock"
#: systemd's log levels before a line: what is worth keeping, and what somebody should look at.
_NOTICE, _WARNING = "<5>", "<4>"


def hydrate_root(runner: Runner) -> None:
    """Do what a root with a volume needs. Raises ``FdeError``; the service is started again then."""
    machine = this_machine(runner)
    if mount_point := ROOTS[machine.configuration.strategy].mount_point(machine):
        finish(machine, Ears(notify, log), mount_point)


def pause(runner: Runner) -> None:
    """Stop copying in the background; a root that is no clone, or no longer one, is fine.

    The kernel goes on by itself, at the last pace that it was told, when the process that watches users is killed.
    """
    mapper = DeviceMapper(runner)
    if mapper.find(clone.NAMES.root) is not None and clone.is_clone(mapper):
        clone.pause(mapper)


def keep_masks(runner: Runner) -> None:
    """Report what the volume of an overlay hides of the image. Raises ``FdeError``."""
    machine = this_machine(runner)
    if machine.configuration.strategy is not Strategy.OVERLAY:
        raise FdeError("the root", "it is no overlay", "Nothing is to be done")
    masks.keep(machine, log)


def finish(machine: Machine, ears: Ears, mount_point: str = "/") -> None:
    """Bring a root with a volume, whose file system is mounted at ``mount_point``, to its end. Raises ``FdeError``."""
    mapper, name = machine.mapper, ROOTS[machine.configuration.strategy].mapping
    if name is None:
        raise FdeError("the root", "it has no volume", "Nothing is to be done")
    with _alone(machine):
        if machine.configuration.strategy is Strategy.CLONE:
            hydrate(mapper, ears)
            settle(mapper, ears)
        for mark in (anchoring.mark_complete, anchoring.mark_image):
            try:
                mark(machine)
            except FdeError as error:
                # The next boot comes here again, and finds the record complete by itself.
                log(f"{_WARNING}the anchor does not know yet how far the root and its image came: {error}")
        try:
            fill(mapper, ears, name=name, mount_point=mount_point)
        except CannotGrow as error:
            # The root is complete as it is.
            log(f"{_WARNING}{error}")
            return
    ears.status("the root fills its encrypted volume")


@contextmanager
def _alone(machine: Machine) -> Iterator[None]:
    """Let no other process do the same: what one of them has made part of the root another would overwrite."""
    with open(machine.paths.state / _LOCK, "wb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise FdeError("the root", "another process brings it to its end already", "Wait for that one") from error
        yield


def log(text: str) -> None:
    """Write a line to the journal, where standard output goes."""
    print(text if text.startswith("<") else f"{_NOTICE}{text}", file=sys.stdout, flush=True)
