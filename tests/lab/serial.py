# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The serial log of a guest: its boots one after another, and how to tell a slow guest from a hung one."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

MARKER = b"\n=== the lab starts boot "
_CONTROL = re.compile(
    rb"\x1b\][^\x07\x1b]*(\x07|\x1b\\)|\x1b\[[0-9;:?=]*[A-Za-z]|\x1b[()][A-Z0-9]|\x1bM|[\r\x00\x0e\x0f]"
)
#: What systemd prints twice a second while it waits for something: no sign of progress.
_WAITING = re.compile(r"^\[[ *]{6}\].* running \(.*\)$\n?", re.MULTILINE)


class Silence:
    """Notices when a guest has said nothing new for longer than ``patience`` seconds."""

    def __init__(self, patience: float, now: float) -> None:
        self._patience = patience
        self._size = -1
        self._since = now

    def lasts(self, size: int, now: float) -> bool:
        """Tell how much was said by the time ``now``; True when it has been the same for too long."""
        if size != self._size:
            self._size, self._since = size, now
        return now - self._since > self._patience


@dataclass(frozen=True)
class SerialLog:
    """A file that QEMU appends to."""

    path: Path

    def begin_boot(self) -> None:
        """Mark the start of a boot."""
        number = self._all().count(MARKER) + 1
        with open(self.path, "ab") as file:
            file.write(MARKER + b"%d ===\n" % number)

    def boot(self) -> str:
        """Return what the guest has said since the last boot began, without terminal controls and waiting lines."""
        said = self._all().rpartition(MARKER)[2].partition(b"\n")[2]
        return _WAITING.sub("", _CONTROL.sub(b"", said).decode("utf-8", "replace"))

    def find(self, pattern: str) -> Optional[re.Match[str]]:
        """Search what was said since the last boot began."""
        return re.search(pattern, self.boot())

    def tail(self, lines: int = 40) -> str:
        return "\n".join(self.boot().splitlines()[-lines:])

    def _all(self) -> bytes:
        return self.path.read_bytes() if self.path.exists() else b""
