# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Unlock methods come and go on a draft of the header, proven by a real TPM, and a torn store is repaired."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.cvm.fde.plugins.module_utils.dm.device import DeviceMapper
from ansible_collections.cvm.fde.plugins.module_utils.errors import FdeError
from ansible_collections.cvm.fde.plugins.module_utils.luks2.area import HeaderArea, read_area
from ansible_collections.cvm.fde.plugins.module_utils.luks2.change import BLOCK, draft, redo, store, writes
from ansible_collections.cvm.fde.plugins.module_utils.luks2.keyslots import (
    ByKey,
    ByTpm,
    Credential,
    Enrolled,
    Means,
    Passphrase,
    Recovery,
    Tpm2,
    add,
    change,
    enrolled,
    plan,
    proves,
    remove,
    require_proof,
)
from ansible_collections.cvm.fde.plugins.module_utils.luks2.method import Method
from ansible_collections.cvm.fde.plugins.module_utils.luks2.policy import data_volume, judge
from ansible_collections.cvm.fde.plugins.module_utils.luks2.profile import AUTHENTICATED, LAYOUT, PROFILES, Profile
from ansible_collections.cvm.fde.plugins.module_utils.luks2.recovery_key import new_recovery_key
from ansible_collections.cvm.fde.plugins.module_utils.luks2.volume import (
    attach,
    attach_with_key,
    attach_with_secret,
    check_active,
    detach,
    format_volume,
)
from ansible_collections.cvm.fde.plugins.module_utils.runner import Completed, Runner
from instance import SIGNATURES
from software_tpm import PolicyKey, Tpm

UUID = "6a2f0e55-5b7e-4d0e-9d59-1c2f35e7a004"
SIZE = 48 << 20


class Recorder:
    """Passes everything on, and keeps what other processes can see of it."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self.seen: list[str] = []

    def run(self, argv: Sequence[str], **options: Any) -> Completed:
        self.seen += [*argv, *(options.get("env") or {}).values()]
        return self._runner.run(argv, **options)

    def find(self, name: str) -> str | None:
        return self._runner.find(name)


@dataclass
class Volume:
    """A volume with a temporary key on a disk, and all it takes to change its keyslots."""

    runner: Recorder
    device: str
    key: bytearray
    volume_key: bytearray
    means: Means
    profile: Profile = AUTHENTICATED
    directory: str = "/run"
    saved: list[HeaderArea] = field(default_factory=list)

    @property
    def area(self) -> HeaderArea:
        return read_area(self.device)

    @property
    def slots(self) -> tuple[Enrolled, ...]:
        return enrolled(self.area.header())

    def become(self, *wanted: Method, unlock: Credential | None = None, dead: Sequence[int] = ()) -> None:
        """Make the volume have the wanted unlock methods, as the modules do."""
        old = self.area
        with draft(old, self.directory) as copy:
            planned = plan(self.slots, wanted, dead)
            change(self.runner, copy.path, planned, unlock or ByKey(self.key), self.means)
            new = copy.area()
        judge(new.header(), data_volume(uuid=UUID, profile=self.profile, methods=wanted)).require(self.device)
        self.saved.append(new)
        store(self.device, old, new)

    def opens(self, slot: Enrolled, means: Means | None = None) -> bool:
        with draft(self.area, self.directory) as copy:
            return proves(self.runner, copy.path, slot, means or self.means)


@pytest.fixture
def make(runner: Runner, disk: Callable[..., str], request: pytest.FixtureRequest) -> Iterator[Callable[..., Volume]]:
    """A factory of volumes; they use the TPM of tests that have one."""

    def volume(profile: Profile = AUTHENTICATED, **options: Any) -> Volume:
        recorder, device = Recorder(runner), disk(SIZE)
        key, volume_key = bytearray(os.urandom(32)), bytearray(os.urandom(profile.volume_key_size))
        format_volume(recorder, device, volume_key=volume_key, temporary_key=key, uuid=UUID, profile=profile, **options)
        secrets = {"recovery": new_recovery_key(), "passphrase": bytearray(b"correct horse battery")}
        # A guest in user mode takes a second for every hundred MiB that it touches.
        means = Means(**secrets, tpm2_device=tcti, passphrase_memory=64 << 10)
        return Volume(recorder, device, key, volume_key, means, profile)

    tcti = "auto"
    if "tpm" in request.fixturenames:
        tpm = request.getfixturevalue("tpm")
        tpm.extend(7, "secure boot")
        tpm.extend(11, "enter-initrd")
        tcti = tpm.tcti
    yield volume
    SIGNATURES.unlink(missing_ok=True)


def _signed(tpm: Tpm, directory: Path) -> bytes:
    """Sign the present value of PCR 11, where systemd looks for signatures, and return the public key."""
    key = PolicyKey(directory)
    key.sign([tpm.pcr(11)], SIGNATURES)
    return key.public_key.read_bytes()


def _pcrlock(tpm: Tpm, directory: Path) -> Path:
    """Have systemd-pcrlock predict PCR 15 from a log, and write its policy into the TPM."""
    digest = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"
    tpm.extend(15, "hello")
    event = {
        "pcr": 15,
        "digests": [{"hashAlg": "sha256", "digest": digest}],
        "content_type": "systemd",
        "content": {"string": "hello", "bootId": "0" * 32, "timestamp": 1, "eventType": "phase"},
    }
    for name, content in (("raw", "hello"), ("firmware", ""), ("userspace", "\x1e" + json.dumps(event) + "\n")):
        (directory / name).write_text(content)
    (directory / "pcrlock.d").mkdir()
    policy = directory / "pcrlock.json"
    environment = {
        **os.environ,
        "SYSTEMD_TPM2_DEVICE": tpm.tcti,
        "SYSTEMD_MEASURE_LOG_FIRMWARE": str(directory / "firmware"),
        "SYSTEMD_MEASURE_LOG_USERSPACE": str(directory / "userspace"),
    }
    for argv in (
        ["lock-raw", "--pcr=15", f"--pcrlock={directory}/pcrlock.d/1.pcrlock", str(directory / "raw")],
        ["make-policy", "--pcr=15", f"--components={directory}/pcrlock.d", f"--policy={policy}"],
    ):
        subprocess.run(["/usr/lib/systemd/systemd-pcrlock", *argv], env=environment, check=True)
    # Whoever unlocks looks for it here.
    Path("/run/systemd/pcrlock.json").write_bytes(policy.read_bytes())
    return policy


@pytest.mark.parametrize("kind", ["literal", "signed", "pcrlock", "signed and pcrlock"])
def test_the_tpm_opens_a_keyslot_while_its_policy_holds_and_no_longer(
    make: Callable[..., Volume], tpm: Tpm, tmp_path: Path, kind: str
) -> None:
    volume = make()
    key = _signed(tpm, tmp_path) if "signed" in kind else None
    pcrlock = "pcrlock" in kind
    if pcrlock:
        volume.means = Means(tpm2_device=tpm.tcti, pcrlock_policy=str(_pcrlock(tpm, tmp_path)))
    method = Tpm2(pcrs=(7,) if kind == "literal" else (), public_key=key, pcrlock=pcrlock)
    volume.become(method)
    (slot,) = volume.slots
    assert slot.method == method
    assert volume.opens(slot)
    tpm.extend({"literal": 7, "signed": 11}.get(kind, 15), "another system")
    assert not volume.opens(slot)


def test_every_method_opens_the_volume_and_native_tools_read_it(
    make: Callable[..., Volume], mapper: DeviceMapper, tpm: Tpm, tmp_path: Path
) -> None:
    volume = make()
    signed = Tpm2(pcrs=(7,), public_key=_signed(tpm, tmp_path))
    volume.become(signed, Recovery(), Passphrase())
    assert {slot.method for slot in volume.slots} == {signed, Recovery(), Passphrase()}
    assert all(volume.opens(slot) for slot in volume.slots)
    listed = volume.runner.run(["systemd-cryptenroll", volume.device]).stdout.decode().split()
    assert sorted(listed[3::2]) == ["password", "recovery", "tpm2"]
    header = str(tmp_path / "header")
    volume.area.store(header)
    opened = {"header": header, "tpm2_device": tpm.tcti, "signature": str(SIGNATURES)}
    for open_it in (
        lambda: attach(volume.runner, "data", volume.device, **opened, measure=False),
        lambda: attach_with_secret(
            volume.runner, "data", volume.device, header=header, secret=volume.means.recovery or bytearray()
        ),
        lambda: attach_with_secret(
            volume.runner, "data", volume.device, header=header, secret=volume.means.passphrase or bytearray()
        ),
    ):
        open_it()
        check_active(mapper, "data")
        detach(volume.runner, "data")
    for secret in (volume.key, volume.volume_key, volume.means.recovery, volume.means.passphrase):
        assert secret
        for spelling in (bytes(secret).decode("latin-1"), secret.hex()):
            assert not any(spelling in word for word in volume.runner.seen)
    # A second run with the same wish has nothing to do.
    assert not plan(volume.slots, [signed, Recovery(), Passphrase()]).changes


@pytest.mark.parametrize("profile", PROFILES.values(), ids=PROFILES)
def test_a_volume_without_a_tpm_is_unlocked_by_its_recovery_key(
    make: Callable[..., Volume], mapper: DeviceMapper, profile: Profile, tmp_path: Path
) -> None:
    volume = make(profile)
    volume.become(Recovery())
    (slot,) = volume.slots
    assert volume.opens(slot)
    assert not volume.opens(slot, Means(recovery=new_recovery_key()))
    volume.area.store(str(tmp_path / "header"))
    secret = volume.means.recovery or bytearray()
    attach_with_secret(volume.runner, "data", volume.device, header=str(tmp_path / "header"), secret=secret)
    check_active(mapper, "data", profile=profile)


def test_a_volume_without_a_journal_stays_without_one(
    make: Callable[..., Volume], mapper: DeviceMapper, tmp_path: Path
) -> None:
    volume = make(journal=False)
    old = volume.area
    with draft(old, "/run") as copy:
        attach_with_key(
            volume.runner, "data", volume.device, header=copy.path, volume_key=volume.volume_key, journal=False
        )
        check_active(mapper, "data", journal=False)
        # The disk is written to while the volume is open.
        store(volume.device, old, copy.area())
    detach(volume.runner, "data")
    volume.area.store(str(tmp_path / "header"))
    attach_with_secret(volume.runner, "data", volume.device, header=str(tmp_path / "header"), secret=volume.key)
    check_active(mapper, "data", journal=False)
    assert volume.area.header().metadata["config"]["flags"] == ["no-journal"]


def test_the_tpm_alone_unlocks_the_volume_for_a_change(make: Callable[..., Volume], tpm: Tpm, tmp_path: Path) -> None:
    volume = make()
    first = Tpm2(pcrs=(7,))
    volume.become(first)
    volume.become(first, Recovery(), unlock=ByTpm(tpm.tcti))
    assert [slot.method for slot in volume.slots] == [first, Recovery()]
    second = Tpm2(pcrs=(7, 12), public_key=_signed(tpm, tmp_path))
    volume.become(second, unlock=ByTpm(tpm.tcti))
    assert [slot.method for slot in volume.slots] == [second]
    assert volume.opens(volume.slots[0])


def test_after_the_tpm_was_cleared_the_recovery_key_enrols_the_same_policy_anew(
    make: Callable[..., Volume], tpm: Tpm, tmp_path: Path
) -> None:
    volume = make()
    wanted = (Tpm2(pcrs=(7,)), Recovery())
    volume.become(*wanted)
    with Tpm.start(tmp_path / "cleared") as other:
        other.extend(7, "secure boot")
        volume.means = Means(recovery=volume.means.recovery, tpm2_device=other.tcti)
        dead = [slot.keyslot for slot in volume.slots if not volume.opens(slot)]
        assert [slot.method for slot in volume.slots if slot.keyslot in dead] == [wanted[0]]
        volume.become(*wanted, unlock=ByKey(volume.means.recovery or bytearray()), dead=dead)
        assert all(volume.opens(slot) for slot in volume.slots)
        assert {slot.method for slot in volume.slots} == set(wanted)


def test_a_method_that_is_not_proven_changes_nothing_on_the_disk(
    make: Callable[..., Volume], tpm: Tpm, tmp_path: Path
) -> None:
    volume = make()
    public_key = _signed(tpm, tmp_path)
    tpm.extend(11, "a phase that nobody signed")
    before = volume.area
    with pytest.raises(FdeError, match="does not unlock"):
        volume.become(Tpm2(pcrs=(), public_key=public_key))
    assert volume.area == before


def test_the_last_keyslot_is_never_removed(make: Callable[..., Volume]) -> None:
    volume = make()
    volume.become(Recovery())
    with draft(volume.area, "/run") as copy:
        (slot,) = volume.slots
        with pytest.raises(FdeError, match="last keyslot"):
            remove(volume.runner, copy.path, slot)
        assert copy.area() == volume.area


def test_a_policy_that_is_enrolled_already_is_an_error_and_no_silent_success(
    make: Callable[..., Volume], tpm: Tpm
) -> None:
    volume = make()
    volume.become(Tpm2(pcrs=(7,)), Recovery())
    unlock = ByKey(volume.means.recovery or bytearray())
    with draft(volume.area, "/run") as copy, pytest.raises(FdeError, match="0 keyslots were made"):
        add(volume.runner, copy.path, Tpm2(pcrs=(7,)), unlock, volume.means)
    with draft(volume.area, "/run") as copy, pytest.raises(FdeError, match="without any condition"):
        add(volume.runner, copy.path, Tpm2(pcrs=()), unlock, volume.means)


def test_after_a_power_cut_at_any_block_the_volume_opens_as_before_or_as_after(
    make: Callable[..., Volume], runner: Runner
) -> None:
    volume = make()
    volume.become(Recovery())
    old, first = volume.area, volume.means
    volume.means = Means(recovery=new_recovery_key())
    unlock = ByKey(first.recovery or bytearray())
    volume.become(Recovery(), unlock=unlock, dead=[volume.slots[0].keyslot])
    new = volume.saved[-1]
    blocks = [
        (write.offset + at, write.content[at : at + BLOCK])
        for write in writes(old, new)
        for at in range(0, len(write.content), BLOCK)
    ]
    assert len(blocks) > 96
    # The cuts that can matter: around the borders of the parts, and some inside of the keyslots.
    cuts = sorted({0, 1, len(blocks) // 2, *range(len(blocks) - 3, len(blocks) + 1)})
    for cut in cuts:
        _restore(volume.device, old.content, blocks[:cut])
        torn = volume.area
        if torn.digest == old.digest:
            assert volume.opens(enrolled(old.header())[0], first)
            continue
        if torn.digest != new.digest:
            redo(volume.device, new)
        assert volume.area == new
        with draft(volume.area, "/run") as copy:
            require_proof(runner, copy.path, enrolled(new.header())[0], volume.means)


def _restore(device: str, content: bytes, blocks: Sequence[tuple[int, bytes]]) -> None:
    descriptor = os.open(device, os.O_WRONLY | os.O_SYNC)
    try:
        os.pwrite(descriptor, content, 0)
        for offset, block in blocks:
            os.pwrite(descriptor, block, offset)
    finally:
        os.close(descriptor)


def test_a_disk_that_dies_during_a_store_is_repaired_from_the_copy(
    make: Callable[..., Volume], runner: Runner, mapper: DeviceMapper
) -> None:
    volume = make()
    lower, old, sectors = volume.device, volume.area, SIZE // 512
    broken = 2 * LAYOUT.metadata_size // 512
    table = f"0 {broken} error\n{broken} {sectors - broken} linear {lower} {broken}\n"
    runner.run(["dmsetup", "create", "dying"], stdin=f"0 {sectors} linear {lower} 0\n".encode())
    dying = mapper.get("dying").path
    with draft(old, "/run") as copy:
        change(volume.runner, copy.path, plan(volume.slots, [Recovery()]), ByKey(volume.key), volume.means)
        new = copy.area()
    # The keyslots can still be written, the headers no longer; and the disk is read before it is written.
    runner.run(["dmsetup", "load", "dying"], stdin=table.encode())
    runner.run(["dmsetup", "resume", "dying"])
    with pytest.raises(FdeError):
        store(dying, old, new)
    assert read_area(lower) == HeaderArea(lower, old.content)
    flaky = f"0 {sectors} flakey {lower} 0 0 3600 1 error_writes\n"
    runner.run(["dmsetup", "load", "dying"], stdin=flaky.encode())
    runner.run(["dmsetup", "resume", "dying"])
    with pytest.raises(FdeError, match="could not be written"):
        store(dying, HeaderArea(dying, old.content), new)
    runner.run(["dmsetup", "load", "dying"], stdin=f"0 {sectors} linear {lower} 0\n".encode())
    runner.run(["dmsetup", "resume", "dying"])
    redo(dying, new)
    assert read_area(dying).content == new.content
    with draft(new, "/run") as copy:
        assert proves(runner, copy.path, enrolled(new.header())[0], volume.means)
