# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is recorded: the ways of a machine, while a user of it writes files."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from unittest import mock

from ansible_collections.cvm.fde.plugins.module_utils.agent import commit, masks, upkeep
from ansible_collections.cvm.fde.plugins.module_utils.agent import recovery as recovering
from ansible_collections.cvm.fde.plugins.module_utils.agent.boot import boot
from ansible_collections.cvm.fde.plugins.module_utils.agent.configuration import Strategy
from ansible_collections.cvm.fde.plugins.module_utils.agent.hydration import Ears
from ansible_collections.cvm.fde.plugins.module_utils.agent.machine import Machine
from ansible_collections.cvm.fde.plugins.module_utils.errors import Refusal
from ansible_collections.cvm.fde.plugins.module_utils.luks2 import keyslots
from ansible_collections.cvm.fde.plugins.module_utils.luks2.change import Draft
from ansible_collections.cvm.fde.plugins.module_utils.luks2.recovery_key import new_recovery_key

from .aftermath import (
    FIRST,
    RECOVERY_KEY,
    SECOND,
    after_the_cut,
    after_the_cut_with_a_key,
    data_after_the_cut,
    finish,
    mounted,
    recovered,
)
from .machine import (
    STATE,
    DataMachine,
    Lab,
    LabellingRunner,
    Log,
    Owner,
    RecordedDataMachine,
    RecordedLab,
    instance,
)
from .user import FILES, MIB, Outcome, User

#: What an image holds, on a disk whose volume has little to spare: all of that is written after each cut. It grows by
#: two whole pieces and a part, and each of them has several of its file system's groups, of 8 MiB here.
CONTENT = instance.Content(FILES, disk=152 * MIB, root=24 * MIB, options=("-g", "2048"))
#: The same for an overlay, whose volume is larger to begin with.
LARGER = replace(CONTENT, disk=392 * MIB)
#: Writes that were promised before the recording begins, where an instance was used before.
BEFORE = 2


def life(lab: RecordedLab, log: Log) -> None:
    """The first boot, then all that makes a plain encrypted volume of the root while it is used, and a second boot."""
    with lab.booting() as booted:
        machine = _booted(booted, log, "first-boot")
        with mounted(machine) as root:
            user = User(root, log)
            user.write()
            lab.start_system()
            ears = Ears(status=lambda _line: None, log=log.label)
            with user.busy(20), phases(log, upkeep, {"hydrate": "hydration", "settle": "swap", "fill": "growth"}):
                finish(machine, ears, root)
            log.label("phase grown")
            user.write()
    _second_boot(lab, log, user.written)


def other_life(lab: RecordedLab, log: Log) -> None:
    """The first boot of a strategy without hydration, what its service does, and a second boot, with a user in all."""
    with lab.booting() as booted:
        machine = _booted(booted, log, "first-boot")
        with mounted(machine) as root:
            user = User(root, log)
            log.label("phase used")
            user.write()
            lab.start_system()
            with user.busy(4):
                if machine.configuration.strategy is Strategy.OVERLAY:
                    masks.keep(machine, log.label)
                finish(machine, Ears(status=lambda _line: None, log=log.label), root)
            user.write()
    _second_boot(lab, log, user.written)


def _second_boot(lab: RecordedLab, log: Log, written: int) -> None:
    with lab.booting() as booted, mounted(_booted(booted, log, "second-boot")) as root:
        user = User(root, log, written)
        for _number in range(4):
            user.write()


def _booted(machine: Machine, log: Log, phase: str) -> Machine:
    """Boot, under that name in the log."""
    log.label(f"phase {phase}")
    labelled = replace(machine, runner=LabellingRunner(log))
    boot(labelled)
    return labelled


@contextlib.contextmanager
def phases(log: Log, module: ModuleType, named: Mapping[str, str]) -> Iterator[None]:
    """Name in the log the steps that ``module`` takes; what they do stays as it is."""
    with contextlib.ExitStack() as scope:
        for name, phase in named.items():
            scope.enter_context(mock.patch.object(module, name, _named(getattr(module, name), log, phase)))
        yield


def _named(step: Callable[..., object], log: Log, phase: str) -> Callable[..., object]:
    def run(*arguments: object, **options: object) -> object:
        log.label(f"phase {phase}")
        return step(*arguments, **options)

    return run


def header(lab: RecordedLab, log: Log) -> None:
    """A recovery key is added to the header of the open root, and removed again, while the root is written to."""

    def remove(copy: Draft) -> None:
        machine.runner.run(["systemd-cryptenroll", "--wipe-slot=recovery", copy.path])

    with lab.booting() as booted:
        machine = _running(lab, _booted(booted, log, "open"))
        with mounted(machine) as root:
            user = User(root, log)
            for name, edit in (("add", lambda copy: _add_recovery_key(lab, machine, copy.path)), ("remove", remove)):
                user.write()
                log.label(f"phase {name}-key")
                with user.busy(user.written + 3):
                    commit.change(machine, edit)
            user.write()


def committed(lab: RecordedLab, log: Log) -> None:
    """A foreign program changes the header on the disk below the open root; then the change is committed."""
    log.mark(f"promised_{BEFORE}")
    with lab.booting() as booted:
        machine = _running(lab, _booted(booted, log, "open"))
        with mounted(machine) as root:
            user = User(root, log, BEFORE)
            user.write()
            log.label("phase foreign-change")
            with user.busy(user.written + 6):
                _add_recovery_key(lab, machine, lab.partition)
                log.label("phase commit")
                commit.commit(machine)
                log.label("phase committed")
            user.write()
    _second_boot(lab, log, user.written)


def recovery(lab: RecordedLab, log: Log) -> None:
    """A volume whose TPM remembers nothing is refused, recovered by the holder of its recovery key, and used again."""
    log.mark(f"promised_{BEFORE}")
    with lab.booting() as booted:
        log.label("phase refused")
        machine = replace(booted, runner=LabellingRunner(log, instance.PcrRunner(lab)))
        try:
            boot(machine)
        except Refusal as refusal:
            log.label("phase recovery")
            with phases(log, recovering, {"redo": "anchored"}):
                recovered(lab, machine, refusal)
        else:
            raise AssertionError("it was to be refused")
    _second_boot(lab, log, BEFORE)


def _running(lab: Lab, machine: Machine) -> Machine:
    """Leave the initrd; systemd-cryptenroll finds the signatures of the phase that was reached."""
    lab.start_system()
    shutil.copyfile(machine.paths.signatures, instance.SIGNATURES)
    return machine


def _add_recovery_key(lab: Lab, machine: Machine, device: str) -> None:
    machine.runner.run(["systemd-cryptenroll", f"--unlock-tpm2-device={lab.tcti}", "--recovery-key", device])


def installed(lab: Lab) -> None:
    """Make the volume."""
    with lab.booting() as machine:
        boot(machine)


def recoverable(lab: Lab) -> None:
    """Make the volume of an image that allows recovery, enrol a recovery key, and use it."""
    line = lab.directory / "cmdline"
    line.write_text(f"{line.read_text().strip()} fde.recovery=console\n")
    key = new_recovery_key()
    (lab.directory / RECOVERY_KEY).write_bytes(key)
    with lab.booting() as machine:
        shutil.copyfile(machine.paths.signatures, instance.SIGNATURES)
        boot(machine)
        unlock, means = keyslots.ByTpm(lab.tcti), keyslots.Means(recovery=key)
        commit.change(machine, lambda copy: keyslots.add(machine.runner, copy.path, keyslots.Recovery(), unlock, means))
        with mounted(machine) as root:
            user = User(root, None)
            for _number in range(BEFORE):
                user.write()


def forgotten(lab: Lab) -> None:
    """Make such a volume, and clear the TPM."""
    recoverable(lab)
    (lab.directory / STATE).unlink()


def data_volume(lab: RecordedDataMachine, log: Log) -> None:
    """A data volume is made, written to, bound to other PCRs, and closed."""
    with lab.booting():
        owner = Owner(LabellingRunner(log), lab.root, lab.tcti)
        log.label("phase create")
        owner.run(owner.wants(lab.data, unlock=(FIRST,)))
        user = User(owner.mount_point, log)
        user.write()
        log.label("phase rebind")
        with user.busy(3):
            owner.run(owner.wants(lab.data, unlock=(SECOND,)))
        user.write()
        log.label("phase close")
        owner.run(owner.wants(lab.data, unlock=(SECOND,), state="closed"))


def data_disk(image: Path) -> None:
    """Make the disk of a machine with a data disk in place of ``image``."""
    places = {"system": (1, 40), "data": (41, 48)}
    with image.open("wb") as file:
        file.truncate(96 * MIB)
    rows = [f"start={start}MiB, size={size}MiB" for start, size in places.values()]
    subprocess.run(["sfdisk", "--quiet", str(image)], input="label: gpt\n" + "\n".join(rows), text=True, check=True)
    start, size = places["system"]
    instance.run("mkfs.ext4", "-q", "-E", f"offset={start * MIB}", str(image), f"{size}M")


@dataclass(frozen=True)
class Scenario:
    """``run`` is recorded; ``after`` is done after each cut. ``before`` is what the instance has behind it."""

    run: Callable[..., None]
    after: Callable[[Lab, int, str], Outcome] = after_the_cut
    before: Callable[[Lab], None] | None = None
    strategy: str = "clone"
    content: instance.Content = CONTENT
    machine: type[Lab] = Lab
    recorded: type[RecordedLab] = RecordedLab
    prepare: Callable[[Path], None] | None = None


SCENARIOS: dict[str, Scenario] = {
    "life": Scenario(life),
    "copy": Scenario(other_life, strategy="copy"),
    "overlay": Scenario(other_life, strategy="overlay", content=LARGER),
    "header": Scenario(header, before=installed),
    "commit": Scenario(committed, after_the_cut_with_a_key({"foreign-change", "commit"}), before=recoverable),
    "recovery": Scenario(recovery, after_the_cut_with_a_key({"", "refused", "recovery"}), before=forgotten),
    "data-volume": Scenario(
        data_volume, data_after_the_cut, machine=DataMachine, recorded=RecordedDataMachine, prepare=data_disk
    ),
}
