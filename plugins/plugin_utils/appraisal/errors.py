# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The one way in which evidence is refused, and the one in which it cannot be judged."""

from __future__ import annotations


class AppraisalError(Exception):
    """A piece of evidence that is not what it should be.

    ``code`` is stable, lower case with hyphens. ``reason`` is a sentence of our own: numbers and names that we chose
    may be in it, text that a guest sent may not.
    """

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(f"{code}: {reason}")
        self.code = code
        self.reason = reason


class Undecided(Exception):
    """A check that cannot be made, and why."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
