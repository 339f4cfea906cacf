# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the lab says while it works: one line when a long step begins, one with its time when it ends."""

from __future__ import annotations

import sys
import time
from contextlib import contextmanager
from typing import Iterator

_started = time.monotonic()


def say(line: str) -> None:
    """Print one line on standard error, with the time since the program started (minutes:seconds)."""
    minutes, seconds = divmod(int(time.monotonic() - _started), 60)
    print(f"[{minutes:02}:{seconds:02}] {line}", file=sys.stderr, flush=True)


@contextmanager
def step(what: str) -> Iterator[None]:
    """Announce a step, and its duration when it has ended well."""
    begun = time.monotonic()
    say(f"{what} ...")
    yield
    say(f"{what}: done in {time.monotonic() - begun:.0f} s")
