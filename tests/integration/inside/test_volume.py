# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A volume is what it claims to be, from format to refusal, on a real kernel and a real TPM."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from ansible_collections.cvm.fde.plugins.module_utils.dm.device import DeviceMapper
from ansible_collections.cvm.fde.plugins.module_utils.errors import Refusal
from ansible_collections.cvm.fde.plugins.module_utils.luks2.area import read_area
from ansible_collections.cvm.fde.plugins.module_utils.luks2.digest import volume_key_id
from ansible_collections.cvm.fde.plugins.module_utils.luks2.policy import (
    Expectation,
    Reason,
    TokenType,
    Tpm2Binding,
    judge,
)
from ansible_collections.cvm.fde.plugins.module_utils.luks2.profile import (
    AEGIS,
    AUTHENTICATED,
    LAYOUT,
    PROFILES,
    Profile,
)
from ansible_collections.cvm.fde.plugins.module_utils.luks2.volume import (
    attach,
    attach_with_key,
    check_active,
    detach,
    enrol_tpm2,
    format_volume,
    import_token,
)
from ansible_collections.cvm.fde.plugins.module_utils.runner import CommandError, Runner
from software_tpm import PolicyKey, Tpm

UUID = "6a2f0e55-5b7e-4d0e-9d59-1c2f35e7a001"
SIZE = 64 << 20
BLOCK = 4096
EVIDENCE = {
    "type": "cvm-fde",
    "keyslots": [],
    "version": 1,
    "claims": "e30=",
    "quote": {"attest": "AA==", "signature": "AA=="},
    "ak": "AA==",
    "pcrs": {"sha256": {"11": "00" * 32}},
    "firmware_log": "A" * 80_000,
    "userspace_log": "AAAA",
}


def _key(profile: Profile = AUTHENTICATED) -> bytearray:
    return bytearray(os.urandom(profile.volume_key_size))


def _format(runner: Runner, device: str, profile: Profile = AUTHENTICATED) -> tuple[bytearray, bytearray]:
    volume_key, temporary_key = _key(profile), bytearray(os.urandom(32))
    format_volume(runner, device, volume_key=volume_key, temporary_key=temporary_key, uuid=UUID, profile=profile)
    return volume_key, temporary_key


def _write(path: str, content: bytes, offset: int = 0) -> None:
    descriptor = os.open(path, os.O_WRONLY)
    os.pwrite(descriptor, content, offset)
    os.fsync(descriptor)
    os.close(descriptor)


def _read(path: str, offset: int = 0) -> bytes:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return os.pread(descriptor, BLOCK, offset)
    finally:
        os.close(descriptor)


def _drop_caches() -> None:
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")


@pytest.mark.parametrize("profile", PROFILES.values(), ids=PROFILES)
def test_a_new_volume_has_the_header_and_the_mapping_of_its_profile(
    runner: Runner, mapper: DeviceMapper, disk: Callable[..., str], profile: Profile, tmp_path: Path
) -> None:
    device = disk(SIZE)
    volume_key, _temporary = _format(runner, device, profile)
    area = read_area(device)
    # The temporary keyslot has a random key and the stretching of a bound one, which only its wiping makes acceptable.
    expected = Expectation(profile=profile, uuid=UUID, passphrases=(1, 1))
    assert judge(area.header(), expected).reasons == (Reason.KDF_COST,)
    area.store(str(tmp_path / "header"))
    attach_with_key(runner, "volume", device, header=str(tmp_path / "header"), volume_key=volume_key)
    check_active(mapper, "volume", profile=profile)
    for other in PROFILES.values():
        if other != profile:
            with pytest.raises(Refusal, match="otherwise"):
                check_active(mapper, "volume", profile=other)
    path = mapper.get("volume").path
    _write(path, b"kept" * 1024)
    _drop_caches()
    assert _read(path) == b"kept" * 1024
    detach(runner, "volume")
    assert mapper.find("volume") is None
    assert b"keptkept" not in Path(device).read_bytes()


@pytest.mark.parametrize("profile", [AUTHENTICATED, AEGIS], ids=lambda profile: profile.name)
def test_a_flipped_bit_in_the_data_is_an_error_and_not_other_data(
    runner: Runner, mapper: DeviceMapper, disk: Callable[..., str], profile: Profile, tmp_path: Path
) -> None:
    device = disk(SIZE)
    volume_key, _temporary = _format(runner, device, profile)
    header = str(tmp_path / "header")
    read_area(device).store(header)
    attach_with_key(runner, "volume", device, header=header, volume_key=volume_key)
    path = mapper.get("volume").path
    before = Path(device).read_bytes()
    _write(path, b"first block".ljust(BLOCK, b"."))
    _write(path, b"other block".ljust(BLOCK, b"."), BLOCK)
    detach(runner, "volume")
    _drop_caches()
    after = Path(device).read_bytes()
    # What changed and is not almost empty is data: dm-integrity's journal and tags come before it.
    changed = [
        at
        for at in range(LAYOUT.offset, SIZE, BLOCK)
        if before[at : at + BLOCK] != after[at : at + BLOCK] and after[at : at + BLOCK].count(0) < 100
    ]
    assert len(changed) >= 2
    data = changed[-2]
    _write(device, bytes([after[data + 100] ^ 1]), data + 100)
    _drop_caches()
    attach_with_key(runner, "volume", device, header=header, volume_key=volume_key)
    path = mapper.get("volume").path
    with pytest.raises(OSError, match="Input/output error"):
        _read(path)
    assert _read(path, BLOCK).startswith(b"other block")


def _sealed(runner: Runner, device: str, tpm: Tpm, policy_key: PolicyKey) -> tuple[str, Expectation]:
    """Make a root volume as the boot agent does; return its key id and what its header must say."""
    volume_key, temporary_key = _format(runner, device)
    enrol_tpm2(runner, device, unlock_key=temporary_key, tpm2_device=tpm.tcti, public_key=str(policy_key.public_key))
    import_token(runner, device, EVIDENCE)
    expected = Expectation(
        uuid=UUID,
        tokens={TokenType.TPM2: (1, 1), TokenType.EVIDENCE: (1, 1)},
        tpm2=(Tpm2Binding(public_key=policy_key.public_key.read_bytes()),),
    )
    return volume_key_id(volume_key, "fde-crypt", UUID), expected


def test_the_tpm_opens_a_sealed_volume_from_the_checked_copy_of_its_header(
    runner: Runner, mapper: DeviceMapper, disk: Callable[..., str], tpm: Tpm, tmp_path: Path
) -> None:
    device, policy_key = disk(SIZE), PolicyKey(tmp_path)
    tpm.extend(11, "enter-initrd")
    tpm.extend(7, "secure boot")
    key_id, expected = _sealed(runner, device, tpm, policy_key)
    area = read_area(device)
    assert judge(area.header(), expected).violations == ()
    assert json.loads(json.dumps(area.header().metadata["tokens"]["1"])) == EVIDENCE
    area.store(str(tmp_path / "header"))
    # From here on the disk may say what it likes: the header there is gone.
    _write(device, bytes(LAYOUT.offset))
    signature = policy_key.sign([tpm.pcr(11)], tmp_path / "signature.json")
    opened = {"header": str(tmp_path / "header"), "tpm2_device": tpm.tcti, "signature": str(signature)}
    with pytest.raises(CommandError, match="does not match the expectation"):
        attach(runner, "fde-crypt", device, volume_key_id="00" * 32, **opened)
    attach(runner, "fde-crypt", device, volume_key_id=key_id, **opened)
    check_active(mapper, "fde-crypt")


def test_the_tpm_keeps_a_sealed_volume_closed_in_another_state(
    runner: Runner, mapper: DeviceMapper, disk: Callable[..., str], tpm: Tpm, tmp_path: Path
) -> None:
    device, policy_key = disk(SIZE), PolicyKey(tmp_path)
    tpm.extend(11, "enter-initrd")
    _key_id, _expected = _sealed(runner, device, tpm, policy_key)
    read_area(device).store(str(tmp_path / "header"))
    opened = {"header": str(tmp_path / "header"), "tpm2_device": tpm.tcti}
    signature = policy_key.sign([tpm.pcr(11)], tmp_path / "signature.json")
    (tmp_path / "other").mkdir()
    foreign = PolicyKey(tmp_path / "other").sign([tpm.pcr(11)], tmp_path / "foreign.json")
    with pytest.raises(CommandError):
        attach(runner, "fde-crypt", device, signature=str(foreign), **opened)
    tpm.extend(11, "leave-initrd")
    with pytest.raises(CommandError):
        attach(runner, "fde-crypt", device, signature=str(signature), **opened)
    signature = policy_key.sign([tpm.pcr(11)], tmp_path / "signature.json")
    tpm.extend(7, "another Secure Boot policy")
    with pytest.raises(CommandError):
        attach(runner, "fde-crypt", device, signature=str(signature), **opened)
    assert mapper.find("fde-crypt") is None


def test_a_header_that_encrypts_nothing_is_refused_although_cryptsetup_opens_it(
    runner: Runner, mapper: DeviceMapper, disk: Callable[..., str]
) -> None:
    device = disk(SIZE)
    passphrase = b"anything"
    runner.run(
        [
            *("cryptsetup", "luksFormat", "--batch-mode", "--type", "luks2", "--cipher", "cipher_null-ecb"),
            *("--key-size", "256", "--sector-size", "4096", "--luks2-metadata-size", str(LAYOUT.metadata_size)),
            *("--offset", str(LAYOUT.offset // 512), "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "100000"),
            *("--uuid", UUID, "--key-file", "-", device),
        ],
        stdin=passphrase,
    )
    runner.run(["cryptsetup", "open", "--key-file", "-", device, "null"], stdin=passphrase)
    judgement = judge(read_area(device).header(), Expectation(uuid=UUID, passphrases=(1, 1)))
    assert Reason.NULL_CIPHER in judgement.reasons
    with pytest.raises(Refusal, match="null-cipher at segments.0.encryption"):
        judgement.require(device)
    with pytest.raises(Refusal, match="otherwise"):
        check_active(mapper, "null")


def test_a_changed_header_has_another_digest_even_where_both_are_sound(
    runner: Runner, mapper: DeviceMapper, disk: Callable[..., str]
) -> None:
    device = disk(SIZE)
    _volume_key, temporary_key = _format(runner, device)
    before = read_area(device)
    runner.run(["cryptsetup", "config", "--label", "", "--priority", "normal", "--key-slot", "0", device])
    import_token(runner, device, EVIDENCE)
    after = read_area(device)
    assert after.header().binary.sequence_id > before.header().binary.sequence_id
    assert after.digest != before.digest
