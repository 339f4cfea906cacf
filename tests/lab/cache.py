# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Things that are built once: a path named after the digest of the recipe it was built from."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import Callable, Iterator, Optional

from .process import LabError
from .progress import step

CHECKOUT = Path(__file__).resolve().parents[2]
BUILD = CHECKOUT / "build"


def digest(*parts: object) -> str:
    """Return a short digest of a recipe; files and folders count by their names, modes and content."""
    sha = hashlib.sha256()
    for part in parts:
        for chunk in _chunks(part):
            sha.update(len(chunk).to_bytes(8, "big") + chunk)
    return sha.hexdigest()[:12]


def _chunks(part: object) -> Iterator[bytes]:
    if not isinstance(part, Path):
        yield repr(part).encode()
    elif part.is_dir():
        for path in sorted(p for p in part.rglob("*") if "__pycache__" not in p.parts):
            yield str(path.relative_to(part)).encode()
            yield oct(path.lstat().st_mode).encode()
            yield os.readlink(path).encode() if path.is_symlink() else path.read_bytes() if path.is_file() else b""
    else:
        yield part.read_bytes()


@contextmanager
def lock(name: str) -> Iterator[None]:
    """Hold the lock ``name``, so that two programs of the lab never make the same thing at once."""
    BUILD.mkdir(parents=True, exist_ok=True)
    with open(BUILD / f".lock-{name}", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def place(name: str, recipe: str) -> Path:
    """Return ``build/NAME-RECIPE``, where ``cached`` keeps what it made, with the suffix of the name at its end."""
    stem, dot, suffix = name.partition(".")
    return BUILD / f"{stem}-{recipe}{dot}{suffix}"


def cached(what: str, name: str, recipe: str, make: Callable[[Path], None], keep: Optional[int] = None) -> Path:
    """Return the ``place`` of a thing, made first by ``make`` when it is not there.

    ``make`` gets a path of the same suffix that does not exist yet. It takes the final name only when it is complete.
    With ``keep`` only that many of this name stay, the newest; the others belong to earlier states of the code.
    """
    path = place(name, recipe)
    if path.exists():
        return path
    stem, dot, suffix = name.partition(".")
    with lock(stem):
        if path.exists():
            return path
        partial = path.with_name(f"partial-{path.name}")
        remove(partial)
        with step(f"building {what}"):
            make(partial)
        partial.rename(path)
        if keep is not None:
            known = sorted(BUILD.glob(f"{stem}-*{dot}{suffix}"), key=lambda each: each.stat().st_ctime, reverse=True)
            for old in known[keep:]:
                remove(old)
    return path


def _mount_points() -> list[Path]:
    """Where something is mounted (proc(5), mountinfo: the fifth field)."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return [Path(line.split()[4].encode().decode("unicode_escape")) for line in lines]


def remove(path: Path) -> None:
    """Delete a file or a folder, whether it exists or not; never what is mounted in it, which may be this machine's."""
    inside = [place for place in _mount_points() if path.absolute() in place.parents]
    if inside:
        raise LabError(f"{path} is not deleted: {inside[0]} is mounted in it; unmount that first")
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
