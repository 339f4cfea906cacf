# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A refused boot is recovered with the recovery key: shown, asked, measured, and pinned again.

Of the console only what is typed and read is a double here; terminal and serial line belong to whole boots.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Optional

import pytest
from ansible_collections.cvm.fde.plugins.module_utils.agent import anchoring, evidence, recovery, upkeep, volume_key
from ansible_collections.cvm.fde.plugins.module_utils.agent.boot import boot
from ansible_collections.cvm.fde.plugins.module_utils.agent.configuration import Strategy
from ansible_collections.cvm.fde.plugins.module_utils.agent.decision import Action
from ansible_collections.cvm.fde.plugins.module_utils.agent.hydration import Ears
from ansible_collections.cvm.fde.plugins.module_utils.agent.machine import Machine
from ansible_collections.cvm.fde.plugins.module_utils.agent.measuring import measured
from ansible_collections.cvm.fde.plugins.module_utils.codes import RECOVERABLE, Code
from ansible_collections.cvm.fde.plugins.module_utils.disk import gpt
from ansible_collections.cvm.fde.plugins.module_utils.dm.device import DeviceMapper
from ansible_collections.cvm.fde.plugins.module_utils.dm.table import Linear
from ansible_collections.cvm.fde.plugins.module_utils.errors import FdeError, Refusal
from ansible_collections.cvm.fde.plugins.module_utils.luks2 import change as changes
from ansible_collections.cvm.fde.plugins.module_utils.luks2 import keyslots
from ansible_collections.cvm.fde.plugins.module_utils.luks2 import volume as volumes
from ansible_collections.cvm.fde.plugins.module_utils.luks2.area import HeaderArea, read_area
from ansible_collections.cvm.fde.plugins.module_utils.luks2.recovery_key import new_recovery_key
from ansible_collections.cvm.fde.plugins.module_utils.tpm.anchor import INDEX
from ansible_collections.cvm.fde.plugins.module_utils.tpm.esys import opened
from ansible_collections.cvm.fde.plugins.module_utils.tpm.policy import BOUND_PCRS, authorized
from cryptography.hazmat.primitives.asymmetric import rsa
from instance import (
    MIB,
    SIGNATURES,
    Lab,
    PcrRunner,
    PowerCut,
    extend,
    make_lab,
    make_sealed,
    mounted,
    run,
    seal_with,
    update,
    write_file,
)
from test_commit import cut_at, restate
from tpm2_pytss import ESYS_TR

#: Where systemd keeps the storage root key, as the TCG says (TPM v2.0 Provisioning Guidance, section 7.8).
STORAGE_KEY = 0x81000001
KEY = bytes(new_recovery_key())
WRONG, LOST = bytes(new_recovery_key()), bytes(new_recovery_key())


@dataclass
class Person:
    """Somebody with a list of answers."""

    keys: list[bytes]
    answer: str = "yes"
    told: list[str] = field(default_factory=list)

    def tell(self, text: str) -> None:
        self.told.append(text)

    def ask(self, question: str) -> str:
        self.told.append(question)
        return self.answer

    def ask_secret(self, question: str) -> bytearray:
        self.told.append(question)
        return bytearray(self.keys.pop(0))

    @property
    def heard(self) -> str:
        return "\n".join(self.told)


@dataclass
class Watcher(Person):
    """Somebody who looks at the open volume whenever something is told."""

    mapper: Optional[DeviceMapper] = None
    read_only: list[tuple[str, bool]] = field(default_factory=list)

    def tell(self, text: str) -> None:
        super().tell(text)
        assert self.mapper is not None
        found = map(self.mapper.find, ("fde-crypt", "fde-crypt_dif"))
        self.read_only += [(device.name, device.read_only) for device in found if device]


@pytest.fixture(scope="module")
def escrowed_once(tmp_path_factory: pytest.TempPathFactory, sealed: tuple[Path, str], signer: object) -> Path:
    """The directory of an instance whose image allows recovery and whose volume has a recovery key."""
    directory = tmp_path_factory.mktemp("escrowed")
    instance = make_lab(directory, sealed, signer)
    allow(instance)
    with instance.booting() as machine:
        SIGNATURES.write_text(Path(machine.paths.signatures).read_text())
        assert boot(machine) is Action.FIRST_BOOT
        unlock, means = keyslots.ByTpm(instance.tcti), keyslots.Means(recovery=bytearray(KEY))

        def edit(copy: changes.Draft) -> None:
            # Of a rotation that was never confirmed there is a second one, whose key nobody has.
            lost = keyslots.Means(recovery=bytearray(LOST))
            keyslots.add(machine.runner, copy.path, keyslots.Recovery(), unlock, lost)
            keyslots.add(machine.runner, copy.path, keyslots.Recovery(), unlock, means)

        recovery.commit.change(machine, edit)
    return directory


def allow(instance: Lab) -> None:
    line = instance.directory / "cmdline"
    line.write_text(f"{line.read_text().strip()} fde.recovery=console\n")


def add_key(instance: Lab) -> None:
    """Give the volume the recovery key."""
    machine = instance.machine
    unlock, means = keyslots.ByTpm(instance.tcti), keyslots.Means(recovery=bytearray(KEY))
    recovery.commit.change(
        machine, lambda copy: keyslots.add(machine.runner, copy.path, keyslots.Recovery(), unlock, means)
    )


@pytest.fixture(params=["clone", "copy"])
def complete(
    request: pytest.FixtureRequest, tmp_path: Path, sealed: tuple[Path, str], signer: rsa.RSAPrivateKey
) -> Lab:
    """An instance of each strategy whose volume holds a whole file system in the end."""
    instance = make_lab(tmp_path, sealed, signer, request.param)
    allow(instance)
    with instance.booting() as machine:
        SIGNATURES.write_text(Path(machine.paths.signatures).read_text())
        assert boot(machine) is Action.FIRST_BOOT
        with mounted() as root:
            upkeep.finish(machine, Ears(lambda _: None, lambda _: None), str(root))
        add_key(instance)
    return instance


@pytest.fixture
def escrowed(escrowed_once: Path, lab: Lab) -> Lab:
    """One such instance for one test."""
    run("cp", "--sparse=always", str(escrowed_once / "disk"), str(lab.image))
    for state in escrowed_once.glob("tpm2-*"):
        run("cp", str(state), str(lab.directory))
    allow(lab)
    return lab


def renew(machine: Machine, copy: changes.Draft) -> None:
    """Put the evidence into a header once more, which makes it another header of the same content."""
    tokens = copy.area().header().metadata["tokens"].items()
    [(number, token)] = [(int(name), token) for name, token in tokens if token["type"] == evidence.TOKEN_TYPE]
    volumes.import_token(machine.runner, copy.path, token, token_id=number)


def rewrite(instance: Lab) -> None:
    """Change the header as a careless operator does, without a commit."""
    area = read_area(instance.partition)
    with changes.draft(area, "/run") as copy:
        renew(instance.machine, copy)
        new = copy.area()
    changes.store(instance.partition, area, HeaderArea(instance.partition, new.content))


def clear(instance: Lab) -> None:
    """Take another TPM."""
    for state in instance.directory.glob("tpm2-*"):
        state.unlink()


def whole_volume(instance: Lab) -> str:
    """Return the digest of all that is in the encrypted partition, as it is on the disk."""
    digest = hashlib.sha256()
    with instance.image.open("rb") as disk:
        [place] = gpt.read_table(disk, instance.image.stat().st_size, "disk").of_type(gpt.FDE)
        disk.seek(place.offset)
        for _piece in range(place.size // MIB):
            digest.update(disk.read(MIB))
        digest.update(disk.read(place.size % MIB))
    return digest.hexdigest()


def refusal_of(machine: Machine) -> Refusal:
    with pytest.raises(Refusal) as caught:
        boot(machine)
    assert recovery.offered(machine, caught.value)
    return caught.value


def attended(instance: Lab, machine: Machine) -> Machine:
    return replace(machine, runner=PcrRunner(instance))


def logged(machine: Machine) -> list[bytes]:
    return measured(machine.paths.measurements, 15)


def recovered(instance: Lab, person: Person, firmware: Callable[[Lab], object] = lambda _lab: None) -> str:
    """Have the refused boot recovered, and return the code of its refusal; ``firmware`` runs before the agent."""
    with instance.booting() as machine:
        firmware(instance)
        refusal = refusal_of(machine)
        assert recovery.recover(attended(instance, machine), refusal, person)
        assert machine.mapper.find("fde-crypt") is None and machine.mapper.find("fde-root") is None
        return refusal.code


def put_back(instance: Lab) -> None:
    """Change the header as it should be, and let the host put the one before back."""
    machine, older = instance.machine, read_area(instance.partition)
    recovery.commit.change(machine, partial(renew, machine))
    changes.store(instance.partition, read_area(instance.partition), older)


def write_another_version(instance: Lab) -> None:
    """Leave an anchor as another version of the agent may write it, under the policy that lets only the image write."""
    machine, content = instance.machine, bytearray(instance.anchored().marshal())
    content[4] += 1
    with opened(instance.tcti) as esys, authorized(esys, machine.key, machine.policies) as session:
        index = esys.tr_from_tpmpublic(INDEX)
        esys.nv_write(index, bytes(content), 0, index, session1=session)


def evict_storage_key(instance: Lab) -> None:
    """Remove the key of the TPM below which the keyslot's is, as whoever owns the TPM can."""
    with opened(instance.tcti) as esys:
        esys.evict_control(ESYS_TR.OWNER, esys.tr_from_tpmpublic(STORAGE_KEY), STORAGE_KEY)


def update_dbx(instance: Lab) -> None:
    """Measure as a firmware does whose list of forbidden images has grown."""
    with opened(instance.tcti) as esys:
        extend(esys, b"a longer dbx", 7)


@dataclass(frozen=True)
class Cause:
    """How a refusal comes about: by what is done in the boot before, while the machine is off, or in each one after."""

    running: Callable[[Lab], object] = lambda _lab: None
    off: Callable[[Lab], object] = lambda _lab: None
    firmware: Callable[[Lab], object] = lambda _lab: None


CAUSES = {
    Code.HEADER_MISMATCH: Cause(running=rewrite),
    Code.ROLLED_BACK: Cause(running=put_back),
    Code.KEY_UNAVAILABLE: Cause(running=evict_storage_key),
    Code.VOLUME_WITHOUT_ANCHOR: Cause(off=clear),
    Code.ANCHOR_FOREIGN: Cause(firmware=update_dbx),
    Code.ANCHOR_UNREADABLE: Cause(running=write_another_version),
}


@pytest.mark.parametrize("code", sorted(RECOVERABLE))
def test_every_refusal_that_offers_a_recovery_can_be_recovered(escrowed: Lab, code: Code) -> None:
    cause = CAUSES[code]
    with escrowed.booting() as machine:
        assert boot(machine) is Action.OPEN
        write_file("kept", b"what the instance wrote")
        cause.running(escrowed)
    cause.off(escrowed)
    person = Person([KEY])
    assert recovered(escrowed, person, cause.firmware) == code
    assert f"refused as {code.value}" in person.heard
    for _boot in range(2):
        with escrowed.booting() as machine:
            cause.firmware(escrowed)
            assert boot(machine) is Action.OPEN
            assert (escrowed.anchored().recoveries, escrowed.anchored().last_refusal) == (1, code.value)
            with mounted() as root:
                assert (root / "kept").read_bytes() == b"what the instance wrote"
    told = evidence.found(read_area(str(escrowed.machine.paths.header)).header())[evidence.RECOVERY]
    assert (told.claims["code"], told.claims["recoveries"]) == (code.value, 1)


def test_nobody_is_asked_for_a_key_where_the_tpm_could_remember_nothing(escrowed: Lab) -> None:
    """PCR 11 has a value that the image's key has not signed: neither keyslot nor anchor could be made."""
    with escrowed.booting() as machine:
        before = escrowed.anchored(), read_area(escrowed.partition).digest
        with opened(escrowed.tcti) as esys:
            extend(esys, b"something else")
        refusal, person = refusal_of(machine), Person([KEY])
        assert refusal.code == "key-unavailable"
        with pytest.raises(FdeError, match="PCR 11"):
            recovery.recover(attended(escrowed, machine), refusal, person)
        assert person.told == [] and person.keys == [KEY]
        assert logged(machine) == [hashlib.sha256(b"cvm-fde-recovery:key-unavailable").digest()]
        assert (escrowed.anchored(), read_area(escrowed.partition).digest) == before


def test_without_a_volume_there_is_nothing_to_recover(escrowed: Lab) -> None:
    with escrowed.booting() as machine:
        assert boot(machine) is Action.OPEN
        write_another_version(escrowed)
    run("sfdisk", "--quiet", "--delete", str(escrowed.image), "4")
    person = Person([KEY])
    with escrowed.booting() as machine:
        refusal = refusal_of(machine)
        assert refusal.code == "anchor-unreadable"
        with pytest.raises(FdeError, match="no volume to recover"):
            recovery.recover(attended(escrowed, machine), refusal, person)
    assert person.keys == [KEY], "nobody was asked"


def not_recovered(instance: Lab, machine: Machine, why: str) -> None:
    """Have a boot refused, and its recovery as well, before anybody is asked to trust the volume."""
    before = instance.anchored(), read_area(instance.partition).digest
    refusal, person = refusal_of(machine), Person([KEY])
    assert refusal.code == "header-mismatch"
    with pytest.raises(FdeError, match=why):
        recovery.recover(attended(instance, machine), refusal, person)
    assert "yes" not in person.heard
    assert (instance.anchored(), read_area(instance.partition).digest) == before
    assert machine.mapper.find("fde-crypt") is None and machine.mapper.find("fde-root") is None


@pytest.mark.parametrize(
    ("claims", "why"),
    [
        ({"purpose": evidence.RECOVERY}, "no evidence of its creation"),
        ({"volume_key_id": "00" * 32}, "for another volume_key_id"),
        ({"luks_uuid": "00000000-0000-4000-8000-000000000000"}, "for another luks_uuid"),
        ({"root_hash": "00" * 32}, "for another root_hash"),
        ({"strategy": "overlay"}, "for another strategy"),
    ],
    ids=["none", "key", "volume", "image", "strategy"],
)
def test_a_volume_of_another_origin_is_not_recovered(escrowed: Lab, claims: dict[str, str], why: str) -> None:
    with escrowed.booting() as machine:
        restate(machine, escrowed.partition, **claims)
        not_recovered(escrowed, machine, why)


def test_a_volume_without_a_recovery_key_is_not_recovered(installed: Lab) -> None:
    allow(installed)
    with installed.booting() as machine:
        rewrite(installed)
        not_recovered(installed, machine, "no recovery key")


def test_a_complete_root_whose_file_system_cannot_be_mounted_is_not_recovered(complete: Lab) -> None:
    with complete.booting() as machine:
        assert boot(machine) is Action.OPEN
        with open(machine.mapper.get("fde-root").path, "r+b", buffering=0) as device:
            device.write(bytes(4096))
            os.fsync(device.fileno())
        rewrite(complete)
    with complete.booting() as machine:
        not_recovered(complete, machine, "holds no file system")


@pytest.mark.parametrize("code", [Code.HEADER_MISMATCH, Code.VOLUME_WITHOUT_ANCHOR])
def test_a_complete_root_is_recovered(complete: Lab, code: Code) -> None:
    with complete.booting() as machine:
        assert boot(machine) is Action.OPEN
        write_file("kept", b"what the instance wrote")
        CAUSES[code].running(complete)
    CAUSES[code].off(complete)
    person = Person([KEY])
    assert recovered(complete, person) == code
    # That a clone is complete nobody knows but the TPM that has forgotten it.
    unknown = complete.machine.configuration.strategy is Strategy.CLONE and code is Code.VOLUME_WITHOUT_ANCHOR
    said = "may still be on the image" if unknown else "it holds a file system of type ext4 that can be mounted"
    assert said in person.heard
    with complete.booting() as machine:
        assert boot(machine) is Action.OPEN
        assert complete.anchored().complete
        assert all(isinstance(target, Linear) for target in machine.mapper.table("fde-root"))
        with mounted() as root:
            assert (root / "kept").read_bytes() == b"what the instance wrote"


def test_a_header_that_was_not_committed_is_recovered(escrowed: Lab) -> None:
    with escrowed.booting():
        before = escrowed.anchored()
        rewrite(escrowed)
        found = read_area(escrowed.partition).digest
    assert found != before.header_current
    person = Person([WRONG, b"not a key", KEY.replace(b"-", b" ").upper()])
    assert recovered(escrowed, person) == "header-mismatch"
    assert "2 tries are left" in person.heard and "1 tries are left" in person.heard
    assert f"refused as header-mismatch; header {found.hex()}" in person.heard
    assert f"  anchored now: {before.header_current.hex()}" in person.told
    assert f"  anchored before: {before.header_previous.hex()}" in person.told
    assert "the volume key is the one that the TPM remembers" in person.heard
    assert "the evidence was made by this TPM" in person.heard
    assert KEY.decode() not in person.heard
    with escrowed.booting() as machine:
        assert boot(machine) is Action.OPEN
        after = escrowed.anchored()
        assert (after.recoveries, after.refusals, after.last_refusal) == (1, before.refusals + 1, "header-mismatch")
        assert after.generation > before.generation and after.volume_key_id == before.volume_key_id
        told = evidence.found(read_area(escrowed.partition).header())[evidence.RECOVERY]
        assert (told.claims["code"], told.claims["recoveries"]) == ("header-mismatch", 1)
        assert told.claims["volume_key_id"] == after.volume_key_id.hex()


def test_a_volume_whose_power_was_cut_while_it_was_written_is_opened_for_reading(escrowed: Lab) -> None:
    """Its integrity journal holds what was not written in place yet. The kernel writes that, and nobody more."""
    copy, content = escrowed.directory / "cut", os.urandom(4 << 20)
    with escrowed.booting() as machine:
        assert boot(machine) is Action.OPEN
        with mounted() as root:
            (root / "written").write_bytes(content)
            os.sync()
            run("cp", "--sparse=always", str(escrowed.image), str(copy))
    run("mv", str(copy), str(escrowed.image))
    clear(escrowed)
    states = [whole_volume(escrowed)]
    for _answer in range(2):
        with escrowed.booting() as machine:
            header = read_area(escrowed.partition).content
            refusal, person = refusal_of(machine), Watcher([KEY], "no", mapper=machine.mapper)
            assert not recovery.recover(attended(escrowed, machine), refusal, person)
            assert read_area(escrowed.partition).content == header
        assert set(person.read_only) == {("fde-crypt", True), ("fde-crypt_dif", True)}
        states.append(whole_volume(escrowed))
    unplayed, played, again = states
    assert unplayed != played, "there was something in the journal"
    assert played == again
    recovered(escrowed, Person([KEY]))
    with escrowed.booting() as machine:
        assert boot(machine) is Action.OPEN
        with mounted() as root:
            assert (root / "written").read_bytes() == content


def test_a_volume_is_recovered_with_another_tpm_and_again(escrowed: Lab) -> None:
    clear(escrowed)
    seal_with(escrowed, svn=3)
    person = Person([KEY])
    assert recovered(escrowed, person) == "volume-without-anchor"
    assert "the evidence was made by another TPM" in person.heard
    assert "the image's security version is 3" in person.heard
    with escrowed.booting() as machine:
        assert boot(machine) is Action.OPEN
        assert (escrowed.anchored().recoveries, escrowed.anchored().svn) == (1, 3)
    clear(escrowed)
    seal_with(escrowed, svn=2)
    recovered(escrowed, Person([KEY]))
    with escrowed.booting() as machine:
        assert boot(machine) is Action.OPEN
        assert (escrowed.anchored().recoveries, escrowed.anchored().svn) == (2, 2), "nothing knew of a higher one"
        tokens = read_area(escrowed.partition).header().metadata["tokens"].values()
        types = sorted(token["type"] for token in tokens)
        assert types == ["cvm-fde", "cvm-fde", "systemd-recovery", "systemd-recovery", "systemd-tpm2"]


def test_what_was_made_below_an_updated_overlay_is_recovered_with_a_word_about_it(
    tmp_path: Path, signer: rsa.RSAPrivateKey
) -> None:
    (tmp_path / "first").mkdir()
    (tmp_path / "lab").mkdir()
    instance = make_lab(tmp_path / "lab", make_sealed(tmp_path / "first"), signer, "overlay")
    allow(instance)
    with instance.booting() as machine:
        SIGNATURES.write_text(Path(machine.paths.signatures).read_text())
        assert boot(machine) is Action.FIRST_BOOT
        add_key(instance)
    older = instance.root_hash
    instance = update(instance, tmp_path / "second", {"plaintext": b"newer"})
    clear(instance)
    person = Person([KEY])
    assert recovered(instance, person) == "volume-without-anchor"
    assert f"for this key and another image: root hash {older}" in person.heard
    with instance.booting() as machine:
        assert boot(machine) is Action.OPEN


def test_without_a_yes_all_stays_as_it_was(escrowed: Lab) -> None:
    with escrowed.booting() as machine:
        rewrite(escrowed)
        refusal = refusal_of(machine)
        before = escrowed.anchored(), whole_volume(escrowed)
        person = Watcher([KEY], "YES", mapper=machine.mapper)
        assert not recovery.recover(attended(escrowed, machine), refusal, person)
        assert (escrowed.anchored(), whole_volume(escrowed)) == before
        assert set(person.read_only) == {("fde-crypt", True), ("fde-crypt_dif", True)}
        # First in PCR 15 is the recovery, so that no verifier finds the volume's key where it belongs.
        assert logged(machine)[0] == hashlib.sha256(b"cvm-fde-recovery:header-mismatch").digest()
        assert logged(machine)[1:] == [before[0].volume_key_id]


def test_three_wrong_keys_end_the_recovery_before_anything_is_opened(escrowed: Lab) -> None:
    with escrowed.booting() as machine:
        rewrite(escrowed)
        refusal, person = refusal_of(machine), Person([WRONG, b"", WRONG, KEY])
        assert not recovery.recover(attended(escrowed, machine), refusal, person)
        assert person.keys == [KEY] and len(logged(machine)) == 1


def test_a_recovery_that_cannot_be_measured_does_not_begin(escrowed: Lab) -> None:
    with escrowed.booting() as machine:
        rewrite(escrowed)
        refusal, person = refusal_of(machine), Person([KEY])
        with pytest.raises(FdeError, match="systemd-pcrextend --pcr=15 .*ended with status 1"):
            # Its systemd-pcrextend looks for the TPM where there is none.
            recovery.recover(machine, refusal, person)
        assert person.told == []


def test_an_image_that_does_not_allow_it_offers_nothing(installed: Lab) -> None:
    clear(installed)
    with installed.booting() as machine:
        with pytest.raises(Refusal) as caught:
            boot(machine)
        assert not recovery.offered(machine, caught.value)


def test_another_volume_with_a_recovery_key_of_the_attackers_is_refused(
    escrowed: Lab, disk: Callable[..., str]
) -> None:
    """Who once saw the recovery key typed can make a volume that opens with it, but not with the anchored key."""
    twin = disk(64 << 20)
    with escrowed.booting() as machine:
        mine = read_area(escrowed.partition)
        key, temporary = bytearray(os.urandom(96)), volume_key.temporary()
        volumes.format_volume(machine.runner, twin, volume_key=key, temporary_key=temporary, uuid=mine.header().uuid)
        means = keyslots.Means(recovery=bytearray(KEY), tpm2_device=escrowed.tcti)
        keyslots.add(machine.runner, twin, keyslots.Recovery(), keyslots.ByKey(temporary), means)
        volumes.enrol_tpm2(
            machine.runner,
            twin,
            unlock_key=temporary,
            tpm2_device=escrowed.tcti,
            public_key=machine.paths.public_key,
            pcrs=BOUND_PCRS,
        )
        [token] = [one for one in mine.header().metadata["tokens"].values() if one["type"] == evidence.TOKEN_TYPE]
        volumes.import_token(machine.runner, twin, token)
        changes.store(escrowed.partition, mine, HeaderArea(escrowed.partition, read_area(twin).content))
        refusal = refusal_of(machine)
        with pytest.raises(FdeError, match="its key is not the one that the TPM remembers"):
            recovery.recover(attended(escrowed, machine), refusal, Person([KEY]))
        assert machine.mapper.find("fde-crypt") is None


def test_a_header_that_the_allow_list_refuses_is_never_opened(escrowed: Lab) -> None:
    with escrowed.booting() as machine:
        area = read_area(escrowed.partition)
        with changes.draft(area, "/run") as copy:
            volumes.import_token(machine.runner, copy.path, {"type": "foreign", "keyslots": []})
            new = copy.area()
        changes.store(escrowed.partition, area, HeaderArea(escrowed.partition, new.content))
        refusal, person = refusal_of(machine), Person([KEY])
        with pytest.raises(Refusal) as caught:
            recovery.recover(attended(escrowed, machine), refusal, person)
        assert caught.value.code == "luks2-policy" and person.told == []


@pytest.mark.parametrize("step", ["anchor 1", "store 2"])
def test_a_power_cut_within_the_recovery_is_recovered_or_goes_on(
    escrowed: Lab, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    clear(escrowed)
    with escrowed.booting() as machine:
        refusal = refusal_of(machine)
        with monkeypatch.context() as patch:
            cut_at(step, patch)
            with pytest.raises(PowerCut):
                recovery.recover(attended(escrowed, machine), refusal, Person([KEY]))
    if step == "anchor 1":
        assert recovered(escrowed, Person([KEY])) == "volume-without-anchor"
    with escrowed.booting() as machine:
        assert boot(machine) is (Action.REPAIR if step == "store 2" else Action.OPEN)
        assert escrowed.anchored().recoveries == 1
        assert anchoring.look(machine).anchor is not None
