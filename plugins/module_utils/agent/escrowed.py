# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The recovery key of the root volume: made here, proven to unlock, and relied on once its envelope is kept elsewhere.

It takes two rounds. In the first a keyslot is added whose key leaves this machine only as an envelope; in the second,
when the envelope was stored and read back, the keyslot is recorded and older ones go. A keyslot whose envelope was
never confirmed is of no use to anybody and goes at the next first round.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Optional, Sequence

from ..errors import FdeError
from ..escrow.envelope import Belonging, document, seal
from ..luks2.change import Draft
from ..luks2.header import Header
from ..luks2.keyslots import ByTpm, Enrolled, Means, Plan, Recovery, enrolled
from ..luks2.keyslots import change as change_keyslots
from ..luks2.recovery_key import new_recovery_key
from ..luks2.secret import wipe
from . import commit
from .machine import Machine

#: In the root itself, which the volume protects.
RECORD = Path("/etc/cvm-fde/root.json")
VERSION = 1
NAME = "root"


@dataclass(frozen=True)
class Slot:
    """A keyslot of a recovery key by what no other keyslot has, its salt, and the digest of the key's envelope."""

    salt: str
    envelope: str


@dataclass(frozen=True)
class Record:
    """What is known about recovery keys: the one that is escrowed, and one that waits for that."""

    escrowed: Optional[Slot] = None
    pending: Optional[Slot] = None


@dataclass(frozen=True)
class Handover:
    """What leaves the machine: the envelope (DER), and the header's UUID that it is for."""

    envelope: bytes
    luks_uuid: str

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.envelope).hexdigest()


def current(machine: Machine, record: Record) -> Optional[Slot]:
    """Return the escrowed keyslot if the volume still has it."""
    header = commit.probe(machine).disk.header()
    salts = {_salt(header, slot) for slot in _recovery_slots(header)}
    return record.escrowed if record.escrowed is not None and record.escrowed.salt in salts else None


def add(machine: Machine, host: str, certificates: Sequence[bytes], path: Path = RECORD) -> Handover:
    """Carry out the first round. Raises ``FdeError``."""
    record = read(path)
    header = commit.probe(machine).disk.header()
    kept = record.escrowed.salt if record.escrowed else None
    stale = tuple(slot for slot in _recovery_slots(header) if _salt(header, slot) != kept)
    known = {_salt(header, slot) for slot in _recovery_slots(header)}
    key = new_recovery_key()
    try:
        content = document(key, Belonging(host, NAME, header.uuid))
        try:
            handover = Handover(seal(machine.runner, content, certificates), header.uuid)
        finally:
            wipe(content)

        def edit(copy: Draft) -> None:
            planned = Plan(adds=(Recovery(),), removes=stale)
            means = Means(recovery=key, tpm2_device=machine.tcti)
            change_keyslots(machine.runner, copy.path, planned, ByTpm(machine.tcti), means)

        commit.change(machine, edit)
    finally:
        wipe(key)
    header = commit.probe(machine).disk.header()
    [salt] = {_salt(header, slot) for slot in _recovery_slots(header)} - known
    write(Record(record.escrowed, Slot(salt, handover.digest)), path)
    return handover


def confirm(machine: Machine, digest: str, path: Path = RECORD) -> None:
    """Carry out the second round for the envelope with this digest. Raises ``FdeError``."""
    record = read(path)
    if record.pending is None or record.pending.envelope != digest:
        raise FdeError("recovery key", "the envelope that was kept is not the one of this machine", "Run it again")
    header = commit.probe(machine).disk.header()
    slots = _recovery_slots(header)
    if record.pending.salt not in {_salt(header, slot) for slot in slots}:
        raise FdeError("recovery key", "its keyslot is gone", "Run it again")
    older = tuple(slot for slot in slots if _salt(header, slot) != record.pending.salt)

    def edit(copy: Draft) -> None:
        change_keyslots(machine.runner, copy.path, Plan(removes=older), ByTpm(machine.tcti), Means())

    if older:
        commit.change(machine, edit)
    write(Record(escrowed=record.pending), path)


def read(path: Path = RECORD) -> Record:
    """Return what is recorded. Raises ``FdeError`` when the file cannot be understood."""
    try:
        found: Any = json.loads(path.read_text())
        if found["version"] != VERSION:
            raise ValueError("another version")
        return Record(*(Slot(**found[name]) if found[name] else None for name in ("escrowed", "pending")))
    except FileNotFoundError:
        return Record()
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FdeError(
            str(path), f"it cannot be read: {error}", "Remove it; then a new recovery key is made"
        ) from error


def write(record: Record, path: Path = RECORD) -> None:
    """Replace what is recorded; after a power cut the file is the old one or the new one."""
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    new = path.with_suffix(".new")
    with open(new, "w") as file:
        json.dump({"version": VERSION, **asdict(record)}, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(new, path)


def _recovery_slots(header: Header) -> tuple[Enrolled, ...]:
    return tuple(slot for slot in enrolled(header) if isinstance(slot.method, Recovery))


def _salt(header: Header, slot: Enrolled) -> str:
    return str(header.metadata["keyslots"][str(slot.keyslot)]["kdf"]["salt"])
