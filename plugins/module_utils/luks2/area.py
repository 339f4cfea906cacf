# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The header area of a device, read once.

The disk belongs to the attacker: a second read may give other bytes. So the area is read once into memory; digest,
parser and policy see those bytes, and a program that opens the volume is given a file in RAM with the same bytes as
its detached header (CVE-2025-59054, CVE-2025-58356).
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field

from ..errors import FdeError
from .digest import header_digest
from .header import MAGIC, SECONDARY_MAGIC, SIZES, Header
from .profile import LAYOUT


@dataclass(frozen=True)
class HeaderArea:
    """The first bytes of a volume; ``device`` is only named in messages and never read again."""

    device: str
    content: bytes = field(repr=False)

    @property
    def digest(self) -> bytes:
        """The header digest, 32 bytes, as the anchor holds it."""
        return header_digest(self.content)

    @property
    def present(self) -> bool:
        """Whether anything here looks like a LUKS header, sound or not."""
        found = [self.content[size : size + len(SECONDARY_MAGIC)] for size in SIZES]
        return self.content.startswith(MAGIC) or SECONDARY_MAGIC in found

    def header(self) -> Header:
        """Return the parsed header. Raises ``HeaderError``."""
        return Header.parse(self.content, subject=self.device)

    def store(self, path: str) -> None:
        """Write the bytes to a new file that only root can read; ``path`` must lie in RAM (tmpfs) and not exist yet."""
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(self.content)


def read_area(device: str, size: int = LAYOUT.offset, offset: int = 0) -> HeaderArea:
    """Read the first ``size`` bytes of the volume that begins at byte ``offset`` of a device or file, once.

    A shorter device gives a shorter area. Raises ``FdeError`` when it cannot be read, or ends before the offset.
    """
    try:
        # Without O_NONBLOCK, opening a pipe waits until somebody writes to it.
        descriptor = os.open(device, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            _check(device, descriptor, offset)
            return HeaderArea(device, _read(descriptor, size, offset))
        finally:
            os.close(descriptor)
    except OSError as error:
        raise FdeError(
            device, f"its header cannot be read: {error.strerror}", "Check that the device exists"
        ) from error


def _check(device: str, descriptor: int, offset: int) -> None:
    """Raise ``FdeError`` unless this is a block device or file that goes on behind the offset."""
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISBLK(mode) and not stat.S_ISREG(mode):
        raise FdeError(device, "its header cannot be read: it is neither a block device nor a file", "Check the path")
    length = os.lseek(descriptor, 0, os.SEEK_END)
    if offset and offset >= length:
        raise FdeError(
            device,
            f"it has {length} bytes, and no volume can begin at byte {offset}",
            "Check the offset, which is in bytes: partition tables count sectors",
        )


def _read(descriptor: int, size: int, offset: int) -> bytes:
    chunks, length = [], 0
    # Most often one chunk is all of it; then it is not copied.
    while chunk := os.pread(descriptor, size - length, offset + length):
        chunks.append(chunk)
        length += len(chunk)
    return b"".join(chunks)
