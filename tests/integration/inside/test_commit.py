# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The header of the root volume is changed while it is open: pinned before it is written, or committed afterwards."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.cvm.fde.plugins.module_utils.agent import (
    commit,
    console,
    escrowed,
    evidence,
    refusals,
    volume_key,
)
from ansible_collections.cvm.fde.plugins.module_utils.agent.boot import boot
from ansible_collections.cvm.fde.plugins.module_utils.agent.commit import Action
from ansible_collections.cvm.fde.plugins.module_utils.agent.decision import Action as Boot
from ansible_collections.cvm.fde.plugins.module_utils.agent.esp import efi_partition
from ansible_collections.cvm.fde.plugins.module_utils.agent.machine import Machine
from ansible_collections.cvm.fde.plugins.module_utils.agent.status import status
from ansible_collections.cvm.fde.plugins.module_utils.errors import FdeError, Refusal
from ansible_collections.cvm.fde.plugins.module_utils.luks2 import change as changes
from ansible_collections.cvm.fde.plugins.module_utils.luks2 import keyslots
from ansible_collections.cvm.fde.plugins.module_utils.luks2 import volume as volumes
from ansible_collections.cvm.fde.plugins.module_utils.luks2.area import HeaderArea, read_area
from ansible_collections.cvm.fde.plugins.module_utils.luks2.change import Draft
from ansible_collections.cvm.fde.plugins.module_utils.luks2.profile import LAYOUT
from ansible_collections.cvm.fde.plugins.module_utils.luks2.recovery_key import new_recovery_key
from ansible_collections.cvm.fde.plugins.module_utils.luks2.secret import descriptor_path, memory_file
from ansible_collections.cvm.fde.plugins.module_utils.tpm import anchor as anchors
from ansible_collections.cvm.fde.plugins.module_utils.tpm.policy import BOUND_PCRS
from ansible_collections.cvm.fde.plugins.module_utils.volume import pin as pins
from ansible_collections.cvm.fde.plugins.module_utils.volume.wanted import UnlockWith
from instance import SIGNATURES, Lab, PcrRunner, PowerCut, refused, run
from owner import Owner


@contextmanager
def system(instance: Lab, action: Boot = Boot.OPEN) -> Iterator[Lab]:
    """Be in the system of an instance, its root open by an action."""
    with instance.booting() as machine:
        assert boot(machine) is action
        instance.start_system()
        SIGNATURES.write_text(Path(machine.paths.signatures).read_text())
        yield instance


@pytest.fixture
def running(installed: Lab) -> Iterator[Lab]:
    """An instance whose system runs."""
    with system(installed) as instance:
        yield instance


def cryptenroll(instance: Lab, *words: str, device: str = "") -> None:
    """Run systemd-cryptenroll as an operator does, unlocked by the TPM; on the disk, if no device is named."""
    unlock = f"--unlock-tpm2-device={instance.tcti}"
    instance.machine.runner.run(["systemd-cryptenroll", unlock, *words, device or instance.partition])


def add_recovery_key(instance: Lab) -> Callable[[Draft], None]:
    return lambda copy: cryptenroll(instance, "--recovery-key", device=copy.path)


def opens(instance: Lab, action: Boot = Boot.OPEN) -> list[str]:
    """Boot by an action, and return the types of the tokens of the header that the volume was opened with."""
    with instance.booting() as machine:
        assert boot(machine) is action
        header = read_area(str(machine.paths.header))
        assert instance.anchored().pinned == (header.digest,)
        assert header.digest == read_area(instance.partition).digest
        return sorted(token["type"] for token in header.header().metadata["tokens"].values())


ALONE, WITH_RECOVERY = ["cvm-fde", "systemd-tpm2"], ["cvm-fde", "systemd-recovery", "systemd-tpm2"]


def test_a_change_of_our_own_is_pinned(running: Lab) -> None:
    before = running.anchored()
    shown = commit.change(running.machine, add_recovery_key(running), dry_run=True)
    assert running.anchored() == before and read_area(running.partition).digest == before.header_current
    done = commit.change(running.machine, add_recovery_key(running))
    assert done == shown == ("keyslot 0 was added (systemd-recovery)", "token 2 was added (systemd-recovery)")
    after = running.anchored()
    assert after.header_previous == before.header_current and after.generation == before.generation + 1
    assert after.header_current == read_area(running.partition).digest
    assert status(running.machine.runner, running.machine.paths, running.tcti)["anchor"]["matches"] is True
    assert list(running.machine.paths.state.glob("header-*")) == []


def test_what_an_operator_changed_is_found_refused_and_accepted_once_it_is_committed(installed: Lab) -> None:
    with system(installed) as instance:
        cryptenroll(instance, "--recovery-key")
        known = status(instance.machine.runner, instance.machine.paths, instance.tcti)
        assert known["anchor"]["matches"] is False
        seen = commit.commit(instance.machine, dry_run=True)
        assert (seen.action, seen.digest) == (Action.COMMIT, known["header_digest"])
        assert seen.differences[0] == "keyslot 0 was added (systemd-recovery)"
    assert refused(installed) == "header-mismatch"
    with installed.booting() as machine, pytest.raises(FdeError, match="not open"):
        commit.commit(machine)


def import_evidence(instance: Lab) -> None:
    """Take the evidence out of the header and import it again with cryptsetup, as an operator does."""
    tokens = read_area(instance.partition).header().metadata["tokens"]
    [number] = [name for name, token in tokens.items() if token["type"] == "cvm-fde"]
    run("cryptsetup", "token", "remove", "--token-id", number, instance.partition)
    text = json.dumps(tokens[number]).encode()
    run("cryptsetup", "token", "import", "--token-id", "7", "--json-file", "-", instance.partition, input=text)


def restate(machine: Machine, path: str, **claims: str) -> None:
    """Have the evidence of the creation in a header claim something else; what it is signed for is not looked at."""
    tokens = read_area(path).header().metadata["tokens"].items()
    [(number, token)] = [(int(name), token) for name, token in tokens if token["type"] == evidence.TOKEN_TYPE]
    stated = json.dumps({**json.loads(base64.b64decode(token["claims"])), **claims}).encode()
    volumes.import_token(machine.runner, path, {**token, "claims": base64.b64encode(stated).decode()}, token_id=number)


@pytest.mark.parametrize(
    ("edit", "differences", "tokens"),
    [
        (
            lambda instance: cryptenroll(instance, "--recovery-key"),
            ("keyslot 0 was added (systemd-recovery)", "token 2 was added (systemd-recovery)"),
            WITH_RECOVERY,
        ),
        (import_evidence, ("token 1 was removed (cvm-fde)", "token 7 was added (cvm-fde)"), ALONE),
    ],
    ids=["systemd-cryptenroll", "cryptsetup"],
)
def test_a_committed_change_of_an_operator_survives_a_boot(
    installed: Lab, edit: Callable[[Lab], None], differences: tuple[str, ...], tokens: list[str]
) -> None:
    with system(installed) as instance:
        edit(instance)
        done = commit.commit(instance.machine, seen=read_area(instance.partition).digest.hex())
        assert (done.action, done.differences) == (Action.COMMIT, differences)
        assert commit.commit(instance.machine).action is Action.NOTHING
    assert opens(installed) == tokens


def test_only_what_was_looked_at_is_committed(running: Lab) -> None:
    before = running.anchored()
    seen = commit.commit(running.machine, dry_run=True).digest
    cryptenroll(running, "--recovery-key")
    with pytest.raises(FdeError, match="not the one that was looked at"):
        commit.commit(running.machine, seen=seen)
    assert running.anchored() == before


def test_an_uncommitted_change_stops_changes_of_our_own(running: Lab) -> None:
    cryptenroll(running, "--recovery-key")
    with pytest.raises(FdeError, match="not committed"):
        commit.change(running.machine, add_recovery_key(running))


def test_the_previous_header_put_back_is_called_rolled_back(installed: Lab) -> None:
    with system(installed) as instance:
        old = read_area(instance.partition)
        commit.change(instance.machine, add_recovery_key(instance))
        changes.store(instance.partition, read_area(instance.partition), old)
    assert refused(installed) == "rolled-back"


def add_passphrase(instance: Lab) -> None:
    """Add a passphrase with cryptsetup, as an operator does who has a recovery key."""
    runner, recovery_key = instance.machine.runner, new_recovery_key()
    unlock, means = keyslots.ByTpm(instance.tcti), keyslots.Means(recovery=recovery_key)
    keyslots.add(runner, instance.partition, keyslots.Recovery(), unlock, means)
    with memory_file(recovery_key) as key, memory_file(bytearray(b"a passphrase")) as passphrase:
        argv = ["cryptsetup", "luksAddKey", "--batch-mode", "--disable-external-tokens", "--pbkdf=pbkdf2"]
        argv += ["--key-file", descriptor_path(key), instance.partition, descriptor_path(passphrase)]
        runner.run(argv, pass_fds=(key, passphrase))


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (add_passphrase, "keyslot-count"),
        (lambda instance: cryptenroll(instance, "--recovery-key", "--wipe-slot=tpm2"), "token-count"),
    ],
    ids=["a passphrase", "no keyslot of the TPM"],
)
def test_what_the_boot_would_refuse_is_not_committed(running: Lab, edit: Callable[[Lab], None], reason: str) -> None:
    """A passphrase is nothing that the root volume may be opened by; nor is a header without the TPM's keyslot."""
    before = running.anchored()
    edit(running)
    with pytest.raises(Refusal) as caught:
        commit.commit(running.machine)
    assert caught.value.code == "luks2-policy" and reason in caught.value.cause
    assert running.anchored() == before


def test_a_header_without_the_evidence_of_the_creation_is_not_committed(running: Lab) -> None:
    """Not even where another token makes up their number: the boot could not tell which image is the volume's."""
    machine, before = running.machine, running.anchored()
    restate(machine, running.partition, purpose=evidence.RECOVERY)
    with pytest.raises(FdeError, match="evidence of the volume's creation"):
        commit.commit(machine)
    assert running.anchored() == before


def test_the_header_of_another_volume_is_never_committed(disk: Callable[..., str], running: Lab) -> None:
    """It has the same UUID, profile, tokens and TPM; only the volume key is the attacker's."""
    machine = running.machine
    mine = read_area(running.partition)
    header = mine.header()
    twin = disk(64 << 20)
    key, temporary = bytearray(os.urandom(96)), volume_key.temporary()
    volumes.format_volume(machine.runner, twin, volume_key=key, temporary_key=temporary, uuid=header.uuid)
    volumes.enrol_tpm2(
        machine.runner,
        twin,
        unlock_key=temporary,
        tpm2_device=running.tcti,
        public_key=machine.paths.public_key,
        pcrs=BOUND_PCRS,
    )
    [token] = [each for each in header.metadata["tokens"].values() if each["type"] == "cvm-fde"]
    volumes.import_token(machine.runner, twin, token)
    changes.store(running.partition, mine, HeaderArea(running.partition, read_area(twin).content))
    with pytest.raises(FdeError, match="another volume key"):
        commit.commit(machine)


# What is for data volumes

ROOT_KEY = new_recovery_key().decode()


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"state": "open"}, "in use"),
        ({"state": "open", "force": "UUID"}, "in use"),
        ({"state": "open", "adopt": True, "unlock_with": UnlockWith(recovery_key=ROOT_KEY)}, "in use"),
        ({"state": "erased"}, "not known as volume"),
        ({"state": "erased", "force": "UUID"}, "in use"),
    ],
    ids=["open", "open by force", "adopted", "erased", "erased by force"],
)
def test_the_root_is_no_data_volume(running: Lab, tmp_path: Path, options: dict[str, Any], why: str) -> None:
    """Not even for who has its recovery key and names it by its UUID."""
    runner, owner = running.machine.runner, Owner(running.machine.runner, tmp_path / "owner", running.tcti)
    unlock, means = keyslots.ByTpm(running.tcti), keyslots.Means(recovery=bytearray(ROOT_KEY.encode()))
    commit.change(running.machine, lambda copy: keyslots.add(runner, copy.path, keyslots.Recovery(), unlock, means))
    before = running.anchored(), changes.on_disk(running.partition, LAYOUT.offset)
    wanted = owner.wants(
        running.partition, unlock=(keyslots.Recovery(),), certificates=(owner.certificate(),), **options
    )
    if wanted.force is not None:
        wanted = replace(wanted, force=read_area(running.partition).header().uuid)
    with pytest.raises(FdeError, match=why):
        owner.run(wanted)
    assert (running.anchored(), changes.on_disk(running.partition, LAYOUT.offset)) == before
    assert not owner.machine.places.pin(wanted.name).exists()


# Power cuts while the header is changed


def cut_at(step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lose power right before a step: ``store N`` is the N-th write to the disk, ``anchor N`` the N-th to the TPM.

    ``record N`` is the N-th time that something is recorded in the root.
    """
    what, number = step.split()
    places: dict[str, tuple[Any, str]] = {
        "store": (changes, "_write"),
        "anchor": (anchors, "write"),
        "record": (pins, "write"),
    }
    owner, name = places[what]
    genuine, calls = getattr(owner, name), iter(range(1, 1000))

    def cut(*arguments: Any, **options: Any) -> Any:
        if next(calls) == int(number):
            raise PowerCut(step)
        return genuine(*arguments, **options)

    monkeypatch.setattr(owner, name, cut)


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        ("store 1", ALONE),
        ("store 2", WITH_RECOVERY),
        ("anchor 2", WITH_RECOVERY),
    ],
)
def test_a_power_cut_while_the_header_is_changed_leaves_one_of_both(
    installed: Lab, step: str, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with system(installed) as instance:
        with monkeypatch.context() as patch:
            cut_at(step, patch)
            with pytest.raises(PowerCut):
                commit.change(instance.machine, add_recovery_key(instance))
        torn = read_area(instance.partition).digest
        assert (torn in instance.anchored().pinned) == (step != "store 2")
    assert opens(installed, Boot.REPAIR if step == "store 2" else Boot.OPEN) == expected


def test_a_torn_change_whose_copy_the_host_changed_is_refused(installed: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    with system(installed) as instance:
        with monkeypatch.context() as patch:
            cut_at("store 2", patch)
            with pytest.raises(PowerCut):
                commit.change(instance.machine, add_recovery_key(instance))
        copy = commit.saved(instance.machine, instance.partition)
        assert copy is not None
        efi = efi_partition(instance.machine.runner, instance.machine.configuration)
        efi.write(commit.SAVED, copy.content[:-1] + bytes([copy.content[-1] ^ 1]))
    assert refused(installed) == "header-mismatch"


@pytest.mark.parametrize("step", ["store 1", "anchor 2"])
def test_a_whole_header_is_opened_whatever_ails_the_efi_partition(
    installed: Lab, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with system(installed) as instance, monkeypatch.context() as patch:
        cut_at(step, patch)
        with pytest.raises(PowerCut):
            commit.change(instance.machine, add_recovery_key(instance))
    with installed.booting() as machine:
        Path(f"{installed.device}p1").write_bytes(os.urandom(1 << 20))
        assert boot(machine) is Boot.OPEN
        assert not any(installed.anchored().header_next)


@pytest.mark.parametrize("step", ["store 2", "store 3", "store 4"])
def test_a_torn_change_is_never_committed_but_finished(
    installed: Lab, tmp_path: Path, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With only keyslots written, what is on the disk looks whole, and a keyslot of it opens nothing any more."""
    record, store = tmp_path / "root.json", Store(tmp_path)
    recipients = [store.certificate("escrow")]
    with system(installed) as instance:
        machine = instance.machine
        escrowed.confirm(machine, escrowed.add(machine, "host", recipients, record).digest, record)
        second = escrowed.add(machine, "host", recipients, record)
        with monkeypatch.context() as patch:
            cut_at(step, patch)
            with pytest.raises(PowerCut):
                escrowed.confirm(machine, second.digest, record)
        following = instance.anchored().header_next
        seen = commit.commit(machine, dry_run=True)
        assert (seen.action, seen.digest) == (Action.REPAIR, following.hex())
        assert commit.commit(machine, seen=seen.digest).action is Action.REPAIR
        assert instance.anchored().pinned == (following,) == (read_area(instance.partition).digest,)
        escrowed.confirm(machine, second.digest, record)
        assert store.opens(instance, "escrow", second.envelope) == [True]
    assert opens(installed) == WITH_RECOVERY


def test_a_torn_change_is_not_committed_where_its_copy_cannot_be_read(
    installed: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    with system(installed) as instance:
        with monkeypatch.context() as patch:
            cut_at("store 2", patch)
            with pytest.raises(PowerCut):
                commit.change(instance.machine, add_recovery_key(instance))
        before = instance.anchored()
        front = Path(f"{instance.device}p1").read_bytes()[: 1 << 20]
        with open(f"{instance.device}p1", "r+b") as efi:
            efi.write(os.urandom(1 << 20))
        with pytest.raises(FdeError, match="EFI system partition cannot be used"):
            commit.commit(instance.machine)
        assert instance.anchored() == before
        with open(f"{instance.device}p1", "r+b") as efi:
            efi.write(front)
    assert opens(installed, Boot.REPAIR) == WITH_RECOVERY


def test_a_change_that_was_never_written_is_given_up_by_a_commit(running: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    before = running.anchored()
    with monkeypatch.context() as patch:
        cut_at("store 1", patch)
        with pytest.raises(PowerCut):
            commit.change(running.machine, add_recovery_key(running))
    assert any(running.anchored().header_next)
    assert commit.commit(running.machine).action is Action.ABANDON
    assert running.anchored() == before


# Refusals


def test_a_refusal_is_remembered_until_somebody_can_read_it(installed: Lab) -> None:
    before = None
    with installed.booting() as machine:
        before = installed.anchored()
        error = Refusal("header-mismatch", "/dev/x", "it differs", "stop")
        remember = partial(refusals.remember, machine)
        console.refuse(error, PcrRunner(installed), machine.paths.state, remember)
        (machine.paths.state / console.REFUSAL_FILE).unlink()
    with installed.booting() as machine:
        assert boot(machine) is Boot.OPEN
        known = status(machine.runner, machine.paths, installed.tcti)
        assert known["problems"] == []
        assert known["refusal"] == {
            "code": "header-mismatch",
            "subject": "/dev/x",
            "cause": "it differs",
            "remedy": "stop",
        }
        anchor = known["anchor"]
        assert (anchor["refusals"], anchor["last_refusal"]) == (before.refusals + 1, "header-mismatch")
        assert installed.anchored().generation == before.generation


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"[" * 9999, b'{"code": 1, "subject": "", "cause": "", "remedy": ""}', b"\xff"]
)
def test_words_that_the_host_wrote_are_no_trouble(installed: Lab, content: bytes) -> None:
    with installed.booting() as machine:
        efi_partition(machine.runner, machine.configuration).write(console.REFUSAL_FILE, content)
        assert status(machine.runner, machine.paths, installed.tcti)["refusal"] is None


def test_a_boot_needs_no_efi_partition_that_can_be_read(installed: Lab) -> None:
    with installed.booting() as machine:
        Path(f"{installed.device}p1").write_bytes(os.urandom(1 << 20))
        assert boot(machine) is Boot.OPEN
        with pytest.raises(FdeError, match="EFI system partition cannot be used"):
            refusals.recall(machine)


# The recovery key in escrow


@dataclass(frozen=True)
class Store:
    """A directory of the control node with envelopes, and who can open them."""

    directory: Path

    def certificate(self, name: str) -> bytes:
        """Return a new certificate with this name."""
        run("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", f"/CN={name}",
            "-addext", "keyUsage=critical,keyEncipherment",
            "-keyout", str(self.directory / f"{name}.key"), "-out", str(self.directory / f"{name}.pem"))  # fmt: skip
        return (self.directory / f"{name}.pem").read_bytes()

    def opens(self, instance: Lab, name: str, *envelopes: bytes) -> list[bool]:
        """Tell which envelopes hold a key that opens the volume."""
        return [opens_with(instance, self._key_in(name, envelope)) for envelope in envelopes]

    def _key_in(self, name: str, envelope: bytes) -> bytearray:
        key = str(self.directory / f"{name}.key")
        opened = run("openssl", "cms", "-decrypt", "-inform", "DER", "-inkey", key, input=envelope)
        return bytearray(json.loads(opened)["recovery_key"].encode())


def test_a_recovery_key_is_relied_on_once_its_envelope_is_kept(installed: Lab, tmp_path: Path) -> None:
    record, store = tmp_path / "root.json", Store(tmp_path)
    recipients = [store.certificate("escrow")]
    with system(installed) as instance:
        machine = instance.machine
        first = escrowed.add(machine, "host", recipients, record)
        # Nobody can tell whether the control node has it: the next round hands over the same.
        assert escrowed.add(machine, "host", recipients, record) == first
        assert escrowed.current(machine, escrowed.read(record)) is None
        with pytest.raises(FdeError, match="not the one of this machine"):
            escrowed.confirm(machine, "0" * 64, record)
        escrowed.confirm(machine, first.digest, record)
        slot = escrowed.current(machine, escrowed.read(record))
        assert slot is not None and slot.envelope == first.digest
        # A rotation that is never confirmed leaves the old key as it is.
        second = escrowed.add(machine, "host", recipients, record)
        assert store.opens(instance, "escrow", first.envelope, second.envelope) == [True, True]
        escrowed.confirm(machine, second.digest, record)
        assert store.opens(instance, "escrow", first.envelope, second.envelope) == [False, True]
    assert opens(installed) == WITH_RECOVERY


@pytest.mark.parametrize("step", ["anchor 1", "store 1", "store 2", "anchor 2", "record 1"])
def test_after_a_power_cut_in_a_rotation_a_key_in_escrow_opens_the_volume(
    installed: Lab, tmp_path: Path, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    record, store = tmp_path / "root.json", Store(tmp_path)
    recipients, others = [store.certificate("escrow")], [store.certificate("others")]
    with system(installed) as instance:
        machine = instance.machine
        first = escrowed.add(machine, "host", recipients, record)
        escrowed.confirm(machine, first.digest, record)
        second = escrowed.add(machine, "host", recipients, record)
        with monkeypatch.context() as patch:
            cut_at(step, patch)
            with pytest.raises(PowerCut):
                escrowed.confirm(machine, second.digest, record)
    with system(installed, Boot.REPAIR if step == "store 2" else Boot.OPEN) as instance:
        machine, stored = instance.machine, (first.envelope, second.envelope)
        gone = step in ("store 2", "anchor 2", "record 1")
        assert store.opens(instance, "escrow", *stored) == [not gone, True]
        # It may be the only one in escrow: no other key is made before that is certain, for whomever.
        assert escrowed.add(machine, "host", others, record) == second
        escrowed.confirm(machine, second.digest, record)
        assert store.opens(instance, "escrow", *stored) == [False, True]
        lost = escrowed.add(machine, "host", others, record)
        for certificates in (others, recipients):
            # The control node does not keep this one.
            assert escrowed.add(machine, "host", certificates, record) == lost
        assert store.opens(instance, "escrow", *stored) == [False, True]
        assert store.opens(instance, "others", lost.envelope) == [True]
        escrowed.confirm(machine, lost.digest, record)
        third = escrowed.add(machine, "host", recipients, record)
        escrowed.confirm(machine, third.digest, record)
        assert store.opens(instance, "escrow", *stored, third.envelope) == [False, False, True]
    assert opens(installed) == WITH_RECOVERY


def opens_with(instance: Lab, secret: bytearray) -> bool:
    with memory_file(secret) as descriptor:
        argv = ["cryptsetup", "open", "--test-passphrase", "--disable-external-tokens", instance.partition]
        argv += ["--key-file", descriptor_path(descriptor)]
        return instance.machine.runner.run(argv, pass_fds=(descriptor,), ok=()).status == 0
