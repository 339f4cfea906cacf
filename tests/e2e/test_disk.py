# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the holder of the disk sees, and what happens to a guest whose disk was changed while it was off."""

from __future__ import annotations

import base64
import json
import re
import secrets
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
from ansible_collections.cvm.fde.plugins.module_utils.agent.console import REFUSAL_FILE
from ansible_collections.cvm.fde.plugins.module_utils.agent.esp import DIRECTORY
from ansible_collections.cvm.fde.tests.attacks.catalogue import Kind, attack
from ansible_collections.cvm.fde.tests.e2e.disk import DATA, ESP, VOLUME, Partition, partitions
from ansible_collections.cvm.fde.tests.e2e.refused import is_refused
from ansible_collections.cvm.fde.tests.lab.guest import PATIENCE, Guest, GuestError, boot, together
from ansible_collections.cvm.fde.tests.lab.keys import keys
from ansible_collections.cvm.fde.tests.lab.process import Background, run
from ansible_collections.cvm.fde.tests.lab.progress import say
from ansible_collections.cvm.fde.tests.lab.readout import parts
from ansible_collections.cvm.fde.tests.lab.sealed import Sealed
from ansible_collections.cvm.fde.tests.lab.trees import run_in, tool, tools_tree
from ansible_collections.cvm.fde.tests.lab.upkeep import settle

MIB = 1 << 20
SECTOR = 4096
#: Past the header and the journal of the encrypted volume, where the copy of the root lies.
CONTENT = 512 * MIB


@dataclass(frozen=True)
class Asleep:
    """The fleet, switched off in order, after ``secret`` was written to a file of the first guest."""

    guests: list[Guest]
    secret: bytes

    def volume(self, number: int) -> Partition:
        return partitions(self.guests[number].disk)[VOLUME]


@pytest.fixture(scope="module")
def asleep(fleet: list[Guest]) -> Asleep:
    secret = secrets.token_hex(32).encode()
    fleet[0].ssh(
        "cat > /srv/secret && for n in $(seq 1024); do cat /srv/secret; done > /srv/secrets; sync", stdin=secret
    )
    together(Guest.shut_down, fleet)
    return Asleep(fleet, secret)


def test_what_an_instance_writes_is_nowhere_on_its_disk(asleep: Asleep) -> None:
    everywhere = Partition(asleep.guests[0].disk, 0, asleep.guests[0].disk.stat().st_size)
    assert everywhere.find(asleep.secret) == []


def test_the_copied_root_is_not_readable_in_the_encrypted_volume(asleep: Asleep) -> None:
    data = partitions(asleep.guests[0].disk)[DATA]
    samples = [data.read(offset, 64) for offset in range(MIB, data.size, 16 * MIB)]
    samples = [sample for sample in samples if len(set(sample)) > 32]
    assert samples and all(data.find(sample) for sample in samples[:4]), "the image's own content is a bad sample"
    assert [sample for sample in samples[:4] if asleep.volume(0).find(sample)] == []


def test_the_same_root_is_encrypted_differently_in_every_instance(asleep: Asleep) -> None:
    first, second = (asleep.volume(number) for number in (0, 1))
    written = same = 0
    for offset in range(CONTENT, CONTENT + 256 * MIB, SECTOR):
        ours = first.read(offset, SECTOR)
        if any(ours):
            written += 1
            same += ours == second.read(offset, SECTOR)
    assert written > 1000, "the sample is not where the copied root lies"
    assert same == 0


# Boots after a change


def flip_in_header(guest: Guest) -> None:
    """One bit in the keyslot area of the LUKS2 header."""
    partitions(guest.disk)[VOLUME].flip(MIB)


def flip_in_root(guest: Guest) -> None:
    """One bit in the super block of the verified root."""
    partitions(guest.disk)[DATA].flip(1024 + 0x78)


def flip_in_kernel_image(guest: Guest) -> None:
    """One bit in the middle of the largest file of the EFI system partition."""
    esp = partitions(guest.disk)[ESP]
    (start,) = esp.find(b"MZ")[:1]
    esp.flip(start + 16 * MIB)


def replace_volume(guest: Guest) -> None:
    """An attacker's own LUKS2 volume, its key sealed by the guest's own TPM under the policy of the image."""
    secret = guest.folder / "attacker.key"
    secret.touch(mode=0o600)
    secret.write_bytes(secrets.token_bytes(32))
    with open(guest.folder / "attacker.luks", "wb") as file:
        file.truncate(64 * MIB)
    (guest.folder / "pcr.pub").write_bytes(keys().public("pcr").read_bytes())
    tpm = Background(guest.folder / "attacker.pid")
    tpm.start(
        [*tool("swtpm"), "socket", "--tpm2", "--tpmstate", "dir=tpm", "--flags", "not-need-init,startup-clear"]
        + ["--server", "type=unixio,path=attacker.sock", "--ctrl", "type=unixio,path=attacker.sock.ctrl"],
        cwd=guest.folder,
        output=guest.folder / "attacker.log",
    )
    try:
        run_in(
            tools_tree(),
            [
                "cryptsetup",
                "luksFormat",
                "--batch-mode",
                "--type=luks2",
                "--pbkdf=pbkdf2",
                "--pbkdf-force-iterations=1000",
            ]
            + ["--label=fde", "/mnt/attacker.luks", "/mnt/attacker.key"],
            work=guest.folder,
        )
        run_in(
            tools_tree(),
            [
                "systemd-cryptenroll",
                "--unlock-key-file=/mnt/attacker.key",
                "--tpm2-device=swtpm:path=/mnt/attacker.sock",
            ]
            + ["--tpm2-public-key=/mnt/pcr.pub", "--tpm2-public-key-pcrs=11", "--tpm2-pcrs=", "/mnt/attacker.luks"],
            work=guest.folder,
        )
    finally:
        tpm.stop()
    partitions(guest.disk)[VOLUME].write(0, (guest.folder / "attacker.luks").read_bytes())


def shorten_record(guest: Guest) -> None:
    """Let the volume say that less of it is written than its file system takes.

    The guest's own root writes it: where the block lies that a host would put back, only the volume's key tells.
    """
    boot(guest)
    settle(guest)
    change = "dd of=/dev/mapper/fde-crypt bs=8 seek=2 conv=fsync,notrunc status=none"
    guest.ssh(change, stdin=struct.pack("<Q", 1024 * MIB // 512))
    guest.shut_down()


def add_file(guest: Guest, name: str, content: bytes) -> None:
    """A file beside the kernel image, where systemd-stub takes it from; nothing protects that place."""
    disk = f"{guest.disk}@@{partitions(guest.disk)[ESP].start}"
    file = guest.folder / name
    file.write_bytes(content)
    run(["mmd", "-i", disk, "::/EFI/BOOT/BOOTX64.EFI.extra.d"])
    run(["mcopy", "-i", disk, file, f"::/EFI/BOOT/BOOTX64.EFI.extra.d/{name}"])


def add_credential(guest: Guest) -> None:
    """A key that opens the machine to whoever has the other half."""
    add_file(guest, "ssh.authorized_keys.root.cred", b"ssh-ed25519 of the attacker")


def add_addon(guest: Guest) -> None:
    """Words for the command line in an add-on that the firmware admits: signed with a key that is in its db."""
    add_file(guest, "words.addon.efi", parts().addon.read_bytes())


def add_extension(guest: Guest) -> None:
    """A raw system extension for the initrd."""
    add_file(guest, "tools.raw", b"an extension of the attacker".ljust(4096, b"."))


def credential(name: str, content: str) -> str:
    """Return the string by which systemd takes a credential from SMBIOS."""
    return f"io.systemd.credential.binary:{name}={base64.b64encode(content.encode()).decode()}"


#: A unit of the host's, which systemd runs in the initrd and in the system, and what it leaves there.
RUN_BY_HOST, MADE_BY_HOST = "/run/run-by-host", "/run/made-by-host"
UNIT = f"""[Unit]
DefaultDependencies=no
[Service]
Type=oneshot
ExecStart=/bin/sh -c 'echo a unit of the host runs >/dev/kmsg; echo >{RUN_BY_HOST}'
"""
#: What the host tells the guest by way of its firmware.
STRINGS = {
    "words": ["io.systemd.stub.kernel-cmdline-extra=systemd.debug_shell=1 rd.systemd.debug_shell=1"],
    "strategy": ["io.systemd.stub.kernel-cmdline-extra=fde.strategy=ephemeral"],
    "credentials": [
        credential("systemd.extra-unit.run-by-host.service", UNIT),
        credential("systemd.unit-dropin.sysinit.target", "[Unit]\nWants=run-by-host.service\n"),
        "io.systemd.credential:ssh.authorized_keys.root=ssh-ed25519 of the attacker",
    ],
}
#: The same by way of QEMU's fw_cfg.
FILES = {"credentials": {"opt/io.systemd.credentials/tmpfiles.extra": f"f {MADE_BY_HOST}"}}

#: What systemd, sulogin, bash and dracut's shell say where somebody can type. The command line names an emergency too.
SHELL = r"emergency mode|for maintenance|\bsh-\d|dracut:/#|\broot@"
#: What the firmware says of an image that Secure Boot does not let it start.
FIRMWARE_REFUSES = "Access Denied|Security Violation"

#: Each change, and whether it is made to an instance with a volume or to one that was never booted.
CHANGES: dict[str, tuple[Callable[[Guest], None], bool]] = {
    "header": (flip_in_header, True),
    "volume": (replace_volume, True),
    "record": (shorten_record, True),
    "root": (flip_in_root, False),
    "kernel": (flip_in_kernel_image, False),
    "credential": (add_credential, True),
    "addon": (add_addon, False),
    "extension": (add_extension, False),
    "words": (lambda _guest: None, False),
    "strategy": (lambda _guest: None, False),
}


def wanted(request: pytest.FixtureRequest) -> list[str]:
    """Return the changes that the chosen tests ask after: a test names its own by the marker ``change``."""
    here = [item for item in request.session.items if item.path == request.path]
    marks = [mark.args for item in here for mark in item.iter_markers("change")]
    return [name for name in CHANGES if (name,) in marks or () in marks]


@pytest.fixture(scope="module")
def fates(request: pytest.FixtureRequest, sealed: Sealed) -> Iterator[dict[str, str]]:
    """What each changed guest said on its console until it went off; ``login`` if it got that far.

    A kernel image that the firmware refuses leaves it on, in the firmware.
    """
    said: dict[str, str] = {}
    chosen = wanted(request)
    # Switching the fleet off is left to whoever needs its disks.
    needed = any(initialized for _change, initialized in map(CHANGES.__getitem__, chosen))
    asleep = request.getfixturevalue("asleep") if needed else None

    def change_and_boot(guest: Guest) -> None:
        name = guest.name.removeprefix("e2e-")
        change, initialized = CHANGES[name]
        if initialized:
            assert asleep is not None
            asleep.guests[0].copy(guest.name)
        else:
            Guest.create(guest.name, sealed.image)
        change(guest)
        begun = time.monotonic()
        guest.start(once=True, strings=STRINGS.get(name, ()))
        try:
            # Nothing but the firmware's refusal leaves a guest on and silent, and then there is nothing to wait for.
            if name == "kernel":
                guest.wait_text(FIRMWARE_REFUSES)
            guest.wait_login(patience=45 if name == "kernel" else PATIENCE)
            said[name] = "login"
        except GuestError:
            if guest.running and name != "kernel":
                raise
            said[name] = guest.serial.boot()
        finally:
            guest.power_off()
        say(f"{guest.name}: decided after {time.monotonic() - begun:.0f} s")

    changed = [Guest(f"e2e-{name}") for name in chosen]
    try:
        together(change_and_boot, changed, at_once=2)
        yield said
    finally:
        for guest in changed:
            guest.power_off()


@attack(
    kind=Kind.NULL_CIPHER,
    does="Flips one bit in the keyslot area, on the disk of a guest that is off",
    promise="The volume is opened from the anchored header or not at all",
    stops="The digest in the TPM: the guest says `header-mismatch` and goes off",
)
@pytest.mark.change("header")
def test_a_changed_header_is_refused(fates: dict[str, str]) -> None:
    assert is_refused(fates["header"], "header-mismatch"), fates["header"]


@pytest.mark.change("header")
def test_a_refusal_is_told_by_the_machine_once_it_boots_again(fates: dict[str, str]) -> None:
    assert is_refused(fates["header"], "header-mismatch")
    guest = Guest("e2e-header")
    flip_in_header(guest)
    try:
        boot(guest)
        known = json.loads(guest.ssh("/usr/lib/cvm-fde/agent.pyz status").stdout)
    finally:
        guest.power_off()
    assert (known["anchor"]["refusals"], known["anchor"]["last_refusal"]) == (1, "header-mismatch")
    assert known["refusal"]["code"] == "header-mismatch" and known["refusal"]["remedy"]
    assert known["problems"] == []


@attack(
    kind=Kind.EVIL_TWIN,
    does="Writes a volume of its own over that of a guest, sealed to the guest's TPM under the image's policy",
    promise="What the machine writes goes into the volume that it made",
    stops="The digest in the TPM: the guest says `header-mismatch` and goes off",
)
@pytest.mark.change("volume")
def test_an_attackers_volume_of_the_same_tpm_is_refused(fates: dict[str, str]) -> None:
    assert is_refused(fates["volume"], "header-mismatch"), fates["volume"]


@attack(
    kind=Kind.CLONE_METADATA,
    does="Has the record of how far the volume is written say less than that, in a booted guest",
    promise="An initrd that cannot mount its root ends without a shell and without the TPM's policy",
    stops="The unit in the place of systemd's emergency shell: the guest says `initrd-failed` and goes off",
)
@pytest.mark.change("record")
def test_a_root_that_cannot_be_mounted_is_refused(fates: dict[str, str]) -> None:
    assert "cvm-fde: refused" not in fates["record"].partition("sysroot.mount")[0], "the agent was to open this root"
    assert is_refused(fates["record"], "initrd-failed"), fates["record"]


@attack(
    kind=Kind.VERITY,
    does="Flips one bit in the super block of the image's root",
    promise="What is read from the root is what was sealed, or an error",
    stops="dm-verity; the command line says `panic-on-corruption`",
)
@pytest.mark.change("root")
def test_a_changed_root_is_not_booted(fates: dict[str, str]) -> None:
    assert "verity" in fates["root"] and "corrupted" in fates["root"]


@attack(
    kind=Kind.CONFIGURATION,
    does="Flips one bit in the middle of the unified kernel image",
    promise="Only what the builder signed is started",
    stops="Secure Boot: the firmware does not start it",
)
@pytest.mark.change("kernel")
def test_a_changed_kernel_image_is_refused_by_secure_boot(fates: dict[str, str]) -> None:
    assert re.search(FIRMWARE_REFUSES, fates["kernel"])
    assert "Linux version" not in fates["kernel"] and "Welcome to" not in fates["kernel"]


@attack(
    kind=Kind.CONFIGURATION,
    does="Puts a credential into `BOOTX64.EFI.extra.d` on the EFI system partition",
    promise="Nothing but the signed image configures the boot",
    stops="systemd-stub measures it into PCR 12: the guest says `configuration-added` and goes off",
)
@pytest.mark.change("credential")
def test_a_credential_beside_the_kernel_image_is_refused(fates: dict[str, str]) -> None:
    assert is_refused(fates["credential"], "configuration-added"), fates["credential"]


@attack(
    kind=Kind.CONFIGURATION,
    does="Puts an add-on into `BOOTX64.EFI.extra.d` that is signed with the builder's own Secure Boot key",
    promise="Nothing but the signed image configures the boot, whoever signed what is beside it",
    stops="systemd-stub measures its words into PCR 12: the guest says `configuration-added` and goes off",
)
@pytest.mark.change("addon")
def test_a_signed_add_on_is_refused(fates: dict[str, str]) -> None:
    assert is_refused(fates["addon"], "configuration-added"), fates["addon"]


@attack(
    kind=Kind.CONFIGURATION,
    does="Puts a raw system extension into `BOOTX64.EFI.extra.d`",
    promise="Nothing but the signed image is in the initrd",
    stops="systemd-stub measures it into PCR 13: the guest says `configuration-added` and goes off",
)
@pytest.mark.change("extension")
def test_a_system_extension_beside_the_kernel_image_is_refused(fates: dict[str, str]) -> None:
    assert is_refused(fates["extension"], "configuration-added"), fates["extension"]


@attack(
    kind=Kind.CONFIGURATION,
    does="Adds words to the command line by SMBIOS, here for a debug shell",
    promise="Nothing but the signed image configures the boot",
    stops="systemd-stub measures them into PCR 12: the guest says `configuration-added` and goes off",
)
@pytest.mark.change("words")
def test_words_that_the_host_adds_to_the_command_line_are_refused(fates: dict[str, str]) -> None:
    assert is_refused(fates["words"], "configuration-added"), fates["words"]


@attack(
    kind=Kind.CONFIGURATION,
    does="Adds a strategy of its own to the command line by SMBIOS, one that keeps nothing and encrypts nothing",
    promise="The signed command line chooses the strategy",
    stops="systemd-stub measures it into PCR 12: the guest says `configuration-added`, also on the disk, and goes off",
)
@pytest.mark.change("strategy")
def test_a_strategy_that_the_host_adds_to_the_command_line_is_refused(fates: dict[str, str]) -> None:
    assert is_refused(fates["strategy"], "configuration-added"), fates["strategy"]
    disk = Guest("e2e-strategy").disk
    kept = run(["mtype", "-i", f"{disk}@@{partitions(disk)[ESP].start}", f"::/{DIRECTORY}/{REFUSAL_FILE}"])
    assert json.loads(kept)["code"] == "configuration-added"


@attack(
    kind=Kind.CONFIGURATION,
    does="Hands systemd a unit, a file and an ssh key as credentials by SMBIOS and fw_cfg, which are not in PCR 12",
    promise="Nothing but the signed image configures the boot",
    stops="`systemd.import_credentials=no` on the signed command line: the guest boots, and none of them is taken",
)
def test_credentials_that_the_host_hands_to_systemd_have_no_effect(sealed: Sealed) -> None:
    guest = Guest("e2e-credentials")
    Guest.create(guest.name, sealed.image)
    try:
        guest.start(strings=STRINGS["credentials"], files=FILES["credentials"])
        guest.wait_login()
        read = "cat /sys/firmware/dmi/entries/11-*/raw"
        read += "; modprobe qemu_fw_cfg; cat /sys/firmware/qemu_fw_cfg/by_name/opt/io.systemd.credentials/*/raw"
        arrived = guest.ssh(read).stdout
        assert all(text in arrived for text in (*STRINGS["credentials"], *FILES["credentials"].values()))
        taken = "find /run/credentials/@system /run/credentials/@initrd -type f 2>/dev/null"
        made = f"ls -d {RUN_BY_HOST} {MADE_BY_HOST} 2>/dev/null; grep -s attacker /root/.ssh/authorized_keys"
        assert guest.ssh(f"{taken}; {made}; true").stdout == ""
        assert "a unit of the host runs" not in guest.ssh("dmesg").stdout + guest.serial.boot()
    finally:
        guest.power_off()


@pytest.mark.change()
def test_no_changed_guest_reaches_a_login_or_a_shell(fates: dict[str, str]) -> None:
    assert [name for name, said in fates.items() if said == "login" or "login:" in said] == []
    assert [name for name, said in fates.items() if re.search(SHELL, said)] == []


@pytest.mark.change()
def test_an_unchanged_guest_opens_its_volume_again(asleep: Asleep, fates: dict[str, str]) -> None:
    guest = asleep.guests[0]
    guest.start()
    guest.wait_login()
    assert guest.ssh("cat /srv/secret").stdout.encode() == asleep.secret
