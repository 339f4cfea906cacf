# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A ledger's export as a file: written whole or not at all, and imported once."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Iterator, Optional, Union

from ...module_utils.errors import FdeError
from .chain import EMPTY, Head
from .database import NoLedger
from .ledger import Ledger
from .transfer import export_lines, import_lines, read_lines

_BLOCK = 1 << 20


@dataclass(frozen=True)
class Transferred:
    """Whether there was (or would be) anything to do, and the head that ledger and file then have."""

    changed: bool
    before: Optional[Head]
    head: Head


def export_file(ledger: Ledger, path: Path, write: bool) -> Transferred:
    """Write a ledger to a file that only its owner can read, unless it is there already like that, byte for byte.

    `Refusal` for a ledger that is not sound. Without ``write`` it is only found out what would be done.
    """
    existing = _digest_of(path)
    digest, line = hashlib.sha256(), b""
    with _beside(path) if write else _nowhere() as file:
        for line in export_lines(ledger):
            digest.update(line)
            file.write(line)
        changed = digest.hexdigest() != existing
        if write and changed:
            file.flush()
            os.fsync(file.fileno())
            os.replace(file.name, path)
    return Transferred(changed, None, _head_of(line))


def import_file(where: Union[str, Path], path: Path, remembered: Optional[Head], write: bool) -> Transferred:
    """Make a ledger from a file, unless it is there already with the same head.

    The ledger must not exist or be empty. All or nothing; `Refusal` for a file that is not the whole and sound export
    of a ledger that contains ``remembered``.
    """
    try:
        before: Optional[Head] = Ledger(where).head()
    except NoLedger:
        before = None
    # Read before anything is made: an empty ledger that a bad file left behind would be taken for a new one.
    with _opened(path) as file:
        head = read_lines(str(path), file, remembered)
    if before not in (None, EMPTY, head):
        raise FdeError(
            Ledger(where).name,
            f"the ledger is not empty, its head is {before} and that of {path} is {head}",
            "Import into a ledger that does not exist yet",
        )
    if write and before != head:
        with _opened(path) as file:
            import_lines(Ledger.create(where), file, head)
    return Transferred(before != head, before, head)


def _head_of(line: bytes) -> Head:
    """Return the head that the last line of an export says."""
    return Head.parse(str(json.loads(line)["head"]))


def _digest_of(path: Path) -> Optional[str]:
    """Return the digest of an export that is there for its owner only, None where there is none."""
    if not path.exists() or path.stat().st_mode & 0o077:
        return None
    digest = hashlib.sha256()
    with _opened(path) as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    try:
        with path.open("rb") as file:
            yield file
    except OSError as failed:
        raise FdeError(
            str(path), f"it cannot be read: {failed.strerror}", "Name a file on the control node"
        ) from failed


@contextmanager
def _beside(path: Path) -> Iterator[IO[bytes]]:
    """Open a file beside ``path``, for its owner only, that is deleted unless it was renamed."""
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".ledger-", delete=False) as file:
            try:
                yield file
            finally:
                Path(file.name).unlink(missing_ok=True)
    except OSError as failed:
        raise FdeError(
            str(path), f"it cannot be written: {failed.strerror}", "Name a file in a directory that you can write to"
        ) from failed


@contextmanager
def _nowhere() -> Iterator[IO[bytes]]:
    with open(os.devnull, "wb") as file:
        yield file
