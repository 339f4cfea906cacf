# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run the programs of a build from the host, or from another distribution's tree that has newer ones.

A sealed image needs a recent systemd on the builder (ukify, systemd-measure, the EFI stub). A *tools tree* is a
directory with an installed system that has it, as mkosi's ``ToolsTree=``. Its programs run in a bubblewrap sandbox
whose root is the tree, read-only and without network; a file they need is mounted into it, so private keys are never
copied.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from typing import Mapping, Optional, Sequence, Union

from ..errors import FdeError
from ..runner import Completed, MissingProgram, Runner

#: Where in a tools tree programs are looked for, in this order.
PROGRAM_DIRECTORIES = ("usr/bin", "usr/sbin", "usr/lib/systemd")
STUB = "usr/lib/systemd/boot/efi/linuxx64.efi.stub"


@dataclass(frozen=True)
class File:
    """A file in the arguments of a program. ``prefix`` and ``suffix`` are put around its path.

    A program may replace a ``writable`` file or create it: its whole directory is made writable.
    """

    path: str
    writable: bool = False
    prefix: str = ""
    suffix: str = ""


Argument = Union[str, File]


class Tools:
    """Programs of this machine."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner

    def run(
        self,
        argv: Sequence[Argument],
        *,
        stdin: Optional[bytes] = None,
        env: Optional[Mapping[str, str]] = None,
        ok: Sequence[int] = (0,),
    ) -> Completed:
        """Run a program as ``Runner.run`` does."""
        return self._runner.run([_plain(part) for part in argv], stdin=stdin, env=env, ok=ok)

    def has(self, program: str) -> bool:
        """Tell whether a program is there."""
        return self._runner.find(program) is not None

    def resource(self, path: str) -> str:
        """Return the path on this machine of a file that belongs to the tools, relative to their root."""
        return os.path.join("/", path)


class TreeTools(Tools):
    """Programs of a tools tree; those that it does not have are taken from this machine."""

    def __init__(self, runner: Runner, tree: str) -> None:
        super().__init__(runner)
        self._tree = os.path.abspath(tree)
        if not os.path.isdir(os.path.join(self._tree, "usr")):
            raise FdeError(
                tree, "this is not a tools tree: it has no directory 'usr'", "Name the root of an installed system"
            )
        if runner.find("bwrap") is None:
            raise MissingProgram("bwrap")

    def run(
        self,
        argv: Sequence[Argument],
        *,
        stdin: Optional[bytes] = None,
        env: Optional[Mapping[str, str]] = None,
        ok: Sequence[int] = (0,),
    ) -> Completed:
        if not self._in_tree(str(argv[0])):
            return super().run(argv, stdin=stdin, env=env, ok=ok)
        return self._runner.run(sandboxed(self._tree, argv, env or {}), stdin=stdin, ok=ok)

    def has(self, program: str) -> bool:
        return self._in_tree(program) or super().has(program)

    def _in_tree(self, program: str) -> bool:
        return any(os.path.lexists(os.path.join(self._tree, where, program)) for where in PROGRAM_DIRECTORIES)

    def resource(self, path: str) -> str:
        return os.path.join(self._tree, path)


def open_tools(runner: Runner, tools_tree: Optional[str]) -> Tools:
    """Return the programs of a tools tree, or of this machine when there is none."""
    return TreeTools(runner, tools_tree) if tools_tree else Tools(runner)


def sandboxed(tree: str, argv: Sequence[Argument], env: Mapping[str, str]) -> list[str]:
    """Return the command that runs ``argv`` with ``tree`` as its root; files appear below /run/files."""
    command = ["bwrap", "--unshare-net", "--unshare-pid", "--unshare-ipc", "--die-with-parent"]
    command += ["--ro-bind", tree, "/", "--dev", "/dev", "--proc", "/proc", "--tmpfs", "/tmp", "--tmpfs", "/run"]
    command += ["--setenv", "PATH", ":".join(f"/{where}" for where in PROGRAM_DIRECTORIES)]
    for name, value in sorted(env.items()):
        command += ["--setenv", name, value]
    mounts: dict[tuple[str, bool], str] = {}
    inner: list[str] = []
    for part in argv:
        if isinstance(part, str):
            inner.append(part)
            continue
        path = os.path.abspath(part.path)
        source = os.path.dirname(path) if part.writable else path
        if (source, part.writable) not in mounts:
            place = f"/run/files/{len(mounts)}"
            mounts[source, part.writable] = place
            target = place if part.writable else f"{place}/{os.path.basename(path)}"
            # A plain bind mount would not let a block device be opened.
            device = stat.S_ISBLK(os.stat(path).st_mode) if os.path.exists(path) else False
            command += ["--dev-bind" if part.writable or device else "--ro-bind", source, target]
        inner.append(f"{part.prefix}{mounts[source, part.writable]}/{os.path.basename(path)}{part.suffix}")
    return [*command, "--", *inner]


def _plain(part: Argument) -> str:
    return part if isinstance(part, str) else f"{part.prefix}{os.path.abspath(part.path)}{part.suffix}"
