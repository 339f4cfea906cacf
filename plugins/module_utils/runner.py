# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The one door to other programs.

The core never starts a process itself: it is given a ``Runner``. A module passes one over ``AnsibleModule.run_command``
(``ModuleRunner``), the boot agent and the lab pass their own. Arguments are visible to every process of the machine, so
a secret travels by standard input or by an inherited memory file, never in ``argv`` or ``env``.
"""

from __future__ import annotations

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


class ModuleRunner:
    """A ``Runner`` over an ``AnsibleModule``; of the module only ``run_command`` and ``get_bin_path`` are used."""

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
        if self.find(argv[0]) is None:
            raise MissingProgram(argv[0])
        status, stdout, stderr = self._module.run_command(
            list(argv),
            data=stdin if stdin is not None else b"",
            binary_data=True,
            encoding=None,
            pass_fds=list(pass_fds) or None,
            environ_update={**ENVIRONMENT, **(env or {})},
            handle_exceptions=True,
        )
        completed = Completed(tuple(argv), status, _bytes(stdout), _bytes(stderr))
        if ok and status not in ok:
            raise CommandError(completed)
        return completed

    def find(self, name: str) -> Optional[str]:
        path = self._module.get_bin_path(name, opt_dirs=["/usr/lib/systemd", "/usr/sbin", "/sbin"])
        return str(path) if path else None


def _bytes(output: Any) -> bytes:
    return output if isinstance(output, bytes) else str(output).encode()
