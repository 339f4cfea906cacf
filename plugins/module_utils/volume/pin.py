# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The pin: what this system remembers about a data volume, in a file that the host's disk cannot forge.

It is written before anything is done to the device, so that whatever interrupts a creation leaves either nothing or a
volume that is known to be unfinished. A header counts only when its digest is the pin's current or next one.
"""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import asdict, dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any, Optional

from ..errors import FdeError

VERSION = 1


class PinState(str, Enum):
    """How far a volume is."""

    INITIALIZING = "initializing"
    READY = "ready"
    ERASING = "erasing"


@dataclass(frozen=True)
class Escrow:
    """A recovery key in escrow, or on its way there.

    ``digest`` is that of its envelope, ``keyslot`` the fingerprint of the keyslot that it opens, ``recipients`` the
    digest of the certificates that the envelope is for. ``retiring`` are the fingerprints of the keyslots that go when
    it has arrived.
    """

    digest: str
    keyslot: str = ""
    recipients: str = ""
    retiring: tuple[str, ...] = ()


@dataclass(frozen=True)
class Pin:
    """Digests and the volume key id are lower-case hexadecimal; ``size`` is that of the device in bytes,
    ``identity`` what names the device itself, whatever is written to it.

    ``escrow`` is the recovery key that the control node has stored and read back, ``pending`` one that it was or will
    be given.
    """

    name: str
    uuid: str
    device: str
    state: PinState
    profile: str
    journal: bool
    file_system: str
    size: int
    identity: tuple[str, ...] = ()
    current: Optional[str] = None
    next: Optional[str] = None
    volume_key_id: Optional[str] = None
    escrow: Optional[Escrow] = None
    pending: Optional[Escrow] = None

    @property
    def digests(self) -> tuple[str, ...]:
        """The headers that may be opened."""
        return tuple(digest for digest in (self.current, self.next) if digest is not None)

    def having(self, **changes: Any) -> Pin:
        """Return the pin with other values."""
        return replace(self, **changes)


def load(path: Path) -> Optional[Pin]:
    """Return the pin in a file, None when there is no file. Raises ``FdeError`` when it cannot be understood."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    try:
        values = json.loads(content)
        if values.pop("version") != VERSION:
            raise ValueError("another version")
        keys = {name: _escrow(values.pop(name, None)) for name in ("escrow", "pending")}
        identity = tuple(map(str, values.pop("identity", ())))
        return Pin(**{**values, **keys, "identity": identity, "state": PinState(values["state"])})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise FdeError(
            str(path), f"it is not a volume's state ({error})", "Restore it from a backup; without it adopt the volume"
        ) from error


def _escrow(values: Any) -> Optional[Escrow]:
    if values is None:
        return None
    texts = {name: str(values.get(name, "")) for name in ("digest", "keyslot", "recipients")}
    return Escrow(**texts, retiring=tuple(map(str, values.get("retiring", ()))))


def save(path: Path, pin: Pin) -> None:
    """Write the pin so that a power cut leaves the old one or the new one."""
    write(path, (json.dumps({"version": VERSION, **asdict(pin)}, indent=2, sort_keys=True) + "\n").encode(), 0o600)


def forget(path: Path) -> None:
    """Remove a file for good; none is fine."""
    path.unlink(missing_ok=True)
    if path.parent.is_dir():
        _sync_directory(path.parent)


def write(path: Path, content: bytes, mode: int = 0o644) -> None:
    """Replace a file at once: the old content or the new one, on the disk when this returns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    _sync_directory(path.parent)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
