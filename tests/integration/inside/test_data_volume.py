# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Data volumes from nothing to erased, on a real kernel: what is made, kept, found again, and refused."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from ansible_collections.cvm.fde.plugins.module_utils.agent import archive
from ansible_collections.cvm.fde.plugins.module_utils.errors import FdeError, Refusal
from ansible_collections.cvm.fde.plugins.module_utils.luks2.area import read_area
from ansible_collections.cvm.fde.plugins.module_utils.luks2.method import Passphrase, Recovery, Tpm2
from ansible_collections.cvm.fde.plugins.module_utils.luks2.profile import LAYOUT, PROFILES
from ansible_collections.cvm.fde.plugins.module_utils.volume import boot
from ansible_collections.cvm.fde.plugins.module_utils.volume.machine import Machine
from ansible_collections.cvm.fde.plugins.module_utils.volume.persistence import escape_path
from ansible_collections.cvm.fde.plugins.module_utils.volume.volumes import Interrupted, apply_all, plan_all
from ansible_collections.cvm.fde.plugins.module_utils.volume.wanted import Mount, State, UnlockWith, Wanted
from owner import NAME, Owner, drop_caches
from software_tpm import PolicyKey, Tpm

PATTERN = b"nobody but the owner may ever read this line. "
BLOCK = 4096
#: Bytes; xfs makes nothing smaller.
SIZES = {"ext4": 64 << 20, "xfs": 360 << 20, "btrfs": 160 << 20, "none": 40 << 20}


def recoverable(owner: Owner, device: str, **options: object) -> Wanted:
    """Return a small volume that a recovery key opens, which needs no TPM."""
    return owner.wants(device, unlock=(Recovery(),), certificates=(owner.certificate(),), **options)


@pytest.mark.parametrize("kind", SIZES)
@pytest.mark.parametrize("profile", PROFILES)
def test_a_volume_of_every_profile_holds_every_file_system(
    owner: Owner, disk: Callable[..., str], profile: str, kind: str
) -> None:
    device = disk(SIZES[kind])
    wanted = recoverable(owner, device, profile=profile, file_system=kind)
    made = owner.run(wanted)
    assert (made["state"], made["unlock"]) == ("open" if kind == "none" else "mounted", ["recovery"])
    path = Path(owner.mapped) if kind == "none" else owner.mount_point / "file"
    with open(path, "r+b" if kind == "none" else "wb") as file:
        file.write(PATTERN * 4096)
        os.fsync(file.fileno())
    given = UnlockWith(recovery_key=owner.recovery_key)
    assert owner.run(replace(wanted, state=State.CLOSED))["state"] == "closed"
    drop_caches()
    assert PATTERN[:16] not in Path(device).read_bytes()
    assert owner.run(replace(wanted, unlock_with=given))["state"] == made["state"]
    path = Path(owner.mapped) if kind == "none" else path
    with path.open("rb") as file:
        assert file.read(len(PATTERN) * 4096) == PATTERN * 4096


def test_the_second_run_changes_nothing_and_names_no_secret(
    owner: Owner, disk: Callable[..., str], tpm: Tpm, tmp_path: Path
) -> None:
    device = disk(SIZES["ext4"])
    key = PolicyKey(tmp_path)
    signed = Tpm2(pcrs=(7,), public_key=key.public_key.read_bytes())
    wanted = owner.wants(
        device,
        unlock=(Tpm2(pcrs=(7, 14)), Recovery(), Passphrase()),
        passphrase="correct horse battery staple",
        certificates=(owner.certificate(),),
        boot=True,
    )
    made = owner.run(wanted)
    assert made["unlock"] == ["tpm2 (PCR 7+14)", "recovery", "passphrase"]
    recovery_key = owner.recovery_key
    for told in (made, owner.run(wanted)):
        assert recovery_key not in repr(told) and "correct horse" not in repr(told)
    assert told["steps"] == []
    assert "correct horse" not in repr(plan_all(owner.machine, [wanted]))
    boot.header(owner.machine, NAME)
    boot.check(owner.machine, NAME)
    # Every method goes, for a policy whose signatures lie where systemd's stub leaves them.
    key.sign([tpm.pcr(11)], Path("/run/systemd/tpm2-pcr-signature.json"))
    changed = replace(wanted, unlock=(signed,), passphrase=None, certificates=())
    told = owner.run(changed)
    assert [step["action"] for step in told["steps"]] == ["change-keyslots", "store", "ready"]
    assert told["unlock"] == ["tpm2 (PCR 7, signed PCR 11)"]


def test_another_tpm_costs_a_recovery_key_and_nothing_else(
    owner: Owner, disk: Callable[..., str], tmp_path: Path
) -> None:
    device = disk(SIZES["ext4"])
    wanted = owner.wants(device, unlock=(Tpm2(pcrs=(7,)), Recovery()), certificates=(owner.certificate(),))
    owner.run(wanted)
    (owner.mount_point / "file").write_text("kept")
    owner.run(replace(wanted, state=State.CLOSED))
    with Tpm.start(tmp_path / "other") as other:
        wanted = replace(wanted, tpm2_device=other.tcti)
        with pytest.raises(FdeError, match="the TPM does not give its key"):
            owner.run(wanted)
        again = owner.run(replace(wanted, unlock_with=UnlockWith(recovery_key=owner.recovery_key.upper())))
        assert [step["action"] for step in again["steps"]] == ["open", "change-keyslots", "store", "ready", "mount"]
        assert (owner.mount_point / "file").read_text() == "kept"
        owner.run(replace(wanted, state=State.CLOSED))
        assert [step["action"] for step in owner.run(wanted)["steps"]] == ["open", "mount"]


@pytest.mark.parametrize("profile", [name for name, profile in PROFILES.items() if profile.integrity is not None])
def test_no_flipped_bit_becomes_other_data(owner: Owner, disk: Callable[..., str], profile: str) -> None:
    device = disk(SIZES["none"])
    wanted = recoverable(owner, device, profile=profile, file_system="none")
    owner.run(wanted)
    with open(owner.mapped, "r+b", buffering=0) as file:
        size = os.lseek(file.fileno(), 0, os.SEEK_END) // BLOCK * BLOCK
        written = (PATTERN * (size // len(PATTERN) + 1))[:size]
        os.pwrite(file.fileno(), written, 0)
        os.fsync(file.fileno())
    owner.run(replace(wanted, state=State.CLOSED))
    for at in [*range(0, LAYOUT.offset, 256 << 10), 4095, 4096 + 17, LAYOUT.offset - 1]:
        flip(device, at)
        with pytest.raises(Refusal, match="is not the one that is pinned"):
            boot.header(owner.machine, NAME)
        flip(device, at)
    boot.header(owner.machine, NAME)
    # Behind dm-integrity's own superblock: its journal, the tags, the data.
    for at in range(LAYOUT.offset + BLOCK, SIZES["none"] - BLOCK, 32 << 10):
        flip(device, at + at // 7 % BLOCK)
    drop_caches()
    owner.run(replace(wanted, unlock_with=UnlockWith(recovery_key=owner.recovery_key)))
    errors = 0
    with open(owner.mapped, "rb", buffering=0) as file:
        for at in range(0, size, BLOCK):
            try:
                assert os.pread(file.fileno(), BLOCK, at) == written[at : at + BLOCK]
            except OSError:
                errors += 1
    assert errors > size // (32 << 10) * 8 // 10


def flip(device: str, at: int) -> None:
    """Flip one bit on the disk itself."""
    with open(device, "r+b", buffering=0) as file:
        [byte] = os.pread(file.fileno(), 1, at)
        os.pwrite(file.fileno(), bytes([byte ^ 1 << at % 8]), at)
        os.fsync(file.fileno())


_CRYPTSETUP = "cryptsetup luksFormat -q --key-file /dev/zero --keyfile-size 9"
FOREIGN = {
    "ext4": ("mkfs.ext4 -q {}", r"a file system \(ext4"),
    "ext4 with a label": ("mkfs.ext4 -q -L accounts {}", "accounts"),
    "btrfs": ("mkfs.btrfs -q {}", r"a file system \(btrfs"),
    "swap": ("mkswap -q {}", "swap"),
    "LUKS1": (
        "cryptsetup luksFormat -q --type luks1 --iter-time 1 --key-file /dev/zero --keyfile-size 9 {}",
        "crypto_LUKS",
    ),
    "LUKS2 of others": (
        f"{_CRYPTSETUP} --pbkdf pbkdf2 --pbkdf-force-iterations 1000 {{}}",
        r"an encrypted volume \(crypto_LUKS",
    ),
    "a partition table": ("sh -c 'echo , | sfdisk -q --no-reread {}'", "a partition table"),
    "unknown data at the start": ("dd if=/dev/urandom of={} bs=4k seek=3 count=1 conv=notrunc", "unknown data"),
    "unknown data at the end": ("dd if=/dev/urandom of={} bs=4k seek=40959 count=1 conv=notrunc", "unknown data"),
    "unknown data in the middle": ("dd if=/dev/urandom of={} bs=1M seek=70 count=2 conv=notrunc", "unknown data"),
}


def test_nothing_is_made_over_what_somebody_else_made(owner: Owner, disk: Callable[..., str]) -> None:
    for name, (command, message) in FOREIGN.items():
        device = disk(SIZES["btrfs"])
        owner.runner.run(["sh", "-c", command.format(device)])
        before = digest(device)
        with pytest.raises(Refusal, match=message) as caught:
            owner.run(recoverable(owner, device, force=device))
        assert caught.value.code == "volume-has-data", name
        assert digest(device) == before, name
        assert not owner.machine.places.pin(NAME).exists()


def digest(device: str) -> str:
    """Return the digest of all that is on a device; what was written to it a moment ago as well."""
    drop_caches()
    with open(device, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def test_force_by_the_uuid_of_what_is_there_gives_it_up(owner: Owner, disk: Callable[..., str]) -> None:
    device = disk(SIZES["ext4"])
    uuid = "4b1d5e5c-0f0e-4f0e-9d59-1c2f35e7a001"
    owner.runner.run(["mkfs.ext4", "-q", "-U", uuid, device])
    assert owner.run(recoverable(owner, device, force=uuid))["state"] == "mounted"


def test_a_device_in_use_is_never_touched(owner: Owner, disk: Callable[..., str], tmp_path: Path) -> None:
    device = disk(SIZES["ext4"])
    owner.runner.run(["mkfs.ext4", "-q", device])
    uuid = owner.runner.run(["blkid", "-o", "value", "-s", "UUID", device]).stdout.decode().strip()
    (tmp_path / "theirs").mkdir()
    owner.runner.run(["mount", device, str(tmp_path / "theirs")])
    with pytest.raises(FdeError, match="in use|is mounted"):
        owner.run(recoverable(owner, device, force=uuid))
    owner.runner.run(["umount", device])


def pair(owner: Owner, first: str, second: str) -> list[Wanted]:
    """Return two volumes, of which the second has to wait for the first."""
    return [
        recoverable(owner, device, name=name, profile="confidential", mount=Mount(str(owner.root / name)))
        for name, device in (("first", first), ("second", second))
    ]


def while_the_first_is_made(owner: Owner, wanted: list[Wanted], happens: Callable[[], object]) -> Interrupted:
    """Run, have something happen meanwhile, and return how the run ended."""
    machine = Machine(
        owner.runner, owner.machine.places, lambda text: happens() if text.startswith("first: store") else None
    )
    with pytest.raises(Interrupted) as caught:
        apply_all(machine, plan_all(machine, wanted))
    made, left = caught.value.reports
    assert (made["state"], left["state"], left["steps"]) == ("mounted", "absent", [])
    # Its recovery key is handed over all the same.
    assert made["handover"] is not None and not owner.machine.places.pin("second").exists()
    return caught.value


def test_a_disk_that_somebody_formats_while_another_is_made_stays_theirs(
    owner: Owner, disk: Callable[..., str]
) -> None:
    first, second = disk(SIZES["ext4"]), disk(SIZES["ext4"])
    wanted = pair(owner, first, second)
    ended = while_the_first_is_made(owner, wanted, lambda: owner.runner.run(["mkfs.ext4", "-q", second]))
    assert (ended.code, ended.subject) == ("volume-has-data", second) and "a file system (ext4" in str(ended)
    owner.runner.run(["e2fsck", "-fn", second])


def test_a_disk_that_takes_the_place_of_another_while_a_volume_is_made_stays_blank(
    owner: Owner, disk: Callable[..., str]
) -> None:
    first, second, third = (disk(SIZES["ext4"]) for _number in range(3))
    link = Path("/dev/second")

    def replaced() -> None:
        link.unlink()
        link.symlink_to(third)

    link.symlink_to(second)
    try:
        ended = while_the_first_is_made(owner, pair(owner, first, str(link)), replaced)
        assert ended.subject == str(link) and "another device is in its place" in str(ended)
        for device in (second, third):
            touched = any(Path(device).read_bytes())
            assert not touched
    finally:
        link.unlink()


def test_an_erased_volume_leaves_no_key_and_no_trace(owner: Owner, disk: Callable[..., str]) -> None:
    device = disk(SIZES["ext4"])
    wanted = recoverable(owner, device, boot=True)
    owner.run(wanted)
    keyslots = Path(device).read_bytes()[2 * LAYOUT.metadata_size : LAYOUT.offset]
    blocks = {keyslots[at : at + 64] for at in range(0, len(keyslots), 64)} - {bytes(64)}
    assert len(blocks) > 1000
    erased = owner.run(replace(wanted, state=State.ERASED, boot=True))
    assert [step["action"] for step in erased["steps"]][:4] == ["unmount", "close", "pin", "destroy"]
    drop_caches()
    left = Path(device).read_bytes()
    assert not any(left[: LAYOUT.offset])
    assert not any(left[at : at + 64] in blocks for at in range(0, len(left), 64))
    assert not list(owner.machine.places.pin(NAME).parent.iterdir())
    assert NAME not in (owner.root / "etc/crypttab").read_text() + (owner.root / "etc/fstab").read_text()
    assert owner.run(replace(wanted, state=State.ERASED))["steps"] == []


#: In bytes: a device with the largest header that LUKS2 has, and one that is smaller than ours.
HEADERS = {160 << 20: ("4m", "128m"), 4 << 20: ("16k", "512k")}


@pytest.mark.parametrize("size", HEADERS)
def test_no_key_of_a_volume_that_others_made_outlives_its_erasure(
    owner: Owner, disk: Callable[..., str], size: int
) -> None:
    device, uuid = disk(size), "4b1d5e5c-0f0e-4f0e-9d59-1c2f35e7a001"
    # What a disk does with discarded blocks is no proof of anything.
    Path("/sys/block", Path(device).name, "queue/discard_max_bytes").write_text("0")
    metadata, keyslots = HEADERS[size]
    sizes = f"--luks2-metadata-size {metadata} --luks2-keyslots-size {keyslots} --uuid {uuid}"
    owner.runner.run([*f"{_CRYPTSETUP} --pbkdf pbkdf2 --pbkdf-force-iterations 1000 {sizes} {device}".split()])
    opening = ["cryptsetup", "open", "--test-passphrase", "--key-file", "/dev/zero", "--keyfile-size", "9", device]
    owner.runner.run(opening)
    headers = read_area(device, 8 << 20).content
    told = owner.run(owner.wants(device, state="erased", force=uuid))
    assert (told["state"], told["steps"][-1]["action"]) == ("absent", "forget")
    drop_caches()
    left = any(Path(device).read_bytes())
    assert not left
    # Whoever has kept nothing but the two headers has no keyslot to open.
    if size > len(headers):
        with open(device, "r+b") as file:
            file.write(headers)
        assert owner.runner.run(opening, ok=()).status != 0


def test_a_header_that_another_program_changed_is_refused_until_its_owner_adopts_it(
    owner: Owner, disk: Callable[..., str]
) -> None:
    device = disk(SIZES["ext4"])
    wanted = recoverable(owner, device, boot=True)
    owner.run(wanted)
    owner.run(replace(wanted, state=State.CLOSED))
    owner.runner.run(["cryptsetup", "config", "--priority", "normal", "--key-slot", "1", device], ok=())
    token = b'{"type":"systemd-recovery","keyslots":[]}'
    owner.runner.run(["cryptsetup", "token", "import", "--json-file", "-", device], stdin=token)
    owner.runner.run(["cryptsetup", "token", "remove", "--token-id", "1", device])
    given = UnlockWith(recovery_key=owner.recovery_key)
    for lacking in (wanted, replace(wanted, unlock_with=given)):
        with pytest.raises(Refusal, match="is not the one that is pinned"):
            owner.run(lacking)
    with pytest.raises(FdeError, match="nothing proves that the volume is yours"):
        owner.run(replace(wanted, adopt=True))
    with pytest.raises(Refusal, match="is not the one that is pinned"):
        boot.header(owner.machine, NAME)
    told = owner.run(replace(wanted, unlock_with=given, adopt=True))
    assert told["steps"][0]["action"] == "adopt" and told["state"] == "mounted"
    boot.header(owner.machine, NAME)


def test_a_volume_without_a_journal_has_none_at_any_boot(owner: Owner, disk: Callable[..., str]) -> None:
    def mode() -> str:
        return owner.runner.run(["dmsetup", "table", f"{NAME}_dif"]).stdout.decode().split()[6]

    device = disk(SIZES["ext4"])
    wanted = owner.wants(device, journal=False, boot=True)
    assert (owner.run(wanted)["journal"], mode()) == (False, "D")
    (owner.mount_point / "file").write_text("kept")
    owner.run(replace(wanted, state=State.CLOSED))
    # What the units of the boot do, with the files where they are in here.
    boot.header(owner.machine, NAME)
    options = (owner.root / "etc/crypttab").read_text().split()[3].replace("/run/", f"{owner.root}/run/")
    owner.runner.run(["/usr/bin/systemd-cryptsetup", "attach", NAME, device, "-", options])
    boot.check(owner.machine, NAME)
    assert mode() == "D"
    assert [step["action"] for step in owner.run(wanted)["steps"]] == ["mount"]
    assert (owner.mount_point / "file").read_text() == "kept"
    with pytest.raises(FdeError, match="was made with journal 'False'"):
        owner.run(replace(wanted, journal=True))


def test_a_volume_without_authentication_grows_with_its_device_as_the_warning_says(
    owner: Owner, disk: Callable[..., str]
) -> None:
    device = disk(SIZES["ext4"])
    wanted = recoverable(owner, device, profile="confidential")
    assert owner.run(wanted)["warnings"] == [f"{device} may name another device after the next boot"]
    owner.run(replace(wanted, state=State.CLOSED))
    backing = Path("/sys/block", Path(device).name, "loop/backing_file").read_text().strip()
    os.truncate(backing, 2 * SIZES["ext4"])
    owner.runner.run(["losetup", "--set-capacity", device])
    told = owner.run(replace(wanted, unlock_with=UnlockWith(recovery_key=owner.recovery_key)))
    assert "the volume does so too when it is opened the next time" in told["warnings"][1]
    assert owner.machine.mapper.get(NAME).size * 512 == 2 * SIZES["ext4"] - LAYOUT.offset
    owner.runner.run(["resize2fs", owner.mapped])
    assert os.statvfs(owner.mount_point).f_blocks * os.statvfs(owner.mount_point).f_frsize > SIZES["ext4"]


def test_a_mount_point_behind_a_link_is_refused_by_its_own_name(
    owner: Owner, disk: Callable[..., str], tmp_path: Path
) -> None:
    """The kernel knows the mount by where it is, so that it would be mounted anew at every run."""
    (tmp_path / "link").symlink_to(tmp_path / "real")
    device = disk(SIZES["ext4"])
    wanted = recoverable(owner, device, profile="confidential", mount=Mount(str(tmp_path / "link/data")))
    with pytest.raises(FdeError, match=f"it leads to {tmp_path}/real/data over a link"):
        owner.run(wanted)
    touched = any(Path(device).read_bytes())
    assert not touched and not (tmp_path / "real").exists()
    assert owner.run(replace(wanted, mount=Mount(str(tmp_path / "real/data"))))["state"] == "mounted"


def test_a_key_file_opens_a_volume_by_its_whole_content(owner: Owner, disk: Callable[..., str], tmp_path: Path) -> None:
    wanted = recoverable(owner, disk(SIZES["ext4"]), profile="confidential")
    owner.run(wanted)
    owner.run(replace(wanted, state=State.CLOSED))
    key = tmp_path / "key"
    given = replace(wanted, unlock_with=UnlockWith(key_file=str(key)))
    with pytest.raises(FdeError, match="cannot be read"):
        owner.run(given)
    for content in (b"", owner.recovery_key.encode() + b"\n"):
        key.write_bytes(content)
        with pytest.raises(FdeError, match="nothing at hand opens"):
            owner.run(given)
    key.write_text(owner.recovery_key)
    assert owner.run(given)["state"] == "mounted"


def test_native_programs_read_our_volumes(owner: Owner, disk: Callable[..., str]) -> None:
    device = disk(SIZES["ext4"])
    wanted = owner.wants(device, unlock=(Tpm2(pcrs=(7,)), Recovery()), certificates=(owner.certificate(),))
    owner.run(wanted)
    owner.run(replace(wanted, state=State.CLOSED))
    listed = owner.runner.run(["systemd-cryptenroll", device]).stdout.decode()
    assert "tpm2" in listed and "recovery" in listed
    key = owner.recovery_key.encode()
    assert owner.runner.run(["cryptsetup", "luksDump", device]).status == 0
    owner.runner.run(["cryptsetup", "open", "--key-file", "-", device, "native"], stdin=key)
    owner.runner.run(["cryptsetup", "close", "native"])
    systemd = "/usr/bin/systemd-cryptsetup"
    owner.runner.run([systemd, "attach", "native", device, "-", f"tpm2-device={owner.tcti},headless=yes"])
    owner.runner.run([systemd, "detach", "native"])


def test_paths_are_escaped_as_systemd_does(owner: Owner) -> None:
    for path in ("/dev/disk/by-id/virtio-DATA_1", "/dev/mapper/a-b", "/dev/disk/by-label/a+b@c", "/dev/.x/é"):
        done = owner.runner.run(["systemd-escape", "--path", path])
        assert escape_path(path) == done.stdout.decode().strip()


def test_the_program_on_the_machine_does_what_the_units_ask_of_it(
    owner: Owner, disk: Callable[..., str], tmp_path: Path
) -> None:
    device = disk(SIZES["ext4"])
    wanted = owner.wants(device, profile="confidential", boot=True)
    owner.run(wanted)
    owner.run(replace(wanted, state=State.CLOSED))
    crypttab = (owner.root / "etc/crypttab").read_text().split()
    program = tmp_path / "agent.pyz"
    program.write_bytes(archive.build(Path(archive.__file__).parents[1]))
    pin = Path("/etc/cvm-fde/volumes", f"{NAME}.json")
    pin.parent.mkdir(parents=True)
    pin.write_bytes(owner.machine.places.pin(NAME).read_bytes())
    ask = ["python3", "-I", str(program), "volume"]
    owner.runner.run([*ask, "header", NAME])
    owner.runner.run(["/usr/bin/systemd-cryptsetup", "attach", NAME, device, "-", crypttab[3]])
    owner.runner.run([*ask, "check", NAME])
    # The same name, opened from something else: it does not stay open.
    owner.cut_power()
    owner.runner.run(["dmsetup", "create", "--noudevsync", NAME], stdin=b"0 8 zero\n")
    assert b"[active-table]" in owner.runner.run([*ask, "check", NAME], ok=(1,)).stderr
    assert owner.machine.mapper.find(NAME) is None
    flip(device, 5000)
    assert b"[header-changed]" in owner.runner.run([*ask, "header", NAME], ok=(1,)).stderr
