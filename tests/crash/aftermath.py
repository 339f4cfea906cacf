# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What must be true of a machine after its power was cut: it comes up, keeps what it promised, and ends its way.

A machine that comes up once is not enough. What the cut interrupted goes on afterwards: the rest is copied, the root is
mapped linearly and grows; then the machine boots once more, and its file system is checked.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest import mock

from ansible_collections.cvm.fde.plugins.module_utils.agent import anchoring, masks, recovery, upkeep
from ansible_collections.cvm.fde.plugins.module_utils.agent.boot import boot
from ansible_collections.cvm.fde.plugins.module_utils.agent.configuration import Strategy
from ansible_collections.cvm.fde.plugins.module_utils.agent.decision import Action
from ansible_collections.cvm.fde.plugins.module_utils.agent.hydration import Ears
from ansible_collections.cvm.fde.plugins.module_utils.agent.machine import VOLUME, Machine
from ansible_collections.cvm.fde.plugins.module_utils.agent.strategies import ROOTS
from ansible_collections.cvm.fde.plugins.module_utils.agent.strategy_overlay import LOWER, UPPER, UPPER_DEVICE
from ansible_collections.cvm.fde.plugins.module_utils.boot.command_line import ROOT_WORDS
from ansible_collections.cvm.fde.plugins.module_utils.disk import growth
from ansible_collections.cvm.fde.plugins.module_utils.dm import written
from ansible_collections.cvm.fde.plugins.module_utils.dm.table import SECTOR, Linear
from ansible_collections.cvm.fde.plugins.module_utils.errors import Refusal
from ansible_collections.cvm.fde.plugins.module_utils.luks2.method import Tpm2

from .machine import DataMachine, Lab, Owner, instance
from .user import Lost, Outcome, check

#: Where an instance whose recovery key somebody knows keeps it, for that somebody.
RECOVERY_KEY = "recovery-key"
#: Sectors by which a root grows at once, 24 MiB.
PIECE = 24 << 11
_DEAF = Ears(status=lambda _line: None, log=lambda _line: None)


@contextlib.contextmanager
def mounted(machine: Machine, where: str = "/run/crash-root") -> Iterator[Path]:
    """Mount the root of the boot under way, by the words of the signed command line."""
    words = dict(word.partition("=")[::2] for word in ROOT_WORDS[machine.configuration.strategy])
    options = words.get("rootflags", "rw").replace("/run/cvm-fde", str(machine.paths.state))
    root = Path(where)
    root.mkdir(exist_ok=True)
    device = ROOTS[machine.configuration.strategy].device
    if device is not None:
        # As systemd-fsck-root.service does. Linux itself, when it mounts, replays a resize that was cut off and goes on
        # with the number of groups that it read before: what is written then is lost.
        checked = subprocess.run(["e2fsck", "-p", device], capture_output=True)
        if checked.returncode not in (0, 1):
            raise Lost(f"e2fsck cannot repair the root by itself: {checked.stdout.decode()}")
    mount = ["mount", "-t", words.get("rootfstype", "ext4"), "-o", options, words["root"], str(root)]
    subprocess.run(mount, check=True)
    try:
        yield root
    finally:
        subprocess.run(["umount", str(root)], check=True)


def after_the_cut(lab: Lab, promised: int, _phase: str) -> Outcome:
    """Let the machine boot, end what was interrupted, boot once more, and say what became of it.

    Raises whatever keeps it from that, or ``Lost``.
    """
    with lab.booting() as machine:
        action = boot(machine)
        if action is Action.FIRST_BOOT and promised:
            raise Lost(f"it made the volume anew although {promised} writes had been promised")
        with mounted(machine) as root:
            check(root, promised)
            (root / "after").write_bytes(b"the machine is used again")
            lab.start_system()
            _to_its_end(machine, root)
    with lab.booting() as machine:
        if boot(machine) is not Action.OPEN:
            raise Lost("the boot after the one after the cut does not simply open the volume")
        with mounted(machine) as root:
            _at_its_end(machine, root)
            check(root, promised)
            if (root / "after").read_bytes() != b"the machine is used again":
                raise Lost("what was written after the cut is not there")
        _sound(machine)
    return Outcome.RESTARTED if action is Action.FIRST_BOOT else Outcome.CONTINUED


def _to_its_end(machine: Machine, root: Path) -> None:
    """Do what the running system's service does for its root."""
    if machine.configuration.strategy is Strategy.OVERLAY:
        masks.keep(machine, lambda _line: None)
    # It looks more often than on a real machine, where nobody waits for it.
    with mock.patch.object(upkeep, "hydrate", partial(upkeep.hydrate, interval=0.05)):
        finish(machine, _DEAF, root)


def finish(machine: Machine, ears: Ears, root: Path) -> None:
    """Bring the root to its end; its small volume is filled by as many pieces as a large one is."""
    with mock.patch.object(upkeep, "fill", partial(upkeep.fill, most=PIECE)):
        upkeep.finish(machine, ears, mount_point(machine, root))


def mount_point(machine: Machine, root: Path) -> str:
    """Return where the volume's file system is mounted when the root is mounted at ``root``."""
    where = ROOTS[machine.configuration.strategy].mount_point(machine)
    assert where is not None
    return str(root) if where == "/" else where


def _at_its_end(machine: Machine, root: Path) -> None:
    """Raise ``Lost`` unless the root needs nothing of the image any more and fills its volume."""
    name = ROOTS[machine.configuration.strategy].mapping
    assert name is not None
    table = machine.mapper.table(name)
    if len(table) != 1 or not isinstance(table[0], Linear):
        raise Lost(f"the root is not linear: {table}")
    anchor = anchoring.look(machine).anchor
    if anchor is None or not anchor.complete:
        raise Lost("the anchor does not say that the root is complete")
    size, volume, where = (
        machine.mapper.get(name).size,
        machine.mapper.get(VOLUME),
        mount_point(machine, root),
    )
    if size < written.room(volume, table[0].offset):
        raise Lost(f"the root device of {size} sectors does not fill its volume of {volume.size}")
    if grown := growth.grow(where, growth.kind_of(where), size * SECTOR):
        raise Lost(f"the root did not fill its volume: {grown} bytes were missing")


def _sound(machine: Machine) -> None:
    """Check the file system, and what it says of its data. Raises ``CalledProcessError``."""
    device = ROOTS[machine.configuration.strategy].device
    if device is not None:
        subprocess.run(["e2fsck", "-fn", device], check=True, capture_output=True)
        return
    for layer in (UPPER, LOWER):
        subprocess.run(["umount", machine.paths.state / layer], check=True)
    upper = machine.mapper.get(UPPER_DEVICE).path
    subprocess.run(["btrfs", "check", "--readonly", "--check-data-csum", upper], check=True, capture_output=True)


class Keyholder:
    """Somebody at the console who has the recovery key and trusts what is shown."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def tell(self, text: str) -> None:
        """Read a line."""

    def ask(self, question: str) -> str:
        """Say yes."""
        return "yes"

    def ask_secret(self, question: str) -> bytearray:
        """Type the recovery key."""
        return bytearray(self._key)


def recovered(lab: Lab, machine: Machine, refusal: Refusal) -> None:
    """Have a refused boot recovered by the holder of the key. Raises ``Lost`` where that is not offered or fails."""
    if not recovery.offered(machine, refusal):
        raise refusal
    shutil.copyfile(machine.paths.signatures, instance.SIGNATURES)
    holder = Keyholder((lab.directory / RECOVERY_KEY).read_bytes())
    if not recovery.recover(machine, refusal, holder):
        raise Lost("the recovery key does not recover the volume")


def after_the_cut_with_a_key(refused: Collection[str]) -> Callable[[Lab, int, str], Outcome]:
    """Return what to do after a cut when a boot may be refused in the phases ``refused``, and is recovered then.

    In any other phase the refusal is raised.
    """

    def after(lab: Lab, promised: int, phase: str) -> Outcome:
        was_recovered = phase in refused and _recovered_if_refused(lab)
        outcome = after_the_cut(lab, promised, phase)
        if not was_recovered:
            return outcome
        if outcome is not Outcome.CONTINUED:
            raise Lost(f"after its recovery the machine {outcome.value}")
        return Outcome.RECOVERED

    return after


def _recovered_if_refused(lab: Lab) -> bool:
    """Boot, and tell whether the boot was refused and then recovered."""
    with lab.booting() as machine:
        try:
            boot(machine)
        except Refusal as refusal:
            recovered(lab, replace(machine, runner=instance.PcrRunner(lab)), refusal)
            return True
    return False


FIRST, SECOND = Tpm2(pcrs=(7,)), Tpm2(pcrs=(7, 12))


def data_after_the_cut(lab: Lab, promised: int, phase: str) -> Outcome:
    """Ask for the data volume again, as whoever was cut short would, then once more, and say what became of it."""
    assert isinstance(lab, DataMachine)
    unlock = (FIRST if phase == "create" else SECOND,)
    with lab.booting() as machine:
        owner = Owner(machine.runner, lab.root, lab.tcti)
        steps = [step["action"] for step in owner.run(owner.wants(lab.data, unlock=unlock))["steps"]]
        if "format" in steps and promised:
            raise Lost(f"it made the volume anew although {promised} writes had been promised")
        check(owner.mount_point, promised, {})
        (owner.mount_point / "after").write_bytes(b"the volume is used again")
        owner.run(owner.wants(lab.data, unlock=unlock, state="closed"))
        again = [step["action"] for step in owner.run(owner.wants(lab.data, unlock=unlock))["steps"]]
        if "format" in again:
            raise Lost("it made the volume anew when it was asked for once more")
        check(owner.mount_point, promised, {})
        subprocess.run(["umount", owner.mount_point], check=True)
        subprocess.run(["e2fsck", "-fn", owner.mapped], check=True, capture_output=True)
        owner.run(owner.wants(lab.data, unlock=unlock, state="closed"))
    return Outcome.RESTARTED if "format" in steps else Outcome.CONTINUED
