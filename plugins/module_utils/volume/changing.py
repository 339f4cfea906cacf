# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The steps that bring a volume from what it is to what is wanted, after it was shown to be the pinned one."""

from __future__ import annotations

from typing import Iterator

from ..errors import FdeError, Refusal, certain
from ..luks2 import enrolment
from ..luks2.method import Passphrase, Recovery, Tpm2
from .device import Device
from .found import Found
from .recovery import awaited, deferred, escrowed
from .steps import Action, Step, handover_step, keyslot_step
from .using import check_use, open_it, tidy, use
from .wanted import Wanted


def reconcile(found: Found, wanted: Wanted, device: Device) -> Iterator[Step]:
    adopting = found.pin is None or _unknown_header(found)
    if adopting:
        _check_adoptable(found, wanted, device)
    else:
        _check_same(found, wanted)
    certain(found.header).judgement.require(device.path)
    if found.mapping is not None and found.mapping.problems is not None:
        raise Refusal("active-table", f"/dev/mapper/{wanted.name}", found.mapping.problems, "Close it")
    check_use(found, device)
    yield from tidy(found)
    yield from _settle(found, wanted, adopting)
    waiting = awaited(found, wanted)
    if waiting is not None and found.mapping is None and not found.credentials.authority:
        # The only key is in the envelope. It goes out first, and then the opening fails, because nobody has it yet.
        yield handover_step(waiting, _retiring(found))
        yield Step(Action.OPEN, wanted.name)
        return
    yield from open_it(found, wanted)
    yield from _keyslots(found, wanted, device)
    # The boot learns the id of the adopted volume key.
    yield from use(found, wanted, configuring=adopting and wanted.boot)


def _unknown_header(found: Found) -> bool:
    """Whether the header is none of the pinned ones."""
    if found.pin is None or found.header is None:
        return True
    return found.header.digest not in found.pin.digests


def _check_adoptable(found: Found, wanted: Wanted, device: Device) -> None:
    changed = found.pin is not None
    if not wanted.adopt:
        raise Refusal(
            "header-changed",
            device.path,
            f"its LUKS2 header is not the one that is pinned for volume '{wanted.name}'",
            "Another program changed it, or somebody put another disk in its place. If it is yours, set adopt and give "
            "unlock_with a recovery key or passphrase that only you know",
        )
    # What is in use is somebody else's, as the root is; and no key was tried on a header that deviates.
    check_use(found, device)
    if found.header is None or found.header.defect is not None:
        raise FdeError(device.path, "it has no sound LUKS2 header to adopt", "Restore it from a backup of the header")
    if changed and found.pin is not None and found.header.uuid != found.pin.uuid:
        raise Refusal(
            "header-changed", device.path, "it is another volume than the pinned one", "Attach the right disk"
        )
    found.header.judgement.require(device.path)
    given = wanted.unlock_with
    if given is None or not found.credentials.by_unlock_with:
        raise FdeError(
            device.path,
            "nothing proves that the volume is yours" if given is None else "what unlock_with names does not open it",
            "Give unlock_with a recovery key, passphrase or key file that only you know and that opens it",
        )


def _check_same(found: Found, wanted: Wanted) -> None:
    """Raise ``FdeError`` where something is wanted that only a new volume can have."""
    pin, device = certain(found.pin), certain(found.device)
    if device.size < pin.size:
        raise Refusal(
            "device-shrunk", wanted.device, f"it had {pin.size} bytes and has {device.size}",
            "Attach the right disk",
        )  # fmt: skip
    for what, is_now, is_wanted in (
        ("profile", pin.profile, wanted.profile.name),
        ("journal", pin.journal, wanted.journal),
        ("file system", pin.file_system, wanted.file_system.value),
    ):
        if is_now != is_wanted:
            raise FdeError(
                wanted.device,
                f"volume '{wanted.name}' was made with {what} '{is_now}', and '{is_wanted}' is wanted",
                "Make a new volume and copy the data; this one keeps what it was made with",
            )


def _settle(found: Found, wanted: Wanted, adopting: bool) -> Iterator[Step]:
    """Finish what an interrupted change left behind, before anything else."""
    if adopting:
        yield Step(Action.ADOPT, wanted.device)
    elif found.torn:
        yield Step(Action.REDO, wanted.device)
    elif found.saved is not None or (found.pin is not None and found.pin.next is not None):
        yield Step(Action.SETTLE, wanted.device)


def _keyslots(found: Found, wanted: Wanted, device: Device) -> Iterator[Step]:
    header = certain(found.header)
    dead = [one.keyslot for one in header.enrolled if stale(found, wanted, one)]
    planned = enrolment.plan(header.enrolled, wanted.unlock, dead)
    waiting = awaited(found, wanted) if wanted.has(Recovery) and escrowed(found, wanted) is None else None
    retiring: tuple[enrolment.Enrolled, ...] = ()
    if waiting is not None or any(isinstance(method, Recovery) for method in planned.adds):
        planned, retiring = deferred(planned)
    if planned.changes:
        _check_authority(found, wanted, planned)
        yield keyslot_step(planned, retiring)
        yield Step(Action.STORE, device.path)
        yield Step(Action.READY, wanted.name)
    if waiting is not None:
        yield handover_step(waiting, retiring)


def _retiring(found: Found) -> tuple[enrolment.Enrolled, ...]:
    """Return the keyslots that go when the pending recovery key has arrived, as it is recorded."""
    pending, header = certain(certain(found.pin).pending), certain(found.header)
    return tuple(one for one in header.enrolled if header.fingerprints[one.keyslot] in pending.retiring)


def _check_authority(found: Found, wanted: Wanted, planned: enrolment.Plan) -> None:
    """Raise ``FdeError`` unless the change can be made. Removing alone takes no key where the escrowed one stays."""
    if found.credentials.authority or (
        not planned.adds and wanted.has(Recovery) and escrowed(found, wanted) is not None
    ):
        return
    made = None if found.pin is None else found.pin.pending or found.pin.escrow
    remedy = "Give unlock_with a recovery key, passphrase or key file"
    if made is not None and any(isinstance(method, Recovery) for method in planned.adds):
        remedy += ", or name the escrow certificates again that its recovery key was made for"
    raise FdeError(
        wanted.device,
        f"the unlock methods of volume '{wanted.name}' are to change, and nothing at hand opens it",
        remedy,
    )


def stale(found: Found, wanted: Wanted, one: enrolment.Enrolled) -> bool:
    """Return whether a keyslot looks like a wanted one but must be replaced.

    A recovery key counts only when it is in escrow for the wanted certificates, or on its way there: any other is lost,
    or another program's, or for those who are not to open the volume any more. A passphrase is stale when none of the
    wanted ones opens its keyslot. A TPM keyslot is so only when ``unlock_with`` is given: that the TPM does not open it
    now may be the state of the machine, and whoever gives another key says that it is not.
    """
    if isinstance(one.method, Recovery):
        kept = escrowed(found, wanted)
        return one.keyslot != (awaited(found, wanted) if kept is None else kept)
    if one.keyslot in found.credentials.proven:
        return False
    if isinstance(one.method, Passphrase):
        return True
    return isinstance(one.method, Tpm2) and wanted.unlock_with is not None and found.credentials.authority
