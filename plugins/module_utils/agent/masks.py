# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the upper layer of an overlay masks of the image, and whether an update of the image changed it below.

A file that an instance wrote stays what it is when the image is updated: of a program that was patched by the update it
would go on to run its own old copy. overlayfs does not notice. So the volume has a record beside the upper layer: the
root hash of the lower one, and of each masked file what it was there. When the root hash is another one, the files that
are different now are reported, and stay reported until the upper file is gone or the same as the lower one.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from dataclasses import asdict, dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, Callable, Iterable, Iterator, Mapping, Optional

from .machine import Machine
from .strategy_overlay import DATA, LOWER, UPPER

RECORD = "masked.json"
REPORT = "masks.json"
VERSION = 1
#: A record larger than this is not read: it is ours, but nothing that is read at boot has no bound.
_LIMIT = 64 << 20
#: The system runs while it is looked at: what was there a moment ago may be gone, or be something else.
_GONE = (FileNotFoundError, NotADirectoryError)


class Why(str, Enum):
    """Why a masked file is reported."""

    #: The image's file is another one than when the instance made its own.
    CHANGED = "changed"
    #: The image has got a file where the instance already had one.
    ADDED = "added"
    #: The instance made its own from the image's file, but when that was is not known: the machine lost power.
    UNRECORDED = "unrecorded"
    #: The instance hides the image's file, and of which image it once knew is not known: the record is gone.
    UNCOMPARED = "uncompared"


@dataclass(frozen=True)
class Entry:
    """A file of the upper layer that hides one of the lower layer.

    The identities cover type, owner, mode and content; ``upper`` is None for a file that was deleted (a whiteout).
    ``copied_up`` says that the lower one was there before: overlayfs copied it, or it was deleted. ``within`` is the
    directory that is hidden as a whole with this file in it, empty where there is none.
    """

    upper: Optional[str]
    lower: str
    copied_up: bool
    within: str = ""


@dataclass(frozen=True)
class Record:
    """What is kept in the volume: ``known`` maps paths to lower identities, ``reported`` to the reason."""

    root_hash: str
    known: Mapping[str, str] = field(default_factory=dict)
    reported: Mapping[str, Why] = field(default_factory=dict)

    def marshal(self) -> bytes:
        """Return the content of the record's file."""
        return json.dumps({"version": VERSION, **asdict(self)}, sort_keys=True).encode()

    @classmethod
    def unmarshal(cls, content: bytes) -> Optional[Record]:
        """Read a record, None when it is not one of this version: then nothing can be compared."""
        try:
            document = json.loads(content)
            if document["version"] != VERSION:
                return None
            reported = {str(path): Why(why) for path, why in document["reported"].items()}
            known = {str(path): str(identity) for path, identity in document["known"].items()}
            return cls(str(document["root_hash"]), known, reported)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return None


def compare(
    record: Optional[Record], root_hash: str, masked: Mapping[str, Entry], *, unreadable: bool = False
) -> Record:
    """Return the record after a look at all masked files, with everything that is to be reported in it.

    Where the record is ``unreadable``, every masked file is reported: each may hide one that an update changed.
    """
    if unreadable:
        differing = {path: Why.UNCOMPARED for path, entry in masked.items() if entry.upper != entry.lower}
        return Record(root_hash, {path: entry.lower for path, entry in masked.items()}, differing)
    if record is None:
        record = Record("")
    updated = record.root_hash != root_hash
    reported = {}
    for path, entry in masked.items():
        if entry.upper == entry.lower:
            continue
        why = record.reported.get(path)
        if updated and record.root_hash:
            why = _why(record.known, path, entry) or why
        if why is not None:
            reported[path] = why
    return Record(root_hash, {path: entry.lower for path, entry in masked.items()}, reported)


def _why(known: Mapping[str, str], path: str, entry: Entry) -> Optional[Why]:
    if path in known:
        return Why.CHANGED if known[path] != entry.lower else None
    # All that was in a directory when that was last seen hidden is known: what is not has come with the update.
    return Why.UNRECORDED if entry.copied_up and entry.within not in known else Why.ADDED


def keep(machine: Machine, tell: Callable[[str], None]) -> Record:
    """Look at all masked files, report what an update changed below them, and keep the record. Raises ``OSError``."""
    state = machine.paths.state
    place = state / UPPER / RECORD
    root_hash = machine.configuration.root_hash.hex()
    before, unreadable = _read(place)
    known = before.known if before is not None and before.root_hash == root_hash else {}
    found = dict(masked(state / UPPER / DATA, state / LOWER, known))
    after = compare(before, root_hash, found, unreadable=unreadable)
    if unreadable:
        tell(f"<4>the record {place} cannot be read: what an update changed below hidden files is not known")
    if after != before:
        _write(place, after.marshal())
    report = {"root_hash": root_hash, "masked": len(after.known), "outdated": dict(sorted(after.reported.items()))}
    _write(state / REPORT, json.dumps(report).encode())
    for path, why in sorted(after.reported.items()):
        tell(f"<4>/{path} is this instance's own and hides the image's file ({why.value})")
    tell(f"{len(after.known)} files of the image are hidden by this instance's own, {len(after.reported)} are outdated")
    return after


def masked(upper: Path, lower: Path, known: Mapping[str, str]) -> Iterator[tuple[str, Entry]]:
    """Yield the files of the upper layer that hide one of the lower layer, by their path without a leading slash.

    ``known`` are identities of files of this very lower layer, which need not be read again.
    """
    pending = [Path()]
    while pending:
        directory = pending.pop()
        try:
            with os.scandir(upper / directory) as entries:
                names = sorted(entry.name for entry in entries)
        except _GONE:
            continue
        # What is below a directory that replaces the lower one is hidden whether or not it has the same name.
        if _attribute(upper / directory, "trusted.overlay.opaque") == b"y":
            yield from _hiding(upper, lower, directory, known)
            found = (path for path in _files(lower, directory) if not os.path.lexists(upper / path))
            yield from _hidden(lower, directory, found, known)
        for name in names:
            path = directory / name
            if not os.path.lexists(lower / path):
                continue
            if not _is_directory(lower / path):
                yield from _hiding(upper, lower, path, known)
            elif _is_directory(upper / path):
                pending.append(path)
            else:
                # Deleted, or there is something else now, such as a link to a directory that has files of these names.
                yield from _hiding(upper, lower, path, known)
                yield from _hidden(lower, path, _files(lower, path), known)


def _hiding(upper: Path, lower: Path, path: Path, known: Mapping[str, str]) -> Iterator[tuple[str, Entry]]:
    """Yield the one upper file that hides the lower one of the same path, unless it is gone meanwhile."""
    try:
        mine = identity(upper / path)
    except _GONE:
        return
    copied_up = mine is None or _attribute(upper / path, "trusted.overlay.origin") is not None
    yield str(path), Entry(mine, _known(lower, path, known), copied_up)


def _hidden(
    lower: Path, directory: Path, files: Iterable[Path], known: Mapping[str, str]
) -> Iterator[tuple[str, Entry]]:
    """Yield lower files that have no upper one, because a directory above them is hidden."""
    for path in files:
        yield str(path), Entry(None, _known(lower, path, known), True, str(directory))


def _files(lower: Path, directory: Path) -> Iterator[Path]:
    """Yield all that is no directory below one of the lower layer."""
    for found, directories, files in os.walk(lower / directory):
        links = [name for name in directories if os.path.islink(os.path.join(found, name))]
        for name in sorted([*files, *links]):
            yield Path(found).relative_to(lower) / name


def _known(lower: Path, path: Path, known: Mapping[str, str]) -> str:
    return known.get(str(path)) or identity(lower / path) or ""


def identity(path: Path) -> Optional[str]:
    """Return a digest of what a file is: type, owner, mode and content; None for one that overlayfs says is deleted."""
    known = os.lstat(path)
    if stat.S_ISCHR(known.st_mode) and known.st_rdev == 0:
        return None
    digest = hashlib.sha256(f"{known.st_mode:o} {known.st_uid} {known.st_gid} {known.st_rdev}\0".encode())
    if stat.S_ISLNK(known.st_mode):
        digest.update(os.fsencode(os.readlink(path)))
    elif stat.S_ISREG(known.st_mode):
        with open(path, "rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()


def _is_directory(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _attribute(path: Path, name: str) -> Optional[bytes]:
    try:
        return os.getxattr(path, name, follow_symlinks=False)
    except OSError:
        return None


def _read(place: Path) -> tuple[Optional[Record], bool]:
    """Return the record, and whether there is one that cannot be read: damaged, too large, or of another version."""
    try:
        with open(place, "rb") as file:
            content = file.read(_LIMIT + 1)
    except FileNotFoundError:
        return None, False
    except OSError:
        return None, True
    record = Record.unmarshal(content) if len(content) <= _LIMIT else None
    return record, record is None


def _write(place: Path, content: bytes) -> None:
    temporary = place.with_name(f".{place.name}.new")
    with open(temporary, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, place)


def report(state: Path) -> Optional[dict[str, Any]]:
    """Return what was reported last, None where there is no overlay or nobody has looked yet."""
    try:
        found = json.loads((state / REPORT).read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None
