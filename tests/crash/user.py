# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A user of the machine whose power is cut: writes files, and keeps note of those that ``fsync`` has promised.

Whatever was promised before the cut must be there after it, and so must the files of the image.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from enum import Enum
from pathlib import Path

from .machine import Log

MIB = 1 << 20
_random = random.Random(4)
#: The files of the image: some of its content must be copied while the scenario runs.
FILES = {
    "plaintext": b"this sentence stands in the image " * 64,
    "counter": b"in the image the counter is at zero".ljust(4096),
    **{f"payload-{number}": _random.randbytes(2 * MIB) for number in range(5)},
}


class Outcome(str, Enum):
    """What a machine did after a power cut."""

    #: It went on with the volume it had, and everything promised was there.
    CONTINUED = "continued"
    #: It made its volume anew, and nothing had been promised.
    RESTARTED = "restarted"
    #: It was refused where that is promised, the holder of the recovery key recovered it, and then it went on.
    RECOVERED = "recovered"
    LOST = "lost"


class Lost(Exception):
    """Something that was promised is not there, or the machine does not come up."""


class User:
    """Writes to the mounted root: new files, and one file of the image again and again."""

    def __init__(self, root: Path, log: Log | None, start: int = 0) -> None:
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
        if self._log is not None:
            self._log.mark(f"promised_{number}")

    @contextlib.contextmanager
    def busy(self, most: int) -> Iterator[None]:
        """Write at most ``most`` times beside what the caller does."""
        stop = threading.Event()

        def work() -> None:
            # A pause, so that the machine's own work gets its turn between two writes.
            while not stop.wait(0.05) and self.written < most:
                self.write()

        with ThreadPoolExecutor(1) as pool:
            working = pool.submit(work)
            try:
                yield
            finally:
                stop.set()
            # A write that failed beside the machine's own work fails the recording.
            working.result()


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
