# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A ``Runner`` for tests of the core: it starts the real program."""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import Mapping, Optional, Sequence

import pytest
from ansible_collections.cvm.fde.plugins.module_utils.runner import ENVIRONMENT, CommandError, Completed, MissingProgram

SEARCH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin:/usr/lib/systemd"


class DirectRunner:
    """Starts programs and remembers the argument lists."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, ...]] = []

    def run(
        self,
        argv: Sequence[str],
        *,
        stdin: Optional[bytes] = None,
        pass_fds: Sequence[int] = (),
        env: Optional[Mapping[str, str]] = None,
        ok: Sequence[int] = (0,),
    ) -> Completed:
        program = self.find(argv[0])
        if program is None:
            raise MissingProgram(argv[0])
        self.calls.append(tuple(argv))
        environment = {**os.environ, **ENVIRONMENT, **(env or {})}
        done = subprocess.run(
            [program, *argv[1:]], input=stdin or b"", capture_output=True, env=environment, pass_fds=pass_fds
        )
        completed = Completed(tuple(argv), done.returncode, done.stdout, done.stderr)
        if ok and completed.status not in ok:
            raise CommandError(completed)
        return completed

    def find(self, name: str) -> Optional[str]:
        return shutil.which(name, path=SEARCH)


@pytest.fixture
def direct_runner() -> DirectRunner:
    """A runner over the programs of this machine."""
    return DirectRunner()
