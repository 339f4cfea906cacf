# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Programs that do not outlive the run that started them, and that cannot keep it for ever.

A module that is killed leaves its programs running: one that formats would go on while the next run begins. So the
kernel tells each program when the module is gone (prctl(2), PR_SET_PDEATHSIG), upon which cryptsetup takes down what
it has set up; a message that nobody reads any more must not end it before. And every program holds the lock of the
run, so that the next run waits for the last of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Mapping, Optional, Sequence

from ..errors import FdeError
from ..runner import CommandError, Completed, MissingProgram, Runner

#: Seconds for whatever asks a TPM, a disk or the kernel one question.
LIMIT = 300
_TOLD = ("setpriv", "--pdeathsig", "TERM", "--", "env", "--ignore-signal=PIPE")
#: How ``timeout`` says that the limit was reached: by its own status, or by that of SIGKILL.
_TIMED_OUT = (124, 137)
#: What writes or replays a whole device takes as long as it takes.
_UNLIMITED = ("luksFormat", "mkfs.ext4", "mkfs.xfs", "mkfs.btrfs", "mount", "umount", "blkdiscard")


@dataclass(frozen=True)
class GuardedRunner:
    """A ``Runner`` over another one. ``lock`` is the descriptor of the lock of this run."""

    runner: Runner
    lock: int

    def run(
        self,
        argv: Sequence[str],
        *,
        stdin: Optional[bytes] = None,
        pass_fds: Sequence[int] = (),
        env: Optional[Mapping[str, str]] = None,
        ok: Sequence[int] = (0,),
    ) -> Completed:
        """Run ``argv``; see ``Runner``. Raises ``FdeError`` when it does not end in time."""
        program = self.find(argv[0])
        if program is None:
            raise MissingProgram(argv[0])
        limited = not any(word in _UNLIMITED for word in argv[:2])
        limit = ("timeout", "--kill-after=30", str(LIMIT)) if limited else ()
        done = self.runner.run(
            [*_TOLD, *limit, program, *argv[1:]],
            stdin=stdin,
            pass_fds=(*pass_fds, self.lock),
            env=env,
            ok=(),
        )
        if limited and done.status in _TIMED_OUT:
            raise FdeError(argv[0], f"it did not end within {LIMIT} seconds", "Check what it waits for, and run again")
        completed = Completed(tuple(argv), done.status, done.stdout, done.stderr)
        if ok and completed.status not in ok:
            raise CommandError(completed)
        return completed

    def find(self, name: str) -> Optional[str]:
        return self.runner.find(name)
