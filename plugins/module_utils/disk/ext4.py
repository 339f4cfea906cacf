# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read and change the files of an ext4 file system that is not mounted.

``debugfs`` does it, so neither root, nor a loop device, nor the kernel's ext4 is needed, an image from a stranger is
never mounted, and all times can be fixed: the same image gives the same bytes again.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from typing import Sequence, Union

from ..boot.tools import File, Tools
from ..errors import FdeError


@dataclass(frozen=True)
class Entry:
    """One name in a directory; ``mode`` with the type bits of stat(2), ``size`` in bytes (0 for directories)."""

    name: str
    mode: int
    size: int

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.mode)

    @property
    def is_file(self) -> bool:
        return stat.S_ISREG(self.mode)


@dataclass(frozen=True)
class Remove:
    """Remove a name: a file, a link, or an empty directory."""

    path: str
    directory: bool = False


@dataclass(frozen=True)
class Mkdir:
    """Make a directory that is not there."""

    path: str


@dataclass(frozen=True)
class Symlink:
    """Make a symbolic link that is not there."""

    path: str
    target: str


@dataclass(frozen=True)
class Write:
    """Write a file that is not there; root owns it."""

    path: str
    content: bytes
    mode: int = 0o644


Change = Union[Remove, Mkdir, Symlink, Write]


class Ext4Files:
    """The files of the ext4 file system that begins at byte ``offset`` of a file or device; errors name ``subject``."""

    def __init__(self, tools: Tools, path: str, offset: int = 0, subject: str = "") -> None:
        self._tools = tools
        self._image = File(path, suffix=f"?offset={offset}" if offset else "")
        self._subject = subject or path

    def list(self, directory: str) -> dict[str, Entry]:
        """Return the entries of a directory without . and .., nothing when there is no such directory.

        Raises ``FdeError`` for a name that debugfs cannot be told.
        """
        output = self._ask(f"ls -p {quote(directory)}").decode("utf-8", "surrogateescape")
        entries = {}
        for line in filter(None, output.split("\n")):
            fields = line.split("/")
            if len(fields) != 8 or not fields[2].isdigit():
                raise FdeError(self._subject, f"{directory} has a name that cannot be handled", "Rename or remove it")
            name = fields[5]
            if name not in (".", ".."):
                entries[name] = Entry(name, int(fields[2], 8), int(fields[6] or 0))
        return entries

    def read(self, path: str) -> bytes:
        """Return the content of a (small) file, nothing when there is no such file; links are followed."""
        return self._ask(f"cat {quote(path)}")

    def extract(self, path: str, target: str) -> None:
        """Copy a regular file out. Raises ``FdeError`` when it did not arrive whole."""
        entry = self.list(os.path.dirname(path)).get(os.path.basename(path))
        destination = File(target, writable=True, prefix=f'dump {quote(path)} "', suffix='"')
        self._tools.run(["debugfs", "-R", destination, self._image])
        if entry is None or not entry.is_file or not os.path.exists(target) or os.path.getsize(target) != entry.size:
            raise FdeError(self._subject, f"{path} of its root cannot be read", "Check the image with e2fsck")

    def apply(self, changes: Sequence[Change], now: int, scratch: str) -> None:
        """Make the changes, in their order; every time that is written is ``now`` (seconds since 1970).

        ``scratch`` is a directory for the content of new files. Raises ``FdeError`` when a change did not happen.
        """
        env = {"E2FSPROGS_FAKE_TIME": str(now)}
        image = File(self._image.path, writable=True, suffix=self._image.suffix)
        requests: list[str] = []

        def flush() -> None:
            if requests:
                script = "".join(f"{request}\n" for request in requests).encode("utf-8", "surrogateescape")
                self._tools.run(["debugfs", "-w", "-f", "-", image], stdin=script, env=env)
                requests.clear()

        for change in changes:
            if isinstance(change, Write):
                flush()
                self._write(change, image, env, scratch)
                requests.append(f"set_inode_field {quote(change.path)} mode 0{stat.S_IFREG | change.mode:o}")
                requests += [f"set_inode_field {quote(change.path)} {field} 0" for field in ("uid", "gid")]
            else:
                requests.append(_request(change))
        flush()
        self._check(changes)

    def _write(self, change: Write, image: File, env: dict[str, str], scratch: str) -> None:
        source = os.path.join(scratch, "new-file")
        with open(source, "wb") as file:
            file.write(change.content)
        request = File(source, prefix='write "', suffix=f'" {quote(change.path)}')
        self._tools.run(["debugfs", "-w", "-R", request, image], env=env)
        os.unlink(source)

    def _check(self, changes: Sequence[Change]) -> None:
        """debugfs reports failures as prose and ends with status 0, so what it did is looked at."""
        listed: dict[str, dict[str, Entry]] = {}
        present = {change.path for change in changes if not isinstance(change, Remove)}
        for change in changes:
            directory, name = os.path.split(change.path)
            if directory not in listed:
                listed[directory] = self.list(directory)
            there = name in listed[directory]
            if there != (change.path in present):
                raise FdeError(self._subject, f"{change.path} could not be changed", "Check the image with e2fsck")
            if isinstance(change, Write) and self.read(change.path) != change.content:
                raise FdeError(
                    self._subject, f"{change.path} could not be written", "Check that its file system is not full"
                )

    def _ask(self, request: str) -> bytes:
        return self._tools.run(["debugfs", "-R", request, self._image]).stdout


def _request(change: Union[Remove, Mkdir, Symlink]) -> str:
    if isinstance(change, Remove):
        return f"{'rmdir' if change.directory else 'rm'} {quote(change.path)}"
    if isinstance(change, Mkdir):
        return f"mkdir {quote(change.path)}"
    return f"symlink {quote(change.path)} {quote(change.target)}"


def quote(name: str) -> str:
    """Quote one argument of a debugfs request. Raises ``FdeError`` for what cannot be quoted."""
    if any(character in name for character in '"\n\r\0'):
        raise FdeError(ascii(name), "the image has a name that cannot be handled", "Rename or remove it")
    return f'"{name}"'
