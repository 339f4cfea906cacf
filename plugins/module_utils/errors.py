# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The two kinds of failure that the collection reports on purpose.

Everything else that is raised is a bug and keeps its traceback.
"""

from __future__ import annotations

from typing import Optional, TypeVar

_T = TypeVar("_T")


class FdeError(Exception):
    """A failure that the user can act on.

    ``subject`` is the device, file or host it is about, ``cause`` what is wrong with it, ``remedy`` the next step.
    None of them may ever contain key material.
    """

    def __init__(self, subject: str, cause: str, remedy: str) -> None:
        super().__init__(f"{subject}: {cause}. {remedy}")
        self.subject = subject
        self.cause = cause
        self.remedy = remedy


class Refusal(FdeError):
    """A state that only tampering, or damage that looks like it, explains: the operation fails closed.

    ``code`` is stable, lower case with hyphens, and documented; it is what a console, a log and a PCR show.
    """

    def __init__(self, code: str, subject: str, cause: str, remedy: str) -> None:
        super().__init__(subject, cause, remedy)
        self.code = code


def certain(value: Optional[_T]) -> _T:
    """Return a value that must be there by now; that it is not is a bug."""
    if value is None:
        raise AssertionError("a value is missing that an earlier step provides")
    return value
