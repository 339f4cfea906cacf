# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The one way in which evidence is refused, and the one in which it cannot be judged."""

from __future__ import annotations

from typing import Callable, TypeVar

_T = TypeVar("_T")
#: How the reason begins of what failed by a fault of our own.
FAULT = "the verifier itself failed here"


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


def contained(read: Callable[[], _T]) -> _T:
    """Return what is read of a machine's answers. A fault of our own that they find costs this machine its trust, and
    no other one its judgement. Raises ``AppraisalError`` or ``Undecided``, and no other exception.
    """
    try:
        return read()
    except (AppraisalError, Undecided):
        raise
    except Exception as error:
        # What the error says may repeat what the machine sent.
        raise AppraisalError(
            "verifier-failed", f"{FAULT} ({type(error).__name__}): keep the evidence, and report it"
        ) from error
