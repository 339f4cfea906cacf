# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The recovery key of the root volume: made here, proven to unlock, and relied on once its envelope is kept elsewhere.

It takes two rounds. In the first a keyslot is added whose key leaves this machine only as an envelope; in the second,
when the envelope was stored and read back, the keyslot is recorded and older ones go. What interrupts the two leaves a
keyslot whose envelope may have been stored or not: nobody here knows. So the envelope is kept in the record until it is
confirmed, and the next first round hands the same one over again. Only a keyslot whose envelope is not at hand any more
gives way, and it does so for a new one beside the one that is in escrow.
"""

from __future__ import annotations

import base64
import hashlib
import json
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
from ..volume import pin as pins
from . import commit
from .machine import Machine

#: In the root itself, which the volume protects.
RECORD = Path("/etc/cvm-fde/root.json")
VERSION = 1
NAME = "root"


@dataclass(frozen=True)
class Slot:
    """A keyslot of a recovery key by what no other keyslot has, its salt, and the digest of the key's envelope.

    Until it is confirmed, ``content`` is the envelope itself (base64) and ``recipients`` tells whom it is for.
    """

    salt: str
    envelope: str
    content: str = ""
    recipients: str = ""


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


def recipients(host: str, certificates: Sequence[bytes]) -> str:
    """Return a digest of what an envelope names and is encrypted to; the order of certificates is nobody's concern."""
    return hashlib.sha256(b"\0".join([host.encode(), *sorted(set(certificates))])).hexdigest()


def current(machine: Machine, record: Record) -> Optional[Slot]:
    """Return the escrowed keyslot if the volume still has it."""
    return _there(commit.probe(machine).disk.header(), record.escrowed)


def waiting(machine: Machine, record: Record) -> Optional[Slot]:
    """Return the keyslot whose envelope the next first round hands over again: the one that was never confirmed.

    Whoever it is for: its envelope may have been stored, in the place of the one before.
    """
    pending = _there(commit.probe(machine).disk.header(), record.pending)
    return pending if pending is not None and pending.content else None


def add(machine: Machine, host: str, certificates: Sequence[bytes], path: Path = RECORD) -> Handover:
    """Carry out the first round: hand over what waits for it, else a new key. Raises ``FdeError``."""
    record = read(path)
    header = commit.probe(machine).disk.header()
    again = waiting(machine, record)
    if again is not None:
        return Handover(base64.b64decode(again.content), header.uuid)
    slots = _recovery_slots(header)
    known = [_salt(header, slot) for slot in slots]
    # The header has room for two. Of a keyslot that no record tells of, somebody may have the key.
    told = _there(header, record.escrowed) or _there(header, record.pending)
    kept = told.salt if told is not None else next(iter(known), None)
    stale = tuple(slot for slot in slots if _salt(header, slot) != kept)
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
            # Before the volume has it: a keyslot that no record tells of would be taken for somebody else's.
            changed = copy.area().header()
            [salt] = {_salt(changed, slot) for slot in _recovery_slots(changed)} - set(known)
            text = base64.b64encode(handover.envelope).decode()
            pending = Slot(salt, handover.digest, text, recipients(host, certificates))
            write(Record(record.escrowed, pending), path)

        commit.change(machine, edit)
    finally:
        wipe(key)
    return handover


def confirm(machine: Machine, digest: str, path: Path = RECORD) -> None:
    """Carry out the second round for the envelope with this digest, or what is left of it. Raises ``FdeError``."""
    record = read(path)
    if record.pending is None and record.escrowed is not None and record.escrowed.envelope == digest:
        return
    if record.pending is None or record.pending.envelope != digest:
        raise FdeError("recovery key", "the envelope that was kept is not the one of this machine", "Run it again")
    header = commit.probe(machine).disk.header()
    if _there(header, record.pending) is None:
        raise FdeError("recovery key", "its keyslot is gone", "Run it again")
    older = tuple(slot for slot in _recovery_slots(header) if _salt(header, slot) != record.pending.salt)

    def edit(copy: Draft) -> None:
        change_keyslots(machine.runner, copy.path, Plan(removes=older), ByTpm(machine.tcti), Means())

    if older:
        commit.change(machine, edit)
    write(Record(escrowed=Slot(record.pending.salt, record.pending.envelope)), path)


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
    """Replace what is recorded; it is on the disk when this returns, after a power cut the old one or the new one."""
    pins.write(path, json.dumps({"version": VERSION, **asdict(record)}).encode(), 0o600)


def _there(header: Header, slot: Optional[Slot]) -> Optional[Slot]:
    """Return the keyslot if the header has it."""
    salts = {_salt(header, found) for found in _recovery_slots(header)}
    return slot if slot is not None and slot.salt in salts else None


def _recovery_slots(header: Header) -> tuple[Enrolled, ...]:
    return tuple(slot for slot in enrolled(header) if isinstance(slot.method, Recovery))


def _salt(header: Header, slot: Enrolled) -> str:
    return str(header.metadata["keyslots"][str(slot.keyslot)]["kdf"]["salt"])
