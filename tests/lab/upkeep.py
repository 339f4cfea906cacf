# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the boot of a sealed guest sets going, the service that brings its root to its end, and what it leaves."""

from __future__ import annotations

import time

from .guest import Guest, GuestError

SERVICE = "cvm-fde-hydrate.service"
#: Seconds for the copy of a root, and the zeros behind it, by an emulated machine that shares its host.
LIMIT = 1800


def settled(guest: Guest) -> bool:
    """Tell whether the root is copied and fills its volume: the service ended well and has nothing left to do."""
    return guest.ssh(f"systemctl is-active {SERVICE}", check=False).stdout.strip() == "inactive"


def settle(guest: Guest) -> None:
    """Wait until it is. Raises ``GuestError``."""
    end = time.monotonic() + LIMIT
    while not settled(guest):
        if time.monotonic() > end:
            told = guest.ssh(f"systemctl status --no-pager --lines=50 {SERVICE}", check=False).stdout
            raise GuestError(guest, f"its root does not come to its end in {LIMIT} s:\n{told}")
        time.sleep(5)


def assert_nothing_left(guest: Guest) -> None:
    """Fail where a program still holds a secret in a file in memory, or the agent left more in /run than it says."""
    assert guest.ssh("ls -l /proc/[0-9]*/fd 2>/dev/null | grep 'memfd:secret' || true").stdout == ""
    files = {file.removeprefix("/run/cvm-fde/") for file in guest.ssh("find /run/cvm-fde -type f").stdout.split()}
    assert {"header"} <= files <= {"header", "lock", "anchor.lock", "hydrate.lock"}
