# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The boot agent's ``Runner``: one program after the other by ``subprocess``."""

from __future__ import annotations

import os
from typing import Mapping, Optional, Sequence

from ..runner import ENVIRONMENT, Completed, MissingProgram, finish

#: An initrd has no useful PATH, and systemd keeps some of its programs out of every PATH.
SEARCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/usr/lib/systemd:/lib/systemd"


class SubprocessRunner:
    """Runs programs with a fixed, small environment.

    ``prefix`` goes before every command (``chroot DIR``), ``environment`` is added for every one. ``limit`` is the time
    in seconds after which a program is taken to hang, and ended.
    """

    def __init__(
        self,
        prefix: Sequence[str] = (),
        environment: Optional[Mapping[str, str]] = None,
        limit: Optional[float] = None,
    ) -> None:
        self._prefix = tuple(prefix)
        self._limit = limit
        self._environment = {**ENVIRONMENT, "PATH": SEARCH_PATH, **(environment or {})}

    def run(
        self,
        argv: Sequence[str],
        *,
        stdin: Optional[bytes] = None,
        pass_fds: Sequence[int] = (),
        env: Optional[Mapping[str, str]] = None,
        ok: Sequence[int] = (0,),
    ) -> Completed:
        """Run ``argv``; see ``Runner``. Raises ``FdeError`` when the program does not end within the limit."""
        program = self.find(argv[0])
        if program is None:
            raise MissingProgram(argv[0])
        return finish(
            [*self._prefix, program, *argv[1:]],
            argv,
            {**self._environment, **(env or {})},
            stdin=stdin,
            pass_fds=pass_fds,
            ok=ok,
            limit=self._limit,
        )

    def find(self, name: str) -> Optional[str]:
        """Return the path of a program; absolute names are returned as they are when they can be run."""
        if self._prefix:
            return name
        if os.path.isabs(name):
            return name if os.access(name, os.X_OK) else None
        places = (os.path.join(directory, name) for directory in SEARCH_PATH.split(":"))
        return next((path for path in places if os.path.isfile(path) and os.access(path, os.X_OK)), None)
