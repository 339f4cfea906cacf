# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The one door to other programs.

The core never starts a process itself: it is given a ``Runner``. A module passes ``ModuleRunner``, the boot agent and
the lab pass their own. Arguments are visible to every process of the machine, so a secret travels by standard input or
by an inherited memory file, never in ``argv`` or ``env``.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from typing import Any, Mapping, Optional, Protocol, Sequence

from .errors import FdeError

#: Fixed for every program, so that nothing that is parsed depends on the caller's language or time zone.
ENVIRONMENT = {"LC_ALL": "C", "LANG": "C", "TZ": "UTC"}


@dataclass(frozen=True)
class Completed:
    """What a program left behind: its exit status and both outputs as bytes."""

    argv: tuple[str, ...]
    status: int
    stdout: bytes
    stderr: bytes


class CommandError(FdeError):
    """A program ended with a status that its caller did not expect."""

    def __init__(self, completed: Completed) -> None:
        said = completed.stderr.decode("utf-8", "replace").strip() or "it said nothing"
        super().__init__(
            completed.argv[0],
            f"'{' '.join(completed.argv)}' ended with status {completed.status}: {said}",
            "Nothing after this step was done; mend the cause and run again",
        )
        self.completed = completed


class MissingProgram(FdeError):
    """A program that is needed is not installed."""

    def __init__(self, name: str) -> None:
        super().__init__(name, "the program is not installed", f"Install the package that provides '{name}'")


class Runner(Protocol):
    """Runs one program to its end."""

    def run(
        self,
        argv: Sequence[str],
        *,
        stdin: Optional[bytes] = None,
        pass_fds: Sequence[int] = (),
        env: Optional[Mapping[str, str]] = None,
        ok: Sequence[int] = (0,),
    ) -> Completed:
        """Run ``argv`` and return what it left behind.

        ``stdin`` is written to its standard input (nothing: an empty one). ``pass_fds`` stay open under the same
        numbers. ``env`` is added to the environment. Raises ``CommandError`` when the status is not in ``ok`` (an empty
        ``ok`` accepts all), ``MissingProgram`` when there is no such program.
        """

    def find(self, name: str) -> Optional[str]:
        """Return the path of a program, or None when it is not installed."""


def finish(
    command: Sequence[str],
    argv: Sequence[str],
    env: Mapping[str, str],
    *,
    stdin: Optional[bytes],
    pass_fds: Sequence[int],
    ok: Sequence[int],
    limit: Optional[float] = None,
) -> Completed:
    """Run ``command``, which is called ``argv`` in messages, in exactly this environment; otherwise as ``Runner.run``.

    Raises ``FdeError`` when it cannot be started, or does not end within ``limit`` seconds.
    """
    try:
        finished = subprocess.run(
            list(command),
            input=b"" if stdin is None else stdin,
            capture_output=True,
            pass_fds=tuple(pass_fds),
            env=dict(env),
            check=False,
            timeout=limit,
        )
    except subprocess.TimeoutExpired as error:
        raise FdeError(
            argv[0], f"'{' '.join(argv)}' did not end within {limit:.0f} seconds", "Start the machine again"
        ) from error
    except OSError as error:
        raise FdeError(argv[0], f"it cannot be started: {error.strerror}", "Mend the cause and run again") from error
    completed = Completed(tuple(argv), finished.returncode, finished.stdout, finished.stderr)
    if ok and completed.status not in ok:
        raise CommandError(completed)
    return completed


class ModuleRunner:
    """A ``Runner`` for an ``AnsibleModule``, with its environment.

    Its ``run_command`` is not used. It can lose all that a program writes at its end: it stops to read where nothing
    came for a second and the program has ended since (ansible-core 2.19, ``module_utils/basic.py``), and what is taken
    for an empty answer may be about a disk. It also replaces ``~`` and ``$`` in arguments.
    """

    def __init__(self, module: Any) -> None:
        self._module = module

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
        environment = {**os.environ, **ENVIRONMENT, **(env or {})}
        return finish([program, *argv[1:]], argv, environment, stdin=stdin, pass_fds=pass_fds, ok=ok)

    def find(self, name: str) -> Optional[str]:
        path = shutil.which(name) or self._module.get_bin_path(name, opt_dirs=["/usr/lib/systemd"])
        return str(path) if path else None
