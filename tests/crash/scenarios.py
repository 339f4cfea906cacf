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
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from enum import Enum
from pathlib import Path

from ansible_collections.cvm.fde.plugins.module_utils.agent.boot import boot
from ansible_collections.cvm.fde.plugins.module_utils.agent.decision import Action
from ansible_collections.cvm.fde.plugins.module_utils.agent.hydration import Ears, hydrate
from ansible_collections.cvm.fde.plugins.module_utils.agent.machine import Machine

from tests.crash.machine import Lab, LabellingRunner, Log, RecordedLab, instance

MIB = 1 << 20
ENVIRONMENT = {"DM_DISABLE_UDEV": "1", "SYSTEMD_FORCE_MEASURE": "1"}
_random = random.Random(4)
#: The files of the image: some of its content must be copied while the scenario runs.
FILES = {
    "plaintext": b"this sentence stands in the image " * 64,
    "counter": b"in the image the counter is at zero".ljust(4096),
    **{f"payload-{number}": _random.randbytes(2 * MIB) for number in range(5)},
}
CONTENT = instance.Content(FILES, disk=320 * MIB, root=24 * MIB)


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


def check(root: Path, promised: int) -> None:
    """Raise ``Lost`` unless the image's files and everything promised are in the mounted root."""
    for name, content in FILES.items():
        if name != "counter" and (root / name).read_bytes() != content:
            raise Lost(f"the image's file {name} has another content")
    for number in range(1, promised + 1):
        path = root / f"promised-{number}"
        if not path.exists() or path.read_bytes() != promise(number):
            raise Lost(f"what was promised as {path.name} is not there")
    content = (root / "counter").read_bytes()
    if promised and not (content[:20].strip().isdigit() and int(content) >= promised):
        raise Lost(f"the counter was promised to be at {promised}, it says {content[:40]!r}")


@contextlib.contextmanager
def mounted(where: str = "/run/crash-root") -> Iterator[Path]:
    """Mount the root device of the boot under way."""
    root = Path(where)
    root.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "ext4", "/dev/mapper/fde-root", str(root)], check=True)
    try:
        yield root
    finally:
        subprocess.run(["umount", str(root)], check=True)


def after_the_cut(lab: Lab, promised: int) -> Outcome:
    """Boot the machine again and say what became of it. Raises whatever keeps it from coming up, or ``Lost``."""
    with lab.booting() as machine:
        action = boot(machine)
        if action is Action.FIRST_BOOT and promised:
            raise Lost(f"it made the volume anew although {promised} writes had been promised")
        with mounted() as root:
            check(root, promised)
            (root / "after").write_bytes(b"the machine is used again")
        subprocess.run(["e2fsck", "-fn", "/dev/mapper/fde-root"], check=True, capture_output=True)
    return Outcome.RESTARTED if action is Action.FIRST_BOOT else Outcome.CONTINUED


def _labelled(machine: Machine, log: Log) -> Machine:
    return replace(machine, runner=LabellingRunner(log, ENVIRONMENT))


def life(lab: RecordedLab, log: Log) -> None:
    """First boot, hydration under a busy user, and a second boot, which finds the copy complete."""
    log.label("phase first-boot")
    with lab.booting() as machine:
        labelled = _labelled(machine, log)
        boot(labelled)
        with mounted() as root:
            user = User(root, log)
            user.write()
            log.label("phase hydration")
            with user.busy(20):
                nobody = Ears(lambda _: None, lambda _: None)
                hydrate(labelled.mapper, labelled.runner, nobody, mount_point=str(root), interval=0.2)
            user.write()
    log.label("phase second-boot")
    with lab.booting() as machine:
        boot(_labelled(machine, log))
        with mounted() as root:
            user = User(root, log, user.written)
            for _number in range(4):
                user.write()


SCENARIOS: dict[str, Callable[[RecordedLab, Log], None]] = {"life": life}
