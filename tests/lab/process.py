# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab's door to other programs."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Mapping, Optional, Sequence, Union


class LabError(Exception):
    """A failure that the user of the lab can act on; everything else is a bug and keeps its traceback."""


def run(
    argv: Sequence[Union[str, Path]], *, cwd: Optional[Path] = None, env: Optional[Mapping[str, str]] = None
) -> str:
    """Run a program to its end and return its standard output; raise ``LabError`` with all it said when it fails."""
    words = [str(word) for word in argv]
    try:
        done = subprocess.run(
            words,
            cwd=cwd,
            env={**os.environ, "LC_ALL": "C.UTF-8", **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )
    except FileNotFoundError as error:
        raise LabError(f"{words[0]} is not installed; 'make setup' installs what the lab needs") from error
    if done.returncode:
        said = "\n".join((done.stdout + done.stderr).strip().splitlines()[-40:])
        raise LabError(f"'{' '.join(words)}' ended with status {done.returncode}:\n{said}")
    return done.stdout
