# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Device-mapper devices, through dmsetup.

How not to hang. By default dmsetup creates a semaphore (a "udev cookie"), puts its number into the uevent and sleeps
until a udev rule calls ``dmsetup udevcomplete``: without a time limit. In an initrd that rule may be missing, udevd
may be stopping, or its worker may have been killed for being slow, and then nobody ever wakes dmsetup. So every call
here says ``--noudevsync``: udev still gets the uevent with its flags and makes its links, but nobody waits for it.
What follows does not need the links either: ``Device.path`` is /dev/dm-N, which the kernel itself makes (devtmpfs)
before the call returns, and tables name devices by major:minor. Which devices there are says sysfs, without a program.

A table is exchanged under a mounted file system by ``swap`` alone, in one call to the kernel (``control``): no program
could be started from a root that is suspended.

``suspend`` waits for I/O in flight; on a device whose lower devices are suspended or dead that I/O never ends.
Suspend from the top of a stack to its bottom, resume from the bottom to the top.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Optional, Sequence

from ..errors import FdeError
from ..runner import Completed, Runner
from . import table as tables
from .control import Control
from .table import Table, Target

SYSFS = Path("/sys")


@dataclass(frozen=True)
class Device:
    """A device as the kernel has it now; ``size`` is that of its active table, in sectors."""

    name: str
    major: int
    minor: int
    uuid: str
    size: int
    suspended: bool
    read_only: bool

    @property
    def path(self) -> str:
        """The node the kernel made; there from the device's first moment to its last."""
        return f"/dev/dm-{self.minor}"

    @property
    def number(self) -> str:
        """How a table names the device."""
        return f"{self.major}:{self.minor}"


class DeviceMapper:
    """All that is done to device-mapper, one method each. Everything raises ``CommandError`` when the kernel
    refuses.
    """

    def __init__(self, runner: Runner, control: Optional[Control] = None, sysfs: Optional[Path] = None) -> None:
        self._runner = runner
        self._control = control or Control()
        self._sysfs = sysfs or SYSFS

    def find(self, name: str) -> Optional[Device]:
        """Return the device of that name, or None.

        Source: Linux Documentation/ABI/testing/sysfs-block-dm and stable/sysfs-block.
        """
        for directory in (self._sysfs / "block").glob("dm-*"):
            try:
                if _line(directory / "dm/name") == name:
                    return _device(directory, name)
            except OSError:
                # It was removed meanwhile.
                continue
        return None

    def get(self, name: str) -> Device:
        """Return the device of that name. Raises ``FdeError`` when there is none."""
        device = self.find(name)
        if device is None:
            raise FdeError(name, "there is no such device-mapper device", "Create it first")
        return device

    def create(
        self, name: str, table: Sequence[Target], *, uuid: Optional[str] = None, read_only: bool = False
    ) -> Device:
        """Create and activate a device."""
        options = ["--uuid", uuid] if uuid else []
        options += ["--readonly"] if read_only else []
        self._dmsetup("create", *options, name, stdin=tables.render(table).encode())
        return self.get(name)

    def remove(self, name: str) -> None:
        """Remove a device that nobody has open.

        udev may be looking at a device that was just made or closed; that is tried again for five seconds.
        """
        self._dmsetup("remove", "--retry", name)

    def remove_all(self, *names: str) -> None:
        """Remove devices in this order; what is absent already is fine."""
        for name in names:
            if self.find(name) is not None:
                self.remove(name)

    def suspend(self, name: str, *, flush: bool = True) -> None:
        """Hold all I/O; with ``flush`` a mounted file system is frozen and what is under way is finished first."""
        self._dmsetup("suspend", *([] if flush else ["--noflush", "--nolockfs"]), name)

    def load(self, name: str, table: Sequence[Target]) -> None:
        """Put a table beside the active one; ``resume`` swaps them."""
        self._dmsetup("load", name, stdin=tables.render(table).encode())

    def resume(self, name: str) -> None:
        """Activate the loaded table and let I/O through."""
        self._dmsetup("resume", name)

    def swap(self, name: str, table: Sequence[Target]) -> None:
        """Replace the active table while the device is in use, be it the root. Raises ``FdeError``; the old table is in
        use then.
        """
        self.load(name, table)
        self._control.exchange(name)

    def message(self, name: str, text: str, sector: int = 0) -> None:
        """Send a message to the target at ``sector``."""
        self._dmsetup("message", name, str(sector), *text.split())

    def table(self, name: str) -> Table:
        """Return the active table. Keys are never asked for, dmsetup prints zeros or a keyring reference in their
        place.
        """
        return tables.parse(self._dmsetup("table", name).stdout.decode())

    def status(self, name: str, kind: str) -> str:
        """Return what the only target of a device, of the given kind, says of itself."""
        done = self._dmsetup("status", "--target", kind, name)
        lines = done.stdout.decode().splitlines()
        if len(lines) != 1:
            raise FdeError(
                name, f"it has {len(lines)} targets of the kind '{kind}', not one", "Look at 'dmsetup table'"
            )
        match = re.fullmatch(r"\d+ \d+ " + re.escape(kind) + r" ?(.*)", lines[0].rstrip())
        if match is None:
            raise tables.TableError(lines[0], "not a status line")
        return match[1]

    def targets(self) -> dict[str, tuple[int, int, int]]:
        """Return the target kinds of the running kernel and their versions (loaded modules only)."""
        found = {}
        for line in self._dmsetup("targets").stdout.decode().splitlines():
            match = re.fullmatch(r"(\S+)\s+v(\d+)\.(\d+)\.(\d+)", line.strip())
            if match:
                found[match[1]] = (int(match[2]), int(match[3]), int(match[4]))
        return found

    def _dmsetup(self, command: str, *arguments: str, stdin: Optional[bytes] = None) -> Completed:
        return self._runner.run(["dmsetup", command, "--noudevsync", *arguments], stdin=stdin)


def _device(directory: Path, name: str) -> Device:
    major, minor = _line(directory / "dev").split(":")
    return Device(
        name,
        int(major),
        int(minor),
        uuid=_line(directory / "dm/uuid"),
        size=int(_line(directory / "size")),
        suspended=_line(directory / "dm/suspended") == "1",
        read_only=_line(directory / "ro") == "1",
    )


def _line(path: Path) -> str:
    return path.read_text().rstrip("\n")
