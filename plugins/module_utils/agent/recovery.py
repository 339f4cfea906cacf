# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The one way on that a refused boot offers, where the image allows it: the recovery key, typed at the console.

First of all the recovery is measured into PCR 15, before any volume key: no verifier takes this boot for an ordinary
one. The volume is opened for reading only, from a copy of its header that the allow-list accepts, and what does not
match is shown. What a power cut left in dm-integrity's journal the kernel writes to its place even so (Linux
drivers/md/dm-integrity.c, dm_integrity_resume). Only a typed "yes" changes anything else: the volume gets a keyslot of
this TPM and evidence of its recovery, the anchor pins it again, and the machine starts anew. Nothing else ever runs in
this boot.
"""

from __future__ import annotations

import json
import re
import uuid
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any, Iterator, Mapping, Optional

from ..codes import RECOVERABLE
from ..dm import clone
from ..errors import FdeError, Refusal
from ..luks2 import keyslots
from ..luks2.area import HeaderArea
from ..luks2.change import draft, redo
from ..luks2.keyslots import ByKey, Means, Plan, Recovery, Tpm2, enrolled
from ..luks2.mending import mended, without_half_enrolments
from ..luks2.policy import judge
from ..luks2.recovery_key import typed_recovery_key
from ..luks2.secret import wipe
from ..luks2.volume import attach_for_reading, check_active, detach, import_token
from ..runner import CommandError
from ..tpm import anchor as anchors
from ..tpm.anchor import Anchor, Found, State
from ..tpm.esys import opened
from ..tpm.keys import attestation_key
from ..tpm.policy import BOUND_PCRS, PolicyError, bound_values
from . import anchoring, commit, disks, evidence, probe
from . import configuration as configurations
from .decision import decide
from .dialogue import Dialogue
from .differences import contents
from .esp import efi_partition
from .machine import VOLUME, Machine
from .measuring import measure, measured
from .mounting import mounted
from .opening import VOLUME_KEY_PCR, expected
from .strategies import ROOTS
from .strategy_overlay import UPPER_DEVICE

#: What is measured, with the code of the refusal behind it.
EVENT = "cvm-fde-recovery"
TRIES = 3
_YES = "yes"


@dataclass(frozen=True)
class Patient:
    """The volume that shall be recovered: its header, read once, and what the TPM and the header say of it."""

    code: str
    area: HeaderArea
    #: Whether another program was cut off while it wrote the header, which is mended in memory.
    torn: bool
    found: Found
    evidence: Mapping[str, evidence.Found]

    @property
    def anchor(self) -> Optional[Anchor]:
        return self.found.anchor


def offered(machine: Machine, error: FdeError) -> bool:
    """Tell whether the image lets a boot that was refused for this reason be recovered."""
    allowed = machine.configuration.recovery is configurations.Recovery.CONSOLE
    return allowed and isinstance(error, Refusal) and error.code in tuple(RECOVERABLE)


def recover(machine: Machine, refusal: Refusal, person: Dialogue) -> bool:
    """Offer the recovery of a refused boot and tell whether it was carried out; then the machine must start anew.

    Raises ``FdeError`` where it cannot be done. Unless it returns True, the anchor is as it was, and so is what the
    volume holds.
    """
    machine.paths.state.mkdir(mode=0o700, parents=True, exist_ok=True)
    begin(machine, refusal.code)
    patient = examine(machine, refusal.code)
    person.tell(f"Recovery of volume {patient.area.header().uuid} on {patient.area.device}")
    for line in contents(patient.area):
        person.tell(f"  {line}")
    if patient.torn:
        person.tell("  another program was cut off while it wrote this header: what it had not finished is left out")
    person.tell("Whoever owns this console can see what is typed here: change the recovery key afterwards.")
    key = _key(machine, patient, person)
    if key is None:
        return False
    try:
        with opened_read_only(machine, patient, key) as key_id:
            for line in findings(machine, patient, key_id):
                person.tell(f"  {line}")
        person.tell(
            "Trust the volume as it is from now on? It may be older than it was, or changed by whoever has the key."
        )
        if person.ask(f"Type '{_YES}' to do so, anything else to leave all as it is:") != _YES:
            return False
        reanchor(machine, patient, key, key_id)
        return True
    finally:
        wipe(key)


def begin(machine: Machine, code: str) -> None:
    """Measure into PCR 15 that a recovery begins. Raises ``FdeError``: what is not measured is not done."""
    measure(machine.runner, VOLUME_KEY_PCR, f"{EVENT}:{code}", machine.paths.measurements)


def examine(machine: Machine, code: str) -> Patient:
    """Look again at what was refused.

    Raises ``FdeError`` where there is not one volume with a header that is allowed, or the TPM would not let the
    recovery be finished. The policy key of the TPM's keyslot is not asked for: that keyslot is replaced.
    """
    _check_phase(machine)
    found = anchoring.look(machine)
    look = probe.look(machine.configuration, found, disks.survey())
    decided = decide(look.probed)
    if isinstance(decided, Refusal) and decided.code not in tuple(RECOVERABLE):
        raise decided
    if not look.probed.volumes:
        raise FdeError(
            look.choice.volume.device, "there is no volume to recover on it", "Attach the machine's own disk"
        )
    on_disk = look.areas[look.probed.volumes[0].device]
    area = without_half_enrolments(mended(on_disk))
    judge(area.header(), replace(expected(machine), tpm2=None)).require(area.device)
    if not any(isinstance(slot.method, Recovery) for slot in enrolled(area.header())):
        raise FdeError(area.device, "its header has no recovery key", "Deploy the image again; the volume is lost")
    return Patient(code, area, area is not on_disk, found, evidence.found(area.header()))


def _check_phase(machine: Machine) -> None:
    """Raise ``FdeError`` where neither a keyslot nor the anchor could be made: then nobody is asked for a key."""
    try:
        anchoring.require_writable(machine)
    except PolicyError as error:
        raise FdeError(
            error.subject,
            f"no recovery is possible in this boot: {error.cause}",
            "Start the machine again; if that does not help, look for what else extends this PCR",
        ) from error


def _key(machine: Machine, patient: Patient, person: Dialogue) -> Optional[bytearray]:
    """Return the recovery key once one is typed that opens the volume, None after the last try."""
    # Two, where a rotation was never confirmed.
    slots = [slot for slot in enrolled(patient.area.header()) if isinstance(slot.method, Recovery)]
    for left in reversed(range(TRIES)):
        typed = person.ask_secret("Recovery key (it is not shown):")
        try:
            key = typed_recovery_key(typed)
        except FdeError as error:
            person.tell(f"{error.cause}; {left} tries are left")
            continue
        finally:
            wipe(typed)
        with draft(patient.area, str(machine.paths.state)) as copy:
            if any(keyslots.proves(machine.runner, copy.path, slot, Means(recovery=key)) for slot in slots):
                return key
        wipe(key)
        person.tell(f"it does not open the volume; {left} tries are left")
    return None


@contextmanager
def opened_read_only(machine: Machine, patient: Patient, key: bytearray) -> Iterator[bytes]:
    """Open the volume for reading, from the header that was judged, and yield the id of its key as it was measured."""
    machine.paths.header.unlink(missing_ok=True)
    patient.area.store(str(machine.paths.header))
    before = len(measured(machine.paths.measurements, VOLUME_KEY_PCR))
    attach_for_reading(machine.runner, VOLUME, patient.area.device, header=str(machine.paths.header), secret=key)
    try:
        check_active(machine.mapper, VOLUME)
        keys = measured(machine.paths.measurements, VOLUME_KEY_PCR)[before:]
        if len(keys) != 1:
            raise FdeError(VOLUME, f"its key was not measured into PCR {VOLUME_KEY_PCR}", "Check the TPM")
        yield keys[0]
    finally:
        clone.disassemble(machine.mapper)
        machine.mapper.remove_all(UPPER_DEVICE)
        detach(machine.runner, VOLUME)


def findings(machine: Machine, patient: Patient, key_id: bytes) -> Iterator[str]:
    """Yield what matches and what does not. Raises ``FdeError`` when the volume is another one than the anchor's."""
    yield f"refused as {patient.code}; header {patient.area.digest.hex()}"
    anchor = patient.anchor
    if anchor is None:
        yield f"the anchor is {patient.found.standing.value}: nothing says which header was the last"
        yield f"the image's security version is {machine.configuration.svn}: nothing says with which the machine ran"
    else:
        for name, digest in (("now", anchor.header_current), ("before", anchor.header_previous)):
            yield f"anchored {name}: {digest.hex()}{' (this one)' if digest == patient.area.digest else ''}"
        if key_id != anchor.volume_key_id:
            raise FdeError(
                patient.area.device, "its key is not the one that the TPM remembers", "Deploy the image again"
            )
        yield "the volume key is the one that the TPM remembers"
    yield from _origin(machine, patient, key_id)
    yield _file_system(machine, patient)


def _origin(machine: Machine, patient: Patient, key_id: bytes) -> Iterator[str]:
    """Compare the volume with the evidence of its creation, which nobody has verified here."""
    creation = patient.evidence.get(evidence.CREATION)
    if creation is None:
        raise FdeError(patient.area.device, "it has no evidence of its creation", "Deploy the image again")
    expected = {"volume_key_id": key_id.hex(), "luks_uuid": patient.area.header().uuid}
    differing = [name for name, value in expected.items() if creation.claims.get(name) != value]
    any_image = ROOTS[machine.configuration.strategy].any_image
    differing += evidence.differing(creation, machine.configuration, any_image=any_image)
    if differing:
        raise FdeError(
            patient.area.device,
            f"the evidence of its creation is for another {', '.join(differing)}",
            "It is not a volume of this image; deploy the image again",
        )
    if evidence.differing(creation, machine.configuration, any_image=False):
        yield f"the evidence of the volume's creation is for this key and another image: {_root_hash(creation)}"
    else:
        yield "the evidence of the volume's creation is for this key and this image"
    with opened(machine.tcti) as esys, attestation_key(esys) as key:
        same = creation.key == key.public
    yield "the evidence was made by this TPM" if same else "the evidence was made by another TPM"


def _root_hash(creation: evidence.Found) -> str:
    """Return the root hash of a claim that nobody has verified."""
    claimed = str(creation.claims.get("root_hash"))
    return f"root hash {claimed}" if re.fullmatch("[0-9a-f]{64}", claimed) else "its root hash is none"


def _file_system(machine: Machine, patient: Patient) -> str:
    """Mount what the volume holds, for reading, and say what it is."""
    complete = patient.anchor is not None and patient.anchor.complete
    device = ROOTS[machine.configuration.strategy].mountable(machine, complete)
    if device is None:
        return "part of the root may still be on the image, so the volume alone is not mounted; it is authentic"
    for kind, options in (("ext4", "ro,noload"), ("xfs", "ro,norecovery"), ("btrfs", "ro,rescue=nologreplay")):
        with suppress(CommandError), mounted(machine.runner, device, kind, options):
            return f"it holds a file system of type {kind} that can be mounted"
    raise FdeError(device, "it holds no file system that can be mounted", "Restore the newest state of the disk")


def reanchor(machine: Machine, patient: Patient, key: bytearray, key_id: bytes) -> None:
    """Give the volume a keyslot of this TPM and evidence of the recovery, and pin it.

    A power cut before the anchor is written leaves what was there; afterwards the boot writes the new header from its
    copy. Raises ``FdeError``.
    """
    earlier = patient.evidence.get(evidence.RECOVERY)
    told = (patient.anchor.recoveries if patient.anchor else 0, earlier and earlier.claims.get("recoveries"))
    recoveries = max(map(_count, told)) + 1
    with draft(patient.area, str(machine.paths.state)) as copy:
        slots = enrolled(patient.area.header())
        gone = tuple(slot for slot in slots if isinstance(slot.method, Tpm2))
        binding = Tpm2(BOUND_PCRS, machine.public_key)
        plan = Plan(adds=(binding,), removes=gone)
        keyslots.change(machine.runner, copy.path, plan, ByKey(key), Means(recovery=key, tpm2_device=machine.tcti))
        _prove_recovery(machine, copy.path, patient, key_id, recoveries)
        new = copy.area()
    judge(new.header(), expected(machine)).require(new.device)
    anchor = replace(
        (patient.anchor or Anchor(State.READY)).refused(patient.code),
        state=State.READY,
        header_current=bytes(32),
        header_next=new.digest,
        volume_key_id=key_id,
        recoveries=recoveries,
    )
    efi_partition(machine.runner, machine.configuration).write(commit.SAVED, new.content)
    anchoring.start(machine, replace(anchor, svn=max(anchor.svn, machine.configuration.svn)))
    redo(new.device, new)
    commit.settle(machine, new)


def _prove_recovery(machine: Machine, path: str, patient: Patient, key_id: bytes, recoveries: int) -> None:
    """Leave evidence of this recovery in the draft, in the place of an earlier one's."""
    with opened(machine.tcti) as esys:
        name = anchors.anchor_name(machine.key, bound_values(esys))
        recovery = evidence.Recovery(VOLUME, key_id, uuid.UUID(patient.area.header().uuid), patient.code, recoveries)
        token = json.loads(evidence.token(esys, evidence.recovery_claims(recovery, machine.configuration, name)))
    earlier = patient.evidence.get(evidence.RECOVERY)
    import_token(machine.runner, path, token, token_id=earlier.number if earlier else None)


def _count(value: Any) -> int:
    """Return a number from a place that the host can write to; what is none counts for nothing."""
    return value if type(value) is int and 0 <= value < 1 << 31 else 0
