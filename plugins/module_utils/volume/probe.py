# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Finding out what a volume is now. Reads and tries keys on copies in RAM; changes nothing but files below /run."""

from __future__ import annotations

import hashlib
import os
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Callable, Iterator, Optional

from ..errors import FdeError, Refusal
from ..luks2 import keyslots
from ..luks2.area import HeaderArea, read_area
from ..luks2.change import draft
from ..luks2.digest import header_digest
from ..luks2.enrolment import enrolled
from ..luks2.header import HeaderError
from ..luks2.method import Passphrase, Tpm2
from ..luks2.policy import data_volume, judge
from ..luks2.profile import LAYOUT
from ..luks2.recovery_key import typed_recovery_key
from ..luks2.secret import descriptor_path, memory_file, wipe
from ..runner import Runner
from . import device as devices
from . import erasure, file_system, opening, persistence, storing
from . import pin as pins
from .device import Device
from .found import Credentials, Found, HeaderFound, MappingFound
from .machine import Machine, missing, missing_tpm
from .persistence import BootEntry
from .pin import Pin, PinState
from .recovery import fingerprints
from .strays import going_away, strays
from .wanted import State, UnlockWith, Wanted

#: How often, and every how many seconds, a device is looked at whose last user is going away.
_ATTEMPTS, _PAUSE = 40, 0.25


def probe(machine: Machine, wanted: Wanted, *, try_keys: bool = True) -> Found:
    """Return what there is of a volume. Raises ``FdeError`` when something cannot be read or understood.

    Without ``try_keys`` nothing is known of what opens it, which is enough to report on it.
    """
    places, runner = machine.places, machine.runner
    pin = pins.load(places.pin(wanted.name))
    device, left = _device(runner, wanted)
    disk = None if device is None else read_area(device.node, LAYOUT.offset)
    # What was about to be written counts, where it can still be finished; else what is on the disk.
    torn = None if disk is None or pin is None else storing.torn(places, pin, disk)
    header = _header(torn or disk, wanted, pin)
    mapping = _mapping(machine, wanted.name, pin, device)
    below = [] if mapping is None else [mapping.path, f"/dev/mapper/{wanted.name}"]
    ready, erasing = (pin is not None and pin.state is state for state in (PinState.READY, PinState.ERASING))
    try_keys &= (ready or wanted.adopt) and wanted.state not in (State.CLOSED, State.ERASED)
    return Found(
        device=device,
        pin=pin,
        header=header,
        saved=digest_of(places.saved(wanted.name), header_digest),
        torn=torn is not None,
        envelope=digest_of(places.envelope(wanted.name), lambda content: hashlib.sha256(content).digest()),
        marked=None if disk is None else erasure.marked(disk.content),
        zeroed=device is not None and erasing and erasure.ended(device.node, device.size),
        mapping=mapping,
        strays=left,
        file_system=file_system.identify(runner, mapping.path) if mapping is not None and ready else None,
        mounts=file_system.mounts(runner, below) if mapping is not None else (),
        at_mount_point=None if wanted.mount is None else file_system.mounted_at(runner, wanted.mount.path),
        mount_leads_to=None if wanted.mount is None else os.path.realpath(wanted.mount.path),
        credentials=_credentials(machine, wanted, header) if try_keys else Credentials(),
        differing_files=persistence.wanted_files(places, wanted.name, boot_entry(wanted, pin, device)).differing(
            places
        ),
        missing=missing(runner, wanted),
        no_tpm=missing_tpm(wanted.tpm2_device) if wanted.has_tpm2 else None,
    )


def _device(runner: Runner, wanted: Wanted) -> tuple[Optional[Device], tuple[str, ...]]:
    """Return the device, and what a killed program left set up on it.

    Where that is going away at this moment, its end is waited for: the kernel has no event for it. What uses the device
    counts only when it is still there at a second look.
    """
    for attempt in range(_ATTEMPTS):
        device = devices.probe(runner, wanted.device)
        left = () if device is None else strays(wanted.name, device.node)
        if device is None or device.use is None or left or (attempt and not going_away(device.node)):
            break
        time.sleep(_PAUSE)
    return device, left


def digest_of(path: Path, digest: Callable[[bytes], bytes]) -> Optional[str]:
    """Return the digest of a file's content as hexadecimal digits, None where there is no file."""
    return digest(path.read_bytes()).hex() if path.exists() else None


def _header(area: Optional[HeaderArea], wanted: Wanted, pin: Optional[Pin]) -> Optional[HeaderFound]:
    if area is None or not area.present:
        return None
    digest = area.digest.hex()
    try:
        header = area.header()
    except HeaderError as error:
        return HeaderFound(area, digest, defect=error.defect.value)
    uuid = None if pin is None else pin.uuid
    judgement = judge(header, data_volume(uuid=uuid, profile=wanted.profile, journal=wanted.journal))
    # The keyslots of a header that deviates are of no interest, and reading them is not safe.
    if not judgement.accepted:
        return HeaderFound(area, digest, header.uuid, None, judgement)
    return HeaderFound(area, digest, header.uuid, None, judgement, enrolled(header), fingerprints(area))


def _mapping(machine: Machine, name: str, pin: Optional[Pin], device: Optional[Device]) -> Optional[MappingFound]:
    mapping = machine.mapper.find(name)
    if mapping is None:
        return None
    problems = None
    if pin is not None and pin.state is PinState.READY:
        try:
            opening.check(machine.mapper, pin)
        except Refusal as refusal:
            problems = refusal.cause
    on_device = device is not None and opening.lies_on(machine.mapper, name, device.node)
    if problems is None and not on_device:
        problems = "it does not lie on the volume's device"
    return MappingFound(mapping.path, opening.mapping_uuid(mapping), on_device, problems)


def boot_entry(wanted: Wanted, pin: Optional[Pin], device: Optional[Device]) -> Optional[BootEntry]:
    """Return what the boot must know about a volume, None when it is nothing."""
    if wanted.state is State.ERASED or not wanted.boot:
        return None
    path = wanted.device
    if not devices.is_stable(path):
        # The volume's own UUID leads to it wherever the disk turns up.
        path = f"/dev/disk/by-uuid/{pin.uuid if pin is not None else 'new'}"
    return BootEntry(
        name=wanted.name,
        device=path,
        options=opening.options(
            wanted.name,
            tpm2=wanted.has_tpm2,
            tpm2_device=wanted.tpm2_device,
            key_id=None if pin is None else pin.volume_key_id,
            nofail=wanted.nofail,
        ),
        file_system=wanted.file_system.value,
        mount=wanted.mount,
        nofail=wanted.nofail,
        reads=wanted.read_at_boot,
    )


# What opens the volume


def _credentials(machine: Machine, wanted: Wanted, header: Optional[HeaderFound]) -> Credentials:
    if header is None or header.defect is not None or not header.judgement.accepted:
        return Credentials()
    machine.places.run.mkdir(mode=0o700, parents=True, exist_ok=True)
    proven = set()
    by_tpm = by_passphrase = by_unlock_with = False
    with draft(header.area, str(machine.places.run)) as copy, means(wanted) as given:
        for slot in header.enrolled:
            if _is_tried(slot, wanted) and keyslots.proves(machine.runner, copy.path, slot, given):
                proven.add(slot.keyslot)
                by_tpm |= isinstance(slot.method, Tpm2)
                by_passphrase |= isinstance(slot.method, Passphrase)
        if wanted.unlock_with is not None:
            with unlock_key(wanted.unlock_with) as key:
                by_unlock_with = _opens(machine, copy.path, key)
    return Credentials(frozenset(proven), by_tpm, by_unlock_with, by_passphrase)


def _is_tried(slot: keyslots.Enrolled, wanted: Wanted) -> bool:
    """Whether a keyslot is tried: the TPM needs nobody, a passphrase must be at hand."""
    return isinstance(slot.method, Tpm2) or (isinstance(slot.method, Passphrase) and wanted.passphrase is not None)


def _opens(machine: Machine, path: str, key: bytearray) -> bool:
    with memory_file(key) as secret:
        done = machine.runner.run(
            [
                *("cryptsetup", "open", "--test-passphrase", "--disable-external-tokens"),
                *("--key-file", descriptor_path(secret), path),
            ],
            pass_fds=(secret,),
            ok=(),
        )
    return done.status == 0


@contextmanager
def means(wanted: Wanted, recovery: Optional[bytearray] = None) -> Iterator[keyslots.Means]:
    """Yield what changes and proofs of keyslots need; the passphrase is overwritten afterwards."""
    passphrase = None if wanted.passphrase is None else bytearray(wanted.passphrase.encode())
    try:
        yield keyslots.Means(recovery=recovery, passphrase=passphrase, tpm2_device=wanted.tpm2_device)
    finally:
        if passphrase is not None:
            wipe(passphrase)


@contextmanager
def unlock_key(given: UnlockWith) -> Iterator[bytearray]:
    """Yield the bytes that ``unlock_with`` names; they are overwritten afterwards. Raises ``FdeError``."""
    if given.recovery_key is not None:
        key = typed_recovery_key(given.recovery_key.encode())
    elif given.passphrase is not None:
        key = bytearray(given.passphrase.encode())
    else:
        try:
            key = bytearray(Path(str(given.key_file)).read_bytes())
        except OSError as error:
            raise FdeError(str(given.key_file), f"it cannot be read: {error.strerror}", "Correct the path") from error
    try:
        yield key
    finally:
        wipe(key)
