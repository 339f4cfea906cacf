# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The command by which the boot asks for the checks of a data volume."""

from __future__ import annotations

import sys

from ..errors import FdeError, Refusal
from ..runner import Runner
from . import boot
from .machine import Machine

_ACTIONS = {"header": boot.header, "check": boot.check}


def run(runner: Runner, action: str, name: str) -> int:
    """Check one volume and return the exit status; what is wrong goes to the journal."""
    try:
        _ACTIONS[action](Machine(runner), name)
    except FdeError as error:
        code = f" [{error.code}]" if isinstance(error, Refusal) else ""
        print(f"cvm-fde: volume {name}{code}: {error}", file=sys.stderr)
        return 1
    return 0
