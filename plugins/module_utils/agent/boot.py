# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One boot: look, decide, then make or open the root.

What only a first boot needs, or one that finds a header half changed, is imported there.
"""

from __future__ import annotations

import hashlib
import os
from typing import Callable, Optional

from ..codes import Code, refuse
from ..dm.table import Other
from ..errors import Refusal
from ..luks2.area import HeaderArea
from ..tpm.anchor import Anchor
from ..tpm.esys import TpmError, opened
from ..tpm.policy import PolicyError
from ..tpm.quote import PcrsChanged, read_pcrs
from . import anchoring, capability, disks, evidence, partition, probe
from .configuration import parse
from .console import say
from .decision import Action, Decision, decide
from .machine import IMAGE, Machine, command_line
from .opening import open_volume
from .strategies import ROOTS

#: Where systemd-stub measures what does not come from the image, and its values when there was nothing: systemd >= 261
#: extends a separator into it before the agent runs.
CONFIGURATION_PCRS = (12, 13)
UNCONFIGURED = (bytes(32), hashlib.sha256(bytes(32) + hashlib.sha256(b"os-separator").digest()).digest())


def boot(machine: Machine) -> Action:
    """Make or open the root device and return which it was. Raises ``Refusal`` or ``FdeError``; nothing is mounted."""
    root = ROOTS[machine.configuration.strategy]
    # In the order of ``Code``, as everything that follows.
    check_secure_boot(machine)
    check_configuration(machine)
    capability.require(machine.runner, machine.configuration.strategy)
    partition.settle(machine.runner)
    check_image(machine)
    if not root.has_volume:
        say(f"strategy {machine.configuration.strategy.value}: there is no volume, and nothing written is kept")
        return Action.EPHEMERAL
    anchor = anchoring.look(machine)
    check_svn(machine, anchor.anchor)
    look = probe.look(machine.configuration, anchor, disks.survey(), lambda device: _saved(machine, device))
    decision = decide(look.probed)
    if isinstance(decision, Refusal):
        raise decision
    say(f"anchor {anchor.standing.value}, decision {decision.action.value}")
    if decision.action is Action.FIRST_BOOT:
        from .first_boot import first_boot

        first_boot(machine, look.choice.volume, decision)
    else:
        later_boot(machine, look, decision, anchor.anchor)
    _announce(machine)
    return decision.action


def later_boot(machine: Machine, look: probe.Look, decision: Decision, anchor: Optional[Anchor]) -> None:
    """Open the anchored volume and put the root together again."""
    if decision.volume is None or anchor is None:
        raise ValueError("there is nothing to open")
    root = ROOTS[machine.configuration.strategy]
    area = look.areas[decision.volume.device]
    if decision.action is Action.REPAIR and look.saved is not None:
        from . import commit

        area = look.saved
        commit.repair(machine, area)
        say("a change of the volume's header was cut short: it is written again")
    open_volume(machine, area, anchor.volume_key_id)
    if any(anchor.header_next):
        from . import commit

        _note("that the change of the header is over", lambda: commit.settle(machine, area))
    check_origin(machine, area)
    state = root.later(machine, anchor.complete)
    say(f"volume opened: {state.said}")
    if state.complete:
        _note("that the root is complete", lambda: anchoring.mark_complete(machine, wait=0))


def _note(what: str, write: Callable[[], None]) -> None:
    """Write into the anchor what a later boot can write as well.

    A TPM that gives the key and takes no write must not keep a sound volume closed.
    """
    try:
        write()
    except (TpmError, PolicyError, PcrsChanged) as error:
        say(f"the anchor does not know yet {what}: {error}")


def _saved(machine: Machine, device: str) -> Optional[HeaderArea]:
    from . import commit

    return commit.saved(machine, device)


def check_secure_boot(machine: Machine) -> None:
    """Raise ``Refusal`` unless Secure Boot is on.

    Without it PCR 7 is the same for every system, and a first boot would bind the volume to nothing.
    """
    try:
        with open(machine.paths.secure_boot, "rb") as file:
            secure_boot = file.read(16)
    except OSError as error:
        raise refuse(Code.SECURE_BOOT_OFF, machine.paths.secure_boot, error.strerror or "unreadable") from error
    # Four bytes of attributes, then the value (UEFI 2.10, section 3.3).
    if secure_boot[4:] != b"\x01":
        raise refuse(Code.SECURE_BOOT_OFF, "the firmware")


def check_configuration(machine: Machine) -> None:
    """Raise ``Refusal`` unless nothing but the signed image configured this boot, ``FdeError`` where that contradicts
    itself.

    What the stub took from the host is in PCR 12 (words for the command line, credentials, add-ons) and 13 (system
    extensions).
    """
    with opened(machine.tcti) as esys:
        values = read_pcrs(esys, {"sha256": CONFIGURATION_PCRS})["sha256"]
    for pcr, value in values.items():
        if value not in UNCONFIGURED:
            raise refuse(Code.CONFIGURATION_ADDED, f"PCR {pcr}", value.hex())
    parse(command_line(machine.paths))


def check_svn(machine: Machine, anchor: Optional[Anchor]) -> None:
    """Raise ``Refusal`` when this machine has run with an image of a higher security version.

    Before anything that a recovery is offered for: as long as the TPM holds the anchor, nobody shall type a key into an
    image that was replaced for cause.
    """
    mine = machine.configuration.svn
    if anchor is not None and mine < anchor.svn:
        raise refuse(Code.IMAGE_OUTDATED, "the image", f"its version is {mine}, the machine ran with {anchor.svn}")


def check_origin(machine: Machine, area: HeaderArea) -> None:
    """Raise ``Refusal`` unless the volume was made from the image that boots.

    What a clone has not copied yet would be read from the other image, and where the root begins in a volume follows
    from the length of its image. The header is pinned: its evidence is what this machine wrote into it.
    """
    creation = evidence.found(area.header()).get(evidence.CREATION)
    if creation is None:
        raise refuse(Code.IMAGE_CHANGED, area.device, "its header has no evidence of its creation")
    any_image = ROOTS[machine.configuration.strategy].any_image
    if names := evidence.differing(creation, machine.configuration, any_image=any_image):
        raise refuse(Code.IMAGE_CHANGED, area.device, f"the evidence of its creation has another {', '.join(names)}")


def check_image(machine: Machine) -> None:
    """Raise ``Refusal`` unless the device ``root`` is verified by the root hash of the signed command line.

    Also for a volume that needs nothing of the image any more: the length of this device says where in the volume a
    clone's root begins.
    """
    if machine.mapper.find(IMAGE) is None:
        raise refuse(Code.VERITY_MISSING, f"/dev/mapper/{IMAGE}", "it was not set up")
    root_hash = machine.configuration.root_hash.hex()
    targets = machine.mapper.table(IMAGE)
    if len(targets) != 1:
        raise refuse(Code.VERITY_MISSING, f"/dev/mapper/{IMAGE}", f"it has {len(targets)} parts")
    for target in targets:
        words = target.arguments.split()
        if not isinstance(target, Other) or target.kind != "verity" or len(words) < 10 or words[8] != root_hash:
            raise refuse(Code.VERITY_MISSING, f"/dev/mapper/{IMAGE}", "it is not verified by this root hash")


def _announce(machine: Machine) -> None:
    """Have udev look at the finished root device again and wait for it: systemd mounts it when udev says so.

    While the device was put together udev may have seen it suspended, and then it told nobody that it is usable.
    """
    device = ROOTS[machine.configuration.strategy].device
    if device is not None and partition.udev_runs():
        # The link below /dev/mapper is udev's own work, and may not be there yet; the kernel's node is.
        node = machine.mapper.get(os.path.basename(device)).path
        machine.runner.run(["udevadm", "trigger", "--action=change", node])
        machine.runner.run(["udevadm", "wait", "--timeout=600", "--settle", device])
