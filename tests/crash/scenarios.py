# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is recorded, and what must be true of a machine whose power was cut at some moment of it.

While a scenario runs, a user of the machine writes files and keeps note of those that ``fsync`` has promised. Whatever
was promised before the cut must be there after it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from unittest import mock

from ansible_collections.cvm.fde.plugins.module_utils.agent import commit, upkeep
from ansible_collections.cvm.fde.plugins.module_utils.agent.boot import boot
from ansible_collections.cvm.fde.plugins.module_utils.agent.decision import Action
from ansible_collections.cvm.fde.plugins.module_utils.agent.hydration import Ears
from ansible_collections.cvm.fde.plugins.module_utils.agent.machine import Machine
from ansible_collections.cvm.fde.plugins.module_utils.agent.strategies import ROOTS
from ansible_collections.cvm.fde.plugins.module_utils.boot.command_line import ROOT_WORDS
from ansible_collections.cvm.fde.plugins.module_utils.luks2.change import Draft
from ansible_collections.cvm.fde.plugins.module_utils.luks2.method import Tpm2

from .machine import (
    DataMachine,
    Lab,
    LabellingRunner,
    Log,
    Owner,
    RecordedDataMachine,
    RecordedLab,
    instance,
)

MIB = 1 << 20
_random = random.Random(4)
#: The files of the image: some of its content must be copied while the scenario runs.
FILES = {
    "plaintext": b"this sentence stands in the image " * 64,
    "counter": b"in the image the counter is at zero".ljust(4096),
    **{f"payload-{number}": _random.randbytes(2 * MIB) for number in range(5)},
}
CONTENT = instance.Content(FILES, disk=560 * MIB, root=24 * MIB)


class Outcome(str, Enum):
    """What a machine did after a power cut."""

    #: It went on with the volume it had, and everything promised was there.
    CONTINUED = "continued"
    #: It made its volume anew, and nothing had been promised.
    RESTARTED = "restarted"
    LOST = "lost"


class Lost(Exception):
    """Something that was promised is not there, or the machine does not come up."""


class User:
    """Writes to the mounted root: new files, and one file of the image again and again."""

    def __init__(self, root: Path, log: Log, start: int = 0) -> None:
        self._root, self._log = root, log
        self.written = start

    def write(self) -> None:
        """Have one more write promised, and note the promise in the log."""
        number = self.written + 1
        for name, content in ((f"promised-{number}", promise(number)), ("counter", counter(number))):
            descriptor = os.open(self._root / name, os.O_WRONLY | os.O_CREAT)
            try:
                os.write(descriptor, content)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        directory = os.open(self._root, os.O_RDONLY)
        os.fsync(directory)
        os.close(directory)
        self.written = number
        self._log.mark(f"promised_{number}")

    @contextlib.contextmanager
    def busy(self, most: int) -> Iterator[None]:
        """Write at most ``most`` times beside what the caller does."""
        stop = threading.Event()

        def work() -> None:
            # A pause, so that the machine's own work gets its turn between two writes.
            while not stop.wait(0.05) and self.written < most:
                self.write()

        thread = threading.Thread(target=work)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()


def promise(number: int) -> bytes:
    """Return the content of the file of that number: one block and a half."""
    return hashlib.sha256(str(number).encode()).digest() * 192


def counter(number: int) -> bytes:
    """Return the one block that the user overwrites in place."""
    return str(number).encode().ljust(4096)


def check(root: Path, promised: int, files: Mapping[str, bytes] = FILES) -> None:
    """Raise ``Lost`` unless ``files`` and everything promised are in the mounted file system."""
    for name, content in files.items():
        if name != "counter" and (root / name).read_bytes() != content:
            raise Lost(f"the image's file {name} has another content")
    for number in range(1, promised + 1):
        path = root / f"promised-{number}"
        if not path.exists() or path.read_bytes() != promise(number):
            raise Lost(f"what was promised as {path.name} is not there")
    content = (root / "counter").read_bytes() if promised else b""
    if promised and not (content[:20].strip().isdigit() and int(content) >= promised):
        raise Lost(f"the counter was promised to be at {promised}, it says {content[:40]!r}")


@contextlib.contextmanager
def mounted(machine: Machine, where: str = "/run/crash-root") -> Iterator[Path]:
    """Mount the root of the boot under way, by the words of the signed command line."""
    words = dict(word.partition("=")[::2] for word in ROOT_WORDS[machine.configuration.strategy])
    options = words.get("rootflags", "rw").replace("/run/cvm-fde", str(machine.paths.state))
    root = Path(where)
    root.mkdir(exist_ok=True)
    mount = ["mount", "-t", words.get("rootfstype", "ext4"), "-o", options, words["root"], str(root)]
    subprocess.run(mount, check=True)
    try:
        yield root
    finally:
        subprocess.run(["umount", str(root)], check=True)


def after_the_cut(lab: Lab, promised: int, _phase: str) -> Outcome:
    """Boot the machine again and say what became of it. Raises whatever keeps it from coming up, or ``Lost``."""
    with lab.booting() as machine:
        action = boot(machine)
        if action is Action.FIRST_BOOT and promised:
            raise Lost(f"it made the volume anew although {promised} writes had been promised")
        with mounted(machine) as root:
            check(root, promised)
            (root / "after").write_bytes(b"the machine is used again")
        if (device := ROOTS[machine.configuration.strategy].device) is not None:
            subprocess.run(["e2fsck", "-fn", device], check=True, capture_output=True)
    return Outcome.RESTARTED if action is Action.FIRST_BOOT else Outcome.CONTINUED


def life(lab: RecordedLab, log: Log) -> None:
    """The first boot, then all that makes a plain encrypted volume of the root while it is used, and a second boot."""
    with lab.booting() as booted:
        machine = _booted(booted, log, "first-boot")
        with mounted(machine) as root:
            user = User(root, log)
            user.write()
            lab.start_system()
            ears = Ears(status=lambda _line: None, log=log.label)
            with user.busy(20), phases(log, {"hydrate": "hydration", "settle": "swap", "fill": "growth"}):
                upkeep.finish(machine, ears, str(root))
            log.label("phase grown")
            user.write()
    _second_boot(lab, log, user)


def other_life(lab: RecordedLab, log: Log) -> None:
    """The first boot of a strategy without hydration, and a second boot, with a user in both."""
    with lab.booting() as booted:
        machine = _booted(booted, log, "first-boot")
        with mounted(machine) as root:
            user = User(root, log)
            log.label("phase used")
            for _number in range(4):
                user.write()
    _second_boot(lab, log, user)


def _second_boot(lab: RecordedLab, log: Log, before: User) -> None:
    with lab.booting() as booted, mounted(_booted(booted, log, "second-boot")) as root:
        user = User(root, log, before.written)
        for _number in range(4):
            user.write()


def _booted(machine: Machine, log: Log, phase: str) -> Machine:
    """Boot, under that name in the log."""
    log.label(f"phase {phase}")
    labelled = replace(machine, runner=LabellingRunner(log))
    boot(labelled)
    return labelled


@contextlib.contextmanager
def phases(log: Log, named: Mapping[str, str]) -> Iterator[None]:
    """Name the steps of ``upkeep.finish`` in the log; what they do stays as it is."""
    with contextlib.ExitStack() as scope:
        for name, phase in named.items():
            scope.enter_context(mock.patch.object(upkeep, name, _named(getattr(upkeep, name), log, phase)))
        yield


def _named(step: Callable[..., object], log: Log, phase: str) -> Callable[..., object]:
    def run(*arguments: object, **options: object) -> object:
        log.label(f"phase {phase}")
        return step(*arguments, **options)

    return run


def header(lab: RecordedLab, log: Log) -> None:
    """A recovery key is added to the header of the open root, and removed again, while the root is written to."""

    def add(copy: Draft) -> None:
        unlock = f"--unlock-tpm2-device={lab.tcti}"
        machine.runner.run(["systemd-cryptenroll", unlock, "--recovery-key", copy.path])

    def remove(copy: Draft) -> None:
        machine.runner.run(["systemd-cryptenroll", "--wipe-slot=recovery", copy.path])

    with lab.booting() as booted:
        machine = _booted(booted, log, "open")
        lab.start_system()
        shutil.copyfile(machine.paths.signatures, "/run/systemd/tpm2-pcr-signature.json")
        with mounted(machine) as root:
            user = User(root, log)
            for name, edit in (("add", add), ("remove", remove)):
                user.write()
                log.label(f"phase {name}-key")
                with user.busy(user.written + 3):
                    commit.change(machine, edit)
            user.write()


FIRST, SECOND = Tpm2(pcrs=(7,)), Tpm2(pcrs=(7, 12))


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


def data_after_the_cut(lab: Lab, promised: int, phase: str) -> Outcome:
    """Ask for the data volume again, as whoever was cut short would, and say what became of it."""
    assert isinstance(lab, DataMachine)
    with lab.booting() as machine:
        owner = Owner(machine.runner, lab.root, lab.tcti)
        wanted = owner.wants(lab.data, unlock=(FIRST if phase == "create" else SECOND,))
        steps = [step["action"] for step in owner.run(wanted)["steps"]]
        if "format" in steps and promised:
            raise Lost(f"it made the volume anew although {promised} writes had been promised")
        check(owner.mount_point, promised, {})
        (owner.mount_point / "after").write_bytes(b"the volume is used again")
        owner.run(owner.wants(lab.data, unlock=wanted.unlock, state="closed"))
    return Outcome.RESTARTED if "format" in steps else Outcome.CONTINUED


def data_disk(image: Path) -> None:
    """Make the disk of a machine with a data disk in place of ``image``."""
    places = {"system": (1, 40), "data": (41, 80)}
    with image.open("wb") as file:
        file.truncate(128 * MIB)
    rows = [f"start={start}MiB, size={size}MiB" for start, size in places.values()]
    subprocess.run(["sfdisk", "--quiet", str(image)], input="label: gpt\n" + "\n".join(rows), text=True, check=True)
    start, size = places["system"]
    instance.run("mkfs.ext4", "-q", "-E", f"offset={start * MIB}", str(image), f"{size}M")


@dataclass(frozen=True)
class Scenario:
    """``run`` is recorded; ``after`` is done after each cut. ``installed`` says that a first boot comes before it."""

    run: Callable[..., None]
    after: Callable[[Lab, int, str], Outcome] = after_the_cut
    installed: bool = False
    strategy: str = "clone"
    machine: type[Lab] = Lab
    recorded: type[RecordedLab] = RecordedLab
    prepare: Callable[[Path], None] | None = None


SCENARIOS: dict[str, Scenario] = {
    "life": Scenario(life),
    "copy": Scenario(other_life, strategy="copy"),
    "overlay": Scenario(other_life, strategy="overlay"),
    "header": Scenario(header, installed=True),
    "data-volume": Scenario(
        data_volume, data_after_the_cut, machine=DataMachine, recorded=RecordedDataMachine, prepare=data_disk
    ),
}
