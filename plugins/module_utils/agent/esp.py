# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The EFI system partition as a place for what must be readable while the volume is closed.

The host can read and write it. Nothing on it is believed: a saved header counts by its digest, which the TPM pins, and
the account of a refusal is only words for people.
"""

from __future__ import annotations

import fcntl
import os
import re
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Iterator, Optional, Sequence

from ..disk.gpt import ESP
from ..errors import FdeError
from ..runner import CommandError, Runner
from .configuration import Configuration
from .disks import Disk, disks, partition_device
from .mounting import PLACE, detach, mounted

DIRECTORY = "cvm-fde"
#: A power cut can tear the chain of an older file of ours. When that is freed the kernel would make the file system
#: read-only, and the machine that needs its recovery most could not be recovered; no file of others is touched.
_OPTIONS = "nosuid,nodev,noexec,umask=0077,errors=continue"
_MOUNTS = Path("/proc/self/mountinfo")


@dataclass(frozen=True)
class EfiPartition:
    """The EFI system partition of the disk that carries the sealed image, by its device node."""

    runner: Runner
    device: str

    def read(self, name: str, limit: int) -> Optional[bytes]:
        """Return a file of ours, None where there is none. Raises ``FdeError`` when the file system cannot be read."""
        with self._mounted(write=False) as root:
            path = root / DIRECTORY / name
            if not path.is_file():
                return None
            with open(path, "rb") as file:
                return file.read(limit)

    def write(self, name: str, content: bytes) -> None:
        """Write a file of ours, which is on the disk afterwards. Raises ``FdeError``.

        An older one goes first: there may be room for one of them only, and none is worth anything that is not whole.
        """
        with self._mounted(write=True) as root:
            directory = root / DIRECTORY
            directory.mkdir(exist_ok=True)
            (directory / name).unlink(missing_ok=True)
            with open(directory / name, "xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            _sync(directory)

    def remove(self, name: str) -> None:
        """Remove a file of ours; one that is not there is fine. Raises ``FdeError``."""
        with self._mounted(write=True) as root:
            (root / DIRECTORY / name).unlink(missing_ok=True)
            if (root / DIRECTORY).is_dir():
                _sync(root / DIRECTORY)

    @contextmanager
    def _mounted(self, *, write: bool) -> Iterator[Path]:
        """Yield where the file system is mounted: where it is already, if that serves, else a place of our own.

        One process at a time: a place of our own goes away, and a second mount cannot be made with other options.
        """
        try:
            with _locked(self.device):
                for place in mounts_of(self.device, beginning=PLACE):
                    # Of a process that was killed.
                    detach(self.runner, str(place))
                there = next(mounts_of(self.device, write=write), None)
                if there is not None:
                    yield there
                    return
                with mounted(self.runner, self.device, "vfat", f"{'rw' if write else 'ro'},{_OPTIONS}") as place:
                    yield place
        except OSError as error:
            raise _unusable(self.device, error.strerror or repr(error)) from error
        except CommandError as error:
            raise _unusable(self.device, error.cause) from error


def efi_partition(runner: Runner, configuration: Configuration, found: Optional[Sequence[Disk]] = None) -> EfiPartition:
    """Return the EFI system partition of the one disk that carries the sealed image. Raises ``FdeError``."""
    sealed = (configuration.data_partition, configuration.hash_partition)
    carriers = [disk for disk in (disks() if found is None else found) if disk.holds(sealed)]
    if len(carriers) != 1:
        raise FdeError(
            "the EFI system partition",
            f"{len(carriers)} disks carry the sealed image",
            "Detach every disk that is a copy of the root disk",
        )
    partitions = carriers[0].table.of_type(ESP)
    if not partitions:
        raise FdeError(carriers[0].device, "it has no EFI system partition", "Deploy the image again")
    return EfiPartition(runner, partition_device(carriers[0], partitions[0]))


def mounts_of(device: str, *, write: bool = False, beginning: str = "/", table: Path = _MOUNTS) -> Iterator[Path]:
    """Yield where a block device is mounted, for writing if that is wanted (proc(5), mountinfo)."""
    number = os.stat(device).st_rdev
    wanted = f"{os.major(number)}:{os.minor(number)}"
    for line in table.read_text().splitlines():
        words = line.split()
        if words[2] == wanted and words[3] == "/" and ("rw" in words[5].split(",") or not write):
            # Blanks and the like are written in octal there.
            place = re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), words[4])
            if place.startswith(beginning):
                yield Path(place)


@contextmanager
def _locked(device: str) -> Iterator[None]:
    descriptor = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _unusable(device: str, cause: str) -> FdeError:
    return FdeError(
        device, f"the EFI system partition cannot be used: {cause}", "Check it with fsck.vfat, and its space"
    )
