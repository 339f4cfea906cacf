# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The decision about a data volume, row by row: nothing is destroyed that is not known to be the volume's own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Optional

import pytest
from ansible_collections.cvm.fde.plugins.module_utils.errors import FdeError, Refusal
from ansible_collections.cvm.fde.plugins.module_utils.luks2.area import HeaderArea
from ansible_collections.cvm.fde.plugins.module_utils.luks2.enrolment import Enrolled
from ansible_collections.cvm.fde.plugins.module_utils.luks2.method import Passphrase, Recovery, Tpm2
from ansible_collections.cvm.fde.plugins.module_utils.luks2.policy import Judgement, Reason, Violation
from ansible_collections.cvm.fde.plugins.module_utils.luks2.profile import CONFIDENTIAL
from ansible_collections.cvm.fde.plugins.module_utils.volume.device import Device, Signature
from ansible_collections.cvm.fde.plugins.module_utils.volume.file_system import Mounted
from ansible_collections.cvm.fde.plugins.module_utils.volume.found import (
    Credentials,
    Found,
    HeaderFound,
    MappingFound,
)
from ansible_collections.cvm.fde.plugins.module_utils.volume.pin import Escrow, Pin, PinState
from ansible_collections.cvm.fde.plugins.module_utils.volume.plan import plan
from ansible_collections.cvm.fde.plugins.module_utils.volume.recovery import recipients
from ansible_collections.cvm.fde.plugins.module_utils.volume.steps import Action
from ansible_collections.cvm.fde.plugins.module_utils.volume.wanted import (
    FileSystemType,
    Mount,
    State,
    UnlockWith,
    Wanted,
)

UUID = "6a2f0e55-5b7e-4d0e-9d59-1c2f35e7a001"
OTHER = "00000000-1111-4222-8333-444444444444"
SIZE = 10 << 30
CURRENT, NEXT, FOREIGN = "aa" * 32, "bb" * 32, "cc" * 32

DEVICE = Device("/dev/disk/by-id/virtio-DATA1", "/dev/vdb", SIZE, 512, ids=("DATA1",))
LUKS = Signature("crypto_LUKS", "crypto", UUID)
TPM = Enrolled(Tpm2((7,)), 1, 0)
RECOVERY = Enrolled(Recovery(), 2, 1)
PASSPHRASE = Enrolled(Passphrase(), 3)
PIN = Pin(
    name="data",
    uuid=UUID,
    device=DEVICE.path,
    state=PinState.READY,
    profile="authenticated",
    journal=True,
    file_system="ext4",
    size=SIZE,
    current=CURRENT,
)
WANTED = Wanted("data", DEVICE.path, mount=Mount("/srv/data"), unlock=(Tpm2((7,)),))
MAPPING = MappingFound("/dev/dm-1", UUID)
#: What the kernel shows of a mount without options.
SHOWN = ("rw", "relatime", "stripe=8")
BY_TPM = Credentials(frozenset({1}), by_tpm=True)
KEY = UnlockWith(recovery_key="x")
NULL_CIPHER = Judgement((Violation(Reason.NULL_CIPHER, "segments.0", "null"),))


def header(digest: str = CURRENT, *enrolled: Enrolled, **other: Any) -> HeaderFound:
    area = HeaderArea(DEVICE.path, b"")
    slots = enrolled or (TPM,)
    found: dict[str, Any] = {"uuid": UUID, "enrolled": slots, "fingerprints": {one.keyslot: mark(one) for one in slots}}
    return HeaderFound(area, digest, **{**found, **other})


def mark(slot: Enrolled) -> str:
    """The fingerprint of a keyslot as this collection made it."""
    return f"{slot.keyslot:02x}" * 32


def volume(**other: Any) -> Found:
    """A volume that is ready and closed, and that the TPM opens."""
    found: dict[str, Any] = {
        "device": replace(DEVICE, signatures=(LUKS,), unknown_data=True),
        "pin": PIN,
        "header": header(),
        "credentials": BY_TPM,
    }
    return Found(**{**found, **other})


def used(**other: Any) -> Found:
    """The same, open and mounted."""
    device = replace(DEVICE, signatures=(LUKS,), use="/dev/dm-0 is set up on it")
    return volume(**{"device": device, "mapping": MAPPING, "mounts": (Mounted("/srv/data", SHOWN),), **other})


#: A killed program left something set up on it.
STRAY = replace(DEVICE, signatures=(LUKS,), use="/dev/dm-0 is set up on it")


def actions(found: Found, wanted: Wanted) -> str:
    return " ".join(step.action.value for step in plan(found, wanted).steps)


CREATION = "pin clear format change-keyslots open make-file-system store ready"


@pytest.mark.parametrize(
    ("found", "wanted", "expected"),
    [
        (Found(DEVICE), WANTED, f"{CREATION} mount"),
        (Found(DEVICE, differing_files=("/etc/fstab",)), WANTED, f"{CREATION} configure mount"),
        (Found(DEVICE), replace(WANTED, state=State.OPEN), CREATION),
        (
            Found(DEVICE),
            replace(WANTED, state=State.OPEN, mount=None, file_system=FileSystemType.NONE),
            CREATION.replace("make-file-system ", ""),
        ),
        (Found(DEVICE), replace(WANTED, state=State.CLOSED), ""),
        (Found(DEVICE), replace(WANTED, state=State.ERASED), ""),
        (Found(None), replace(WANTED, state=State.CLOSED), ""),
        (Found(None), replace(WANTED, state=State.ERASED), ""),
        (volume(), WANTED, "open mount"),
        (volume(), replace(WANTED, state=State.OPEN), "open"),
        (volume(), replace(WANTED, state=State.CLOSED), ""),
        (used(), WANTED, ""),
        (used(), replace(WANTED, state=State.OPEN), "unmount"),
        (used(), replace(WANTED, state=State.CLOSED), "unmount close"),
        (used(mounts=(Mounted("/old"),)), WANTED, "unmount mount"),
        (used(), replace(WANTED, mount=Mount("/srv/data", ("ro", "noexec"))), "remount"),
        (used(), replace(WANTED, mount=Mount("/srv/data", ("defaults", "x-systemd.growfs"))), ""),
        (used(mounts=(Mounted("/srv/data", ("ro", "noatime")),)), WANTED, "remount"),
        (volume(strays=("data_dif",), device=STRAY), WANTED, "close open mount"),
        (volume(strays=("data_dif",), device=STRAY), replace(WANTED, state=State.CLOSED), "close"),
        (used(mounts=()), WANTED, "mount"),
        (used(differing_files=("/etc/crypttab",)), WANTED, "configure"),
        (used(), replace(WANTED, state=State.ERASED), "unmount close pin destroy discard forget"),
        (volume(), replace(WANTED, state=State.ERASED), "pin destroy discard forget"),
        (volume(pin=PIN.having(next=NEXT)), WANTED, "settle open mount"),
        (volume(saved=FOREIGN), WANTED, "settle open mount"),
        (volume(pin=PIN.having(next=NEXT), saved=NEXT, torn=True, header=header(NEXT)), WANTED, "redo open mount"),
        (used(), replace(WANTED, unlock=(Tpm2((7,)), Passphrase()), passphrase="x"), "change-keyslots store ready"),
        (used(header=header(CURRENT, TPM, PASSPHRASE)), WANTED, "change-keyslots store ready"),
    ],
)
def test_the_steps_lead_from_what_is_to_what_is_wanted(found: Found, wanted: Wanted, expected: str) -> None:
    assert actions(found, wanted) == expected


CONTENTS = {
    "file system": (Signature("ext4", "filesystem", OTHER, "accounts"),),
    "partition table": (Signature("gpt", "partition-table"),),
    "somebody's LUKS": (Signature("crypto_LUKS", "crypto", OTHER),),
    "RAID member": (Signature("linux_raid_member", "raid", OTHER),),
    "unheard-of": (Signature("unheard-of"),),
    "several": (Signature("gpt", "partition-table"), Signature("LVM2_member", "raid", OTHER)),
}
SOMEBODYS = replace(DEVICE, signatures=CONTENTS["somebody's LUKS"])
INITIALIZING = PIN.having(state=PinState.INITIALIZING, current=None)
ERASING = PIN.having(state=PinState.ERASING)
KNOWN = replace(DEVICE, identity=("DATA1",))


@pytest.mark.parametrize("signatures", CONTENTS.values(), ids=CONTENTS)
@pytest.mark.parametrize("pin", [None, INITIALIZING], ids=["unknown", "unfinished"])
@pytest.mark.parametrize("force", [None, "", "DATA2", "/dev/vdb", OTHER[:-1]])
def test_what_somebody_made_is_named_and_stays(
    signatures: tuple[Signature, ...], pin: Optional[Pin], force: Optional[str]
) -> None:
    found = Found(replace(DEVICE, signatures=signatures), pin)
    with pytest.raises(Refusal) as caught:
        plan(found, replace(WANTED, force=force))
    assert caught.value.code == "volume-has-data"
    assert all(one.type in str(caught.value) for one in signatures)


@pytest.mark.parametrize("force", ["DATA1", OTHER])
def test_force_that_names_the_device_or_its_content_gives_it_up(force: str) -> None:
    found = Found(replace(DEVICE, signatures=CONTENTS["file system"]))
    assert actions(found, replace(WANTED, force=force)) == f"{CREATION} mount"


def test_unknown_data_stay_unless_they_are_marked_as_the_unfinished_volume() -> None:
    dirty = replace(DEVICE, unknown_data=True)
    assert actions(Found(dirty, INITIALIZING, marked=UUID), WANTED) == f"{CREATION} mount"
    for found in (
        Found(dirty),
        Found(dirty, marked=UUID),
        Found(dirty, INITIALIZING),
        Found(dirty, INITIALIZING, marked=OTHER),
        # The same number on another disk, and another disk of the same content.
        Found(dirty, INITIALIZING.having(identity=("DATA1",))),
        Found(replace(dirty, identity=("DATA2",)), INITIALIZING.having(identity=("DATA1",)), marked=UUID),
        Found(replace(dirty, size=SIZE + 512), INITIALIZING, marked=UUID),
    ):
        with pytest.raises(Refusal, match="unknown data"):
            plan(found, WANTED)


@pytest.mark.parametrize(
    ("found", "uuid"),
    [
        (Found(DEVICE), None),
        (Found(DEVICE, INITIALIZING), None),
        (Found(DEVICE, INITIALIZING.having(identity=("DATA1",)), marked=UUID), None),
        (Found(replace(DEVICE, signatures=CONTENTS["file system"]), INITIALIZING, marked=UUID), None),
        (Found(replace(DEVICE, unknown_data=True), INITIALIZING, marked=OTHER), None),
        (Found(replace(DEVICE, unknown_data=True), marked=UUID), None),
        (Found(replace(DEVICE, unknown_data=True), INITIALIZING, marked=UUID), UUID),
        (Found(replace(DEVICE, signatures=(LUKS,)), INITIALIZING), UUID),
    ],
    ids=["blank", "blank again", "another disk", "used since", "another mark", "no pin", "its mark", "its header"],
)
def test_an_unfinished_volume_keeps_its_uuid_because_the_device_names_it_until_the_next_mark(
    found: Found, uuid: Optional[str]
) -> None:
    [pinned] = [step for step in plan(found, replace(WANTED, force="DATA1")).steps if step.action is Action.PIN]
    assert (pinned.subject, pinned.uuid) == ("initializing", uuid)


def test_a_creation_that_was_killed_is_tidied_up_first() -> None:
    strays = ("temporary-cryptsetup-41", "temporary-cryptsetup-41_dif")
    found = Found(replace(STRAY, signatures=(), unknown_data=True), INITIALIZING, strays=strays, marked=UUID)
    assert actions(found, WANTED) == f"close close {CREATION} mount"
    assert [step.subject for step in plan(found, WANTED).steps[:2]] == list(strays)


@pytest.mark.parametrize("force", ["DATA1", "/dev/vdb"])
def test_an_encrypted_volume_is_given_up_by_its_own_uuid_only(force: str) -> None:
    """A play that names the disk may still be there when what the machine knew of the volume is lost."""
    found = Found(SOMEBODYS, header=header(FOREIGN, uuid=OTHER))
    with pytest.raises(Refusal, match=f"Set force to one of {OTHER} if"):
        plan(found, replace(WANTED, force=force))
    assert actions(found, replace(WANTED, force=OTHER)) == f"{CREATION} mount"


def test_nothing_is_begun_without_the_tpm_that_a_new_keyslot_needs() -> None:
    for found in (Found(DEVICE), used(credentials=OPENED)):
        with pytest.raises(FdeError, match="there is no TPM"):
            plan(replace(found, no_tpm="/dev/tpmrm0"), replace(WANTED, unlock_with=KEY))
    assert actions(used(no_tpm="/dev/tpmrm0"), WANTED) == ""


OPENED = Credentials(by_unlock_with=True)


@pytest.mark.parametrize("uuid", [UUID, None])
def test_an_unfinished_volume_is_made_anew_whatever_its_own_header_says(uuid: Optional[str]) -> None:
    device = replace(DEVICE, signatures=(Signature("crypto_LUKS", "crypto", uuid),), use="/dev/dm-0 is set up on it")
    found = Found(device, INITIALIZING, mapping=MAPPING, marked=None if uuid else UUID)
    assert actions(found, WANTED) == f"close {CREATION} mount"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use": "/dev/vdb1 is mounted at /srv"}, "in use: /dev/vdb1 is mounted at /srv"),
        ({"read_only": True}, "read-only"),
        ({"size": 1 << 20}, "smaller than"),
    ],
)
def test_no_force_makes_a_volume_on_a_device_that_is_not_free(change: dict[str, Any], message: str) -> None:
    with pytest.raises(FdeError, match=message):
        plan(Found(replace(DEVICE, **change)), replace(WANTED, force="DATA1"))


@pytest.mark.parametrize(
    ("found", "wanted", "message"),
    [
        (Found(None), WANTED, "no such device"),
        (volume(device=None), replace(WANTED, state=State.ERASED), "nothing can be erased"),
        (Found(DEVICE, missing=("the kernel's dm-integrity",)), WANTED, "lacks the kernel's dm-integrity"),
        (Found(DEVICE), replace(WANTED, least_size=SIZE + 1), "less than the"),
        (Found(DEVICE, at_mount_point="/dev/vdc1"), WANTED, "/dev/vdc1 is mounted there"),
        (Found(DEVICE, mount_leads_to="/mnt/data"), WANTED, "/srv/data: it leads to /mnt/data over a link"),
        (used(mount_leads_to="/mnt/data"), WANTED, "/srv/data: it leads to /mnt/data over a link"),
        (Found(DEVICE, mapping=MAPPING), WANTED, "something else is open under this name"),
        (Found(DEVICE, INITIALIZING, mapping=replace(MAPPING, uuid=OTHER)), WANTED, "something else is open"),
        (volume(pin=PIN.having(state=PinState.ERASING)), WANTED, "erasure of volume 'data' was interrupted"),
        (volume(), replace(WANTED, profile=CONFIDENTIAL), "was made with profile 'authenticated'"),
        (volume(), replace(WANTED, journal=False), "was made with journal"),
        (volume(), replace(WANTED, file_system=FileSystemType.XFS), "was made with file system 'ext4'"),
        (volume(credentials=Credentials()), WANTED, "the TPM does not give its key"),
        (used(credentials=Credentials()), replace(WANTED, unlock=(Recovery(),)), "nothing at hand opens it"),
        (volume(device=replace(DEVICE, use="mounted")), WANTED, "in use: mounted"),
        (used(mapping=replace(MAPPING, on_device=False)), WANTED, "in use"),
    ],
)
def test_what_cannot_be_done_is_said(found: Found, wanted: Wanted, message: str) -> None:
    with pytest.raises(FdeError, match=message):
        plan(found, wanted)


@pytest.mark.parametrize(
    ("found", "code"),
    [
        (volume(header=header(FOREIGN)), "header-changed"),
        (volume(header=None), "header-changed"),
        (volume(header=header(FOREIGN, uuid=None, defect="checksum")), "header-changed"),
        (volume(header=header(FOREIGN), pin=PIN.having(next=NEXT), saved=FOREIGN), "header-changed"),
        (volume(header=header(judgement=NULL_CIPHER)), "luks2-policy"),
        (used(mapping=replace(MAPPING, problems="cipher null")), "active-table"),
        (volume(device=replace(DEVICE, size=SIZE - 512)), "device-shrunk"),
    ],
)
def test_tampering_is_refused_by_its_code(found: Found, code: str) -> None:
    with pytest.raises(Refusal) as caught:
        plan(found, WANTED)
    assert caught.value.code == code
    # A key at hand changes nothing, nor does the name of the device.
    with pytest.raises(Refusal):
        plan(found, replace(WANTED, unlock_with=KEY, force="DATA1"))


@pytest.mark.parametrize(
    ("found", "given"),
    [
        (Found(DEVICE, header=header(FOREIGN), credentials=BY_TPM), KEY),
        (Found(DEVICE, header=header(FOREIGN), credentials=OPENED), None),
        (Found(DEVICE, header=header(FOREIGN, uuid=None, defect="magic"), credentials=OPENED), KEY),
        (Found(DEVICE, credentials=OPENED), KEY),
        (volume(header=header(FOREIGN, uuid=OTHER), credentials=OPENED), KEY),
        (Found(DEVICE, header=header(judgement=NULL_CIPHER), credentials=OPENED), KEY),
    ],
    ids=["only the TPM opens it", "nothing given", "unsound", "nothing there", "another volume", "null cipher"],
)
def test_a_header_is_adopted_only_when_its_owners_key_opens_it(found: Found, given: Optional[UnlockWith]) -> None:
    with pytest.raises(FdeError):
        plan(found, replace(WANTED, adopt=True, unlock_with=given))


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (Found(replace(DEVICE, use="the root is set up on it"), header=header(judgement=NULL_CIPHER)), "in use"),
        (Found(DEVICE, header=header(judgement=NULL_CIPHER)), "null-cipher at segments.0"),
    ],
)
def test_a_key_that_was_never_tried_is_not_blamed(found: Found, message: str) -> None:
    with pytest.raises(FdeError, match=message):
        plan(found, replace(WANTED, adopt=True, unlock_with=KEY))


def test_a_header_that_the_owners_key_opens_is_adopted_and_its_tpm_keyslot_made_anew() -> None:
    found = volume(header=header(FOREIGN), credentials=OPENED)
    wanted = replace(WANTED, adopt=True, unlock_with=KEY)
    assert actions(found, wanted) == "adopt open change-keyslots store ready configure mount"


def test_adopting_what_is_pinned_already_changes_nothing() -> None:
    assert actions(used(), replace(WANTED, adopt=True)) == ""


CERTIFICATES = (b"pem",)
ENVELOPE = "dd" * 32
BOTH = replace(WANTED, unlock=(Tpm2((7,)), Recovery()), certificates=CERTIFICATES)
NEW_RECOVERY = Enrolled(Recovery(), 4, 2)


def escrow(slot: Enrolled = RECOVERY, **other: Any) -> Escrow:
    """What is recorded of the recovery key of a keyslot."""
    return Escrow(**{"digest": ENVELOPE, "keyslot": mark(slot), "recipients": recipients(CERTIFICATES), **other})


def subjects(found: Found, wanted: Wanted) -> list[str]:
    return [f"{step.action.value}: {step.subject}" for step in plan(found, wanted).steps]


def with_recovery(*slots: Enrolled, **pinned: Any) -> Found:
    """A volume in use that has keyslots with recovery keys; ``pinned`` is what is recorded of them."""
    return used(pin=PIN.having(**pinned), header=header(CURRENT, TPM, *(slots or (RECOVERY,))), envelope=ENVELOPE)


def test_a_recovery_key_in_escrow_stays_as_it_is() -> None:
    assert actions(with_recovery(escrow=escrow()), BOTH) == ""
    for certificates in ((b"one", b"two"), (b"two", b"one"), (b"one", b"two", b"one")):
        found = with_recovery(escrow=escrow(recipients=recipients((b"one", b"two"))))
        assert actions(found, replace(BOTH, certificates=certificates)) == ""


@pytest.mark.parametrize(
    "pinned",
    [
        {},
        {"escrow": escrow(keyslot=mark(NEW_RECOVERY))},
        {"pending": escrow(digest="ee" * 32)},
        {"pending": escrow(recipients=recipients((b"another",)))},
        {"pending": escrow(NEW_RECOVERY)},
        {"escrow": escrow(recipients=recipients((b"another",)))},
        {"escrow": escrow(recipients=recipients((*CERTIFICATES, b"another")))},
        {"escrow": escrow(recipients="")},
    ],
    ids=[
        "never made here",
        "another program's",
        "envelope lost",
        "for other certificates",
        "never written",
        "in escrow for another certificate",
        "in escrow for one more certificate",
        "in escrow for nobody knows whom",
    ],
)
def test_a_recovery_key_that_nobody_has_for_certain_is_replaced_and_goes_when_the_new_one_arrived(
    pinned: dict[str, Any],
) -> None:
    change, *others = subjects(with_recovery(**pinned), BOTH)
    assert change == ("change-keyslots: add recovery, remove keyslot 2 (recovery) once the recovery key is in escrow")
    assert [other.split(":")[0] for other in others] == ["store", "ready"]


def test_a_key_for_new_certificates_that_never_arrived_is_handed_over_and_the_old_one_goes_then() -> None:
    old = escrow(recipients=recipients((b"another",)))
    found = with_recovery(RECOVERY, NEW_RECOVERY, escrow=old, pending=escrow(NEW_RECOVERY))
    [step] = plan(found, BOTH).steps
    assert (step.action, step.retiring) == (Action.HAND_OVER, (RECOVERY,))
    # Whoever takes the old certificates again keeps the old key, and the other one goes.
    [change, *_others] = plan(found, replace(BOTH, certificates=(b"another",))).steps
    assert change.keyslots is not None and change.keyslots.removes == (NEW_RECOVERY,) and not change.keyslots.adds


def test_a_change_of_certificates_that_nothing_at_hand_can_follow_is_said() -> None:
    found = replace(with_recovery(escrow=escrow(recipients="")), credentials=Credentials())
    with pytest.raises(FdeError, match="name the escrow certificates again"):
        plan(found, BOTH)


def test_a_recovery_key_that_waits_for_its_escrow_is_handed_over_again_without_any_key() -> None:
    found = replace(with_recovery(pending=escrow()), credentials=Credentials())
    assert subjects(found, BOTH) == ["hand-over: the recovery key of keyslot 2"]
    [step] = plan(replace(found, header=header(CURRENT, TPM, RECOVERY, PASSPHRASE)), BOTH).steps
    assert "remove keyslot 3 (passphrase) once" in step.subject and step.retiring == (PASSPHRASE,)


def test_the_only_key_is_handed_over_before_the_opening_fails_for_want_of_it() -> None:
    found = volume(pin=PIN.having(pending=escrow(retiring=(mark(TPM),))), header=header(CURRENT, TPM, RECOVERY))
    found = replace(found, envelope=ENVELOPE, credentials=Credentials())
    first, second = plan(found, BOTH).steps
    assert (first.action, first.retiring, second.action) == (Action.HAND_OVER, (TPM,), Action.OPEN)


def test_what_a_confirmed_recovery_key_replaces_goes_without_any_key() -> None:
    found = replace(with_recovery(RECOVERY, NEW_RECOVERY, escrow=escrow(NEW_RECOVERY)), credentials=Credentials())
    only = replace(BOTH, unlock=(Recovery(),))
    assert subjects(found, only)[0] == ("change-keyslots: remove keyslot 1 (tpm2 (PCR 7)), remove keyslot 2 (recovery)")


@pytest.mark.parametrize("old", [RECOVERY, PASSPHRASE], ids=["recovery key", "passphrase"])
def test_nothing_that_opens_the_volume_goes_before_the_new_recovery_key_is_in_escrow(old: Enrolled) -> None:
    found = volume(pin=None, header=header(FOREIGN, old), credentials=Credentials(by_unlock_with=True))
    wanted = replace(WANTED, adopt=True, unlock_with=KEY, unlock=(Recovery(),), certificates=CERTIFICATES)
    [change] = [step for step in plan(found, wanted).steps if step.keyslots is not None]
    assert change.keyslots is not None and change.keyslots.adds == (Recovery(),)
    assert change.keyslots.removes == () and change.retiring == (old,)


def test_a_recovery_key_in_escrow_is_not_the_one_that_another_program_put_in_its_place() -> None:
    replaced = header(FOREIGN, TPM, RECOVERY, fingerprints={1: mark(TPM), 2: "ff" * 32})
    found = volume(
        pin=PIN.having(escrow=escrow()), header=replaced, credentials=Credentials(frozenset({1}), True, True)
    )
    wanted = replace(BOTH, adopt=True, unlock_with=KEY)
    assert actions(found, wanted) == "adopt open change-keyslots store ready configure mount"


def test_a_tpm_that_does_not_open_now_is_enrolled_anew_only_when_another_key_is_given() -> None:
    found = used(credentials=Credentials(by_unlock_with=True))
    assert actions(found, replace(WANTED, unlock_with=KEY)) == "change-keyslots store ready"
    assert actions(used(credentials=Credentials()), WANTED) == ""
    assert actions(used(), replace(WANTED, unlock_with=KEY)) == ""


def test_another_passphrase_replaces_the_old_one() -> None:
    wanted = replace(WANTED, unlock=(Tpm2((7,)), Passphrase()), passphrase="new")
    found = used(header=header(CURRENT, TPM, PASSPHRASE))
    [change, *_rest] = plan(found, wanted).steps
    assert change.keyslots is not None
    assert [slot.keyslot for slot in change.keyslots.removes] == [3]
    assert (
        actions(used(header=header(CURRENT, TPM, PASSPHRASE), credentials=Credentials(frozenset({1, 3}), True)), wanted)
        == ""
    )


@pytest.mark.parametrize(
    ("found", "force", "allowed"),
    [
        (Found(replace(DEVICE, signatures=CONTENTS["file system"]), header=header(FOREIGN)), None, False),
        (
            Found(replace(DEVICE, signatures=CONTENTS["somebody's LUKS"]), header=header(FOREIGN, uuid=OTHER)),
            None,
            False,
        ),
        (
            Found(replace(DEVICE, signatures=CONTENTS["somebody's LUKS"]), header=header(FOREIGN, uuid=OTHER)),
            OTHER,
            True,
        ),
        (Found(SOMEBODYS, header=header(FOREIGN, uuid=OTHER)), "DATA1", False),
        (Found(SOMEBODYS, PIN, header(FOREIGN, uuid=OTHER)), "DATA1", False),
        (Found(SOMEBODYS, PIN, header(FOREIGN, uuid=OTHER)), OTHER, True),
        (volume(header=header(FOREIGN, uuid=OTHER)), None, False),
        (volume(header=header(FOREIGN)), None, True),
        (volume(pin=PIN.having(state=PinState.ERASING), header=header(FOREIGN, uuid=None, defect="magic")), None, True),
        (Found(replace(DEVICE, unknown_data=True), ERASING, marked=UUID), None, True),
        (Found(replace(DEVICE, unknown_data=True), INITIALIZING, marked=UUID), None, True),
        (Found(replace(DEVICE, unknown_data=True), ERASING), None, False),
        (Found(replace(DEVICE, unknown_data=True), INITIALIZING), None, False),
        # The mark goes last.
        (Found(replace(KNOWN, unknown_data=True), ERASING.having(identity=KNOWN.identity)), None, True),
        (Found(replace(KNOWN, unknown_data=True), INITIALIZING.having(identity=KNOWN.identity)), None, False),
        (Found(replace(KNOWN, unknown_data=True), ERASING.having(identity=("DATA2",)), marked=UUID), None, False),
        (Found(replace(DEVICE, unknown_data=True), PIN), None, False),
        (Found(SOMEBODYS, PIN.having(state=PinState.ERASING), header(FOREIGN, uuid=OTHER)), None, False),
    ],
)
def test_only_a_known_volume_is_erased(found: Found, force: Optional[str], allowed: bool) -> None:
    wanted = replace(WANTED, state=State.ERASED, force=force)
    if allowed:
        assert actions(found, wanted).endswith("destroy discard forget")
    else:
        with pytest.raises(Refusal, match="not known as volume 'data'"):
            plan(found, wanted)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (Found(DEVICE, ERASING, zeroed=True), "forget"),
        (Found(DEVICE, ERASING, zeroed=True, differing_files=("/etc/crypttab",)), "configure forget"),
        # A disk that cannot discard keeps what was behind the header area: random data.
        (Found(replace(DEVICE, unknown_data=True), ERASING, zeroed=True), "forget"),
        (Found(KNOWN, ERASING.having(identity=KNOWN.identity), zeroed=True), "forget"),
    ],
)
def test_an_erasure_that_was_cut_short_of_its_last_step_is_only_forgotten(found: Found, expected: str) -> None:
    assert actions(found, replace(WANTED, state=State.ERASED)) == expected


@pytest.mark.parametrize(
    "found",
    [
        Found(replace(DEVICE, size=SIZE + 512), ERASING, zeroed=True),
        Found(replace(KNOWN, identity=("DATA2",)), ERASING.having(identity=KNOWN.identity), zeroed=True),
        Found(replace(DEVICE, signatures=CONTENTS["RAID member"]), ERASING, zeroed=True),
        Found(DEVICE, PIN, zeroed=True),
        Found(DEVICE, INITIALIZING, zeroed=True),
    ],
    ids=["another size", "another disk", "somebody's", "never begun", "never finished"],
)
def test_a_blank_disk_is_no_erased_volume_when_it_may_be_another_one(found: Found) -> None:
    with pytest.raises(Refusal, match="not known as volume 'data'"):
        plan(found, replace(WANTED, state=State.ERASED))


ELSEWHERE = MappingFound("/dev/dm-1", OTHER, on_device=False, problems="another volume")


@pytest.mark.parametrize("state", [State.CLOSED, State.ERASED])
@pytest.mark.parametrize("mapping", [ELSEWHERE, replace(ELSEWHERE, uuid=None)], ids=["another volume", "no volume"])
def test_what_somebody_else_has_open_under_the_name_is_neither_unmounted_nor_closed(
    mapping: MappingFound, state: State
) -> None:
    found = volume(mapping=mapping, mounts=(Mounted("/theirs"),))
    with pytest.raises(FdeError, match="something else is open under this name"):
        plan(found, replace(WANTED, state=state))


@pytest.mark.parametrize(
    "mapping",
    [
        replace(ELSEWHERE, uuid=UUID),
        replace(ELSEWHERE, on_device=True),
        replace(MAPPING, problems="cipher null"),
    ],
    ids=["its device moved", "opened from its device", "not as it should be"],
)
def test_what_is_the_volume_or_lies_on_its_device_is_closed(mapping: MappingFound) -> None:
    assert actions(volume(mapping=mapping), replace(WANTED, state=State.CLOSED)) == "close"


@pytest.mark.parametrize("open_as", [{"mapping": MAPPING}, {"strays": ("data_dif",)}], ids=["open", "half open"])
def test_nothing_is_begun_to_erase_what_is_not_known_and_in_use(open_as: dict[str, Any]) -> None:
    device = replace(SOMEBODYS, use="/dev/dm-0 is set up on it")
    found = Found(device, header=header(FOREIGN, uuid=OTHER), **open_as)
    with pytest.raises(FdeError, match="it is in use: /dev/dm-0 is set up on it"):
        plan(found, replace(WANTED, state=State.ERASED, force=OTHER))


def test_an_unstable_path_and_a_grown_device_are_warned_about() -> None:
    unstable = replace(DEVICE, path="/dev/vdb", size=SIZE * 2)
    warnings = plan(used(device=unstable), replace(WANTED, device="/dev/vdb")).warnings
    assert len(warnings) == 2 and "another device" in warnings[0]
    assert "has grown" in warnings[1] and "keeps its size" in warnings[1]
    grown = used(device=unstable, pin=PIN.having(profile="confidential"))
    *_other, warning = plan(grown, replace(WANTED, device="/dev/vdb", profile=CONFIDENTIAL)).warnings
    assert "the volume does so too" in warning
