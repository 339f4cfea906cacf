# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Running programs inside of a directory tree that holds an installed system."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import Iterator, Mapping, Optional, Sequence

from ..runner import Completed, Runner

#: What a package manager and dracut need of the kernel, and how it is mounted.
_MOUNTS = (
    ("proc", ("--types", "proc", "proc")),
    ("sys", ("--types", "sysfs", "--options", "ro", "sysfs")),
    ("dev", ("--bind", "/dev")),
    ("run", ("--types", "tmpfs", "--options", "mode=0755", "tmpfs")),
)


class ChrootRunner:
    """A ``Runner`` that runs every program with ``root`` as its root directory."""

    def __init__(self, runner: Runner, root: Path) -> None:
        self._runner = runner
        self._root = root

    def run(
        self,
        argv: Sequence[str],
        *,
        stdin: Optional[bytes] = None,
        pass_fds: Sequence[int] = (),
        env: Optional[Mapping[str, str]] = None,
        ok: Sequence[int] = (0,),
    ) -> Completed:
        """Run ``argv``; see ``Runner``."""
        inside = ["chroot", str(self._root), *argv]
        return self._runner.run(inside, stdin=stdin, pass_fds=pass_fds, env=env, ok=ok)

    def find(self, name: str) -> Optional[str]:
        """Return ``name``; whether it is there shows when it runs."""
        return name


@contextmanager
def entered(runner: Runner, root: Path) -> Iterator[Runner]:
    """Mount what programs need below ``root``, yield a runner inside of it, and unmount everything afterwards.

    The running system (``/``) is used as it is. Name resolution is that of the tree; see ``resolv.conf`` there.
    """
    if root == Path("/"):
        yield runner
        return
    mounted: list[str] = []
    try:
        for name, arguments in _MOUNTS:
            target = root / name
            target.mkdir(exist_ok=True)
            runner.run(["mount", *arguments, str(target)])
            mounted.append(str(target))
        _lend_resolver(root)
        yield ChrootRunner(runner, root)
    finally:
        for target_path in reversed(mounted):
            runner.run(["umount", "--recursive", target_path])


def _lend_resolver(root: Path) -> None:
    """Where the tree's resolv.conf points into /run, put this machine's there; it goes away with the tmpfs."""
    link = root / "etc/resolv.conf"
    if link.is_symlink() and "run/" in str(link.readlink()):
        target = root / str(link.readlink()).replace("../", "").lstrip("/")
        if str(target.parent).startswith(str(root / "run")) and Path("/etc/resolv.conf").exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(Path("/etc/resolv.conf").read_bytes())
