# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The two logs that explain the PCRs: the firmware's and systemd's."""

from __future__ import annotations

import fcntl
import os
import stat
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Iterator, Optional

from ..errors import FdeError

FIRMWARE_LOG = "/sys/kernel/security/tpm0/binary_bios_measurements"
USERSPACE_LOG = "/run/log/systemd/tpm2-measure.log"
#: Larger logs are not sent: a real one has some ten kilobytes.
LOG_LIMIT = 4 * 1024 * 1024


@dataclass(frozen=True)
class UserspaceLog:
    """systemd's measurement log; ``complete`` is false where a writer died between extending and writing."""

    content: Optional[bytes]
    complete: bool


def firmware_log(path: str = FIRMWARE_LOG) -> Optional[bytes]:
    """Return the firmware's event log, or None where the kernel offers none."""
    try:
        with open(path, "rb") as log:
            return _bounded(path, log.read(LOG_LIMIT + 1))
    except FileNotFoundError:
        return None


class HeldLog:
    """systemd's log while no one can append to it."""

    def __init__(self, path: str, descriptor: Optional[int]) -> None:
        self._path = path
        self._descriptor = descriptor

    def read(self) -> UserspaceLog:
        """Return the log as it stands now; its content is None where there is no log."""
        if self._descriptor is None:
            return UserspaceLog(None, True)
        # systemd sets the sticky bit before it extends a PCR and clears it once the record is written.
        mode = os.fstat(self._descriptor).st_mode
        with open(os.dup(self._descriptor), "rb") as log:
            log.seek(0)
            return UserspaceLog(_bounded(self._path, log.read(LOG_LIMIT + 1)), not mode & stat.S_ISVTX)


@contextmanager
def held_userspace_log(path: str = USERSPACE_LOG) -> Iterator[HeldLog]:
    """Hold systemd's log for the block: systemd takes the exclusive lock around each extend and record.

    Quote inside the block and read the log there too; then both speak of the same moment.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        yield HeldLog(path, None)
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        yield HeldLog(path, descriptor)
    finally:
        os.close(descriptor)


def _bounded(path: str, content: bytes) -> bytes:
    if len(content) > LOG_LIMIT:
        raise FdeError(
            path, f"the log is larger than {LOG_LIMIT} bytes", "Attest after a reboot; such a log is not normal"
        )
    return content
