# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One boot: look, decide, then make or open the root."""

from __future__ import annotations

from typing import Optional

from ..dm import clone
from ..dm.table import Other
from ..errors import Refusal
from ..tpm import anchor as anchors
from ..tpm.anchor import Anchor
from ..tpm.esys import opened
from . import disks, partition, probe
from .console import say
from .decision import Action, Code, Decision, decide, refuse
from .first_boot import first_boot
from .machine import IMAGE, VOLUME, Machine
from .opening import open_volume

ROOT = f"/dev/mapper/{clone.NAMES.root}"


def boot(machine: Machine) -> Action:
    """Make or open the root device and return which it was. Raises ``Refusal`` or ``FdeError``; nothing is mounted."""
    partition.settle(machine.runner)
    check_image(machine)
    with opened(machine.tcti) as esys:
        anchor = anchors.probe(esys, machine.key)
    look = probe.look(machine.configuration, anchor, disks.disks())
    decision = decide(look.probed)
    if isinstance(decision, Refusal):
        raise decision
    say(f"anchor {anchor.standing.value}, decision {decision.action.value}")
    if decision.action is Action.FIRST_BOOT:
        first_boot(machine, look.disks[0], decision)
    else:
        later_boot(machine, look, decision, anchor.anchor)
    _announce(machine)
    return decision.action


def later_boot(machine: Machine, look: probe.Look, decision: Decision, anchor: Optional[Anchor]) -> None:
    """Open the anchored volume and put the root together again."""
    if decision.volume is None or anchor is None:
        raise ValueError("there is nothing to open")
    open_volume(machine, look.areas[decision.volume.device], anchor.volume_key_id)
    state = clone.assemble(machine.mapper, VOLUME, IMAGE, fresh=False)
    say(f"volume opened, {state.hydrated} of {state.total} regions copied")


def check_image(machine: Machine) -> None:
    """Raise ``Refusal`` unless the device ``root`` is verified by the root hash of the signed command line."""
    if machine.mapper.find(IMAGE) is None:
        raise refuse(Code.VERITY_MISSING, f"/dev/mapper/{IMAGE}", "it was not set up")
    root_hash = machine.configuration.root_hash.hex()
    for target in machine.mapper.table(IMAGE):
        words = target.arguments.split()
        if not isinstance(target, Other) or target.kind != "verity" or len(words) < 10 or words[8] != root_hash:
            raise refuse(Code.VERITY_MISSING, f"/dev/mapper/{IMAGE}", "it is not verified by this root hash")


def _announce(machine: Machine) -> None:
    """Have udev look at the finished root device again and wait for it: systemd mounts it when udev says so.

    While the device was put together udev may have seen it suspended, and then it told nobody that it is usable.
    """
    if partition.udev_runs():
        machine.runner.run(
            ["udevadm", "trigger", "--action=change", "--settle", machine.mapper.get(clone.NAMES.root).path]
        )
        machine.runner.run(["udevadm", "wait", "--timeout=600", "--settle", ROOT])
