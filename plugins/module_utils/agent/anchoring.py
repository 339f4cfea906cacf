# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Writing the anchor: made on the first boot, changed in every signed phase of the boot."""

from __future__ import annotations

import fcntl
import time
from contextlib import contextmanager
from dataclasses import replace
from typing import Callable, Iterator

from ..codes import Code, refuse
from ..tpm import anchor as anchors
from ..tpm.anchor import Anchor, AnchorError, Found, Obstacle, Standing, State
from ..tpm.esys import opened
from ..tpm.policy import PolicyError, use
from ..tpm.quote import PcrsChanged
from .machine import Machine

_CODES = {
    Obstacle.FULL: Code.ANCHOR_NO_ROOM,
    Obstacle.OWNED: Code.TPM_OWNED,
    Obstacle.PROTECTED: Code.ANCHOR_FOREIGN,
}
#: Seconds between two looks whether the system has reached a phase in which the anchor may be written.
_INTERVAL = 2.0
_LOCK = "anchor.lock"


def look(machine: Machine) -> Found:
    """Return what the TPM holds in the place of the anchor. Raises ``TpmError``."""
    with opened(machine.tcti) as esys:
        return anchors.probe(esys, machine.key)


def start(machine: Machine, anchor: Anchor) -> None:
    """Write ``anchor`` into our index, which is made where there is none of ours yet.

    One that is ours is written over: a power cut between deleting and making it would leave a volume without. Raises
    ``Refusal`` where the TPM does not let us make it.
    """
    with opened(machine.tcti) as esys:
        if anchors.probe(esys, machine.key).standing in (Standing.ABSENT, Standing.FOREIGN):
            try:
                anchors.define(esys, machine.key)
            except AnchorError as error:
                if error.obstacle is None:
                    raise
                raise refuse(_CODES[error.obstacle], machine.tcti, error.cause) from error
        anchors.write(esys, machine.key, machine.policies, anchor)


def require_writable(machine: Machine) -> None:
    """Raise ``PolicyError`` unless the anchor can be written, and a keyslot be opened, in this phase of the boot."""
    with opened(machine.tcti) as esys:
        use(esys, machine.key, machine.policies, lambda _session: None)


def update(machine: Machine, change: Callable[[Anchor], Anchor], wait: float = 0) -> Anchor:
    """Write what ``change`` makes of the anchor and return it; nothing is written when that is the same.

    The system passes through phases in which the image's key lets nobody write, or measures without a pause: for those
    ``wait`` seconds are given. Raises ``AnchorError`` where there is no anchor of ours, ``PolicyError`` outside the
    signed phases, ``PcrsChanged`` where PCRs never keep still.
    """
    end = time.monotonic() + wait
    while True:
        try:
            return _update(machine, change)
        except (PolicyError, PcrsChanged):
            if time.monotonic() > end:
                raise
            time.sleep(_INTERVAL)


def _update(machine: Machine, change: Callable[[Anchor], Anchor]) -> Anchor:
    with _locked(machine), opened(machine.tcti) as esys:
        found = anchors.probe(esys, machine.key)
        if found.anchor is None:
            raise AnchorError(
                "the anchor", f"it is {found.standing.value}", "Start the machine again: the boot tells why"
            )
        wanted = change(found.anchor)
        if wanted != found.anchor:
            anchors.write(esys, machine.key, machine.policies, wanted)
        return wanted


@contextmanager
def _locked(machine: Machine) -> Iterator[None]:
    """Let no other process of this system write between the look at the anchor and its change."""
    machine.paths.state.mkdir(mode=0o700, parents=True, exist_ok=True)
    with open(machine.paths.state / _LOCK, "wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def ready(machine: Machine, header: bytes, volume_key_id: bytes, complete: bool = False) -> Anchor:
    """Pin a new volume; from here on nothing but this header and this key is ever opened.

    One that is ``complete`` from its first boot on needs nothing of the image but what its strategy always needs.
    """
    made = Anchor(State.INITIALIZING).ready(header, volume_key_id)
    made = replace(made, complete=complete, svn=machine.configuration.svn)
    return update(machine, lambda _: made)


def mark_image(machine: Machine, wait: float = 600) -> None:
    """Remember that this image came up: one with a lower security version is refused from now on."""
    update(machine, lambda anchor: anchor.at_least(machine.configuration.svn), wait)


def mark_complete(machine: Machine, wait: float = 600) -> None:
    """Remember that nothing of the volume lies on the image's root any more: no record of that is read again."""
    update(machine, Anchor.completed, wait)
