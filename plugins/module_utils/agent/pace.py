# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How fast a root is copied beside the I/O of its users.

The kernel starts no copy while a request of a user is in flight, but a user whose requests come one after the other
leaves gaps, and each copy that fills one delays the next request. So copying stops while the device is in use, and goes
on when it was quiet for a moment. It does not wait for ever: a root that is always in use is copied gently.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path

SYSFS = Path("/sys")


class Pace(str, Enum):
    """What the kernel is told."""

    PAUSED = "paused"
    GENTLE = "gentle"
    FULL = "full"


@dataclass(frozen=True)
class Limits:
    """From how many requests a second a device counts as in use, and how many looks a quiet moment and a pause last."""

    busy: float = 20.0
    quiet_for: int = 2
    patience: int = 60


LIMITS = Limits()


@dataclass(frozen=True)
class Load:
    """What users did to the device so far, and what of it is under way."""

    requests: int
    in_flight: int


@dataclass(frozen=True)
class Pacer:
    """The pace now, and for how many looks in a row the device was in use, or quiet."""

    pace: Pace = Pace.FULL
    busy: int = 0
    quiet: int = 0

    def after(self, before: Load, now: Load, seconds: float, limits: Limits = LIMITS) -> Pacer:
        """Return the pacer after a look ``seconds`` after the one before."""
        rate = (now.requests - before.requests) / seconds if seconds > 0 else 0.0
        if rate > limits.busy or now.in_flight:
            patient = self.busy < limits.patience
            return replace(self, pace=Pace.PAUSED if patient else Pace.GENTLE, busy=self.busy + 1, quiet=0)
        if self.pace is Pace.FULL or self.quiet + 1 >= limits.quiet_for:
            return Pacer(Pace.FULL)
        return replace(self, quiet=self.quiet + 1)


def load_of(minor: int, sysfs: Path = SYSFS) -> Load:
    """Return the load of the device-mapper device of that minor number.

    Copying is not part of it: dm-clone sends its requests past the device, to what lies below. Source: Linux
    Documentation/admin-guide/iostats.rst; fields 1, 5, 9 and 12 are reads, writes, in flight, discards.
    """
    words = (sysfs / "block" / f"dm-{minor}" / "stat").read_text().split()
    return Load(int(words[0]) + int(words[4]) + int(words[11] if len(words) > 11 else 0), int(words[8]))


class Watch:
    """Looks at what users do to a device-mapper device, and keeps the pace that follows."""

    def __init__(self, minor: int) -> None:
        self._minor = minor
        self._pacer = Pacer()
        self._seen, self._at = load_of(minor), time.monotonic()

    @property
    def pace(self) -> Pace:
        """The pace since the last look."""
        return self._pacer.pace

    def look(self) -> bool:
        """Look at what users did since the last look, and tell whether the pace is another one now."""
        load, now = load_of(self._minor), time.monotonic()
        before, self._pacer = self._pacer, self._pacer.after(self._seen, load, now - self._at)
        self._seen, self._at = load, now
        return self._pacer.pace is not before.pace
