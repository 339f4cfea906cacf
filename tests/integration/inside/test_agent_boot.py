# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The boot agent on a real disk image, a real device-mapper and a software TPM.

A *boot* here is: reset the TPM, extend PCR 11 as systemd does in the initrd, set up the verity root, run the agent, and
take everything down again. udev, systemd as process 1 and firmware are left to whole boots.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import signal
import subprocess
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import tpm2_pytss as tss
from ansible_collections.cvm.fde.plugins.module_utils.agent import console, disks, first_boot, volume_key
from ansible_collections.cvm.fde.plugins.module_utils.agent.boot import boot
from ansible_collections.cvm.fde.plugins.module_utils.agent.decision import Action
from ansible_collections.cvm.fde.plugins.module_utils.agent.hydration import hydrate
from ansible_collections.cvm.fde.plugins.module_utils.agent.machine import Machine, Paths, this_machine
from ansible_collections.cvm.fde.plugins.module_utils.agent.process import SubprocessRunner
from ansible_collections.cvm.fde.plugins.module_utils.agent.status import status
from ansible_collections.cvm.fde.plugins.module_utils.disk import gpt
from ansible_collections.cvm.fde.plugins.module_utils.dm import clone
from ansible_collections.cvm.fde.plugins.module_utils.errors import FdeError, Refusal
from ansible_collections.cvm.fde.plugins.module_utils.luks2 import volume as volumes
from ansible_collections.cvm.fde.plugins.module_utils.luks2.area import read_area
from ansible_collections.cvm.fde.plugins.module_utils.tpm import anchor as anchors
from ansible_collections.cvm.fde.plugins.module_utils.tpm.anchor import Standing, State
from ansible_collections.cvm.fde.plugins.module_utils.tpm.esys import opened
from ansible_collections.cvm.fde.plugins.module_utils.tpm.policy import BOUND_PCRS, PolicyKey, pcr_policy
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

MIB = 1 << 20
DISK_SIZE = 640 * MIB
ESP_ID, ESP_SIZE = uuid.UUID("0e5ba5e0-0000-4000-8000-000000000001"), 8 * MIB
ROOT_SIZE, HASH_SIZE = 64 * MIB, 8 * MIB
PLAINTEXT = b"this sentence stands in the image and must never reach the encrypted partition " * 64


def run(*argv: str, **options: Any) -> bytes:
    return subprocess.run(argv, check=True, stdout=subprocess.PIPE, **options).stdout


@dataclass
class Lab:
    """A disk with a sealed image, a TPM and the files that systemd-stub would leave."""

    directory: Path
    root_hash: str
    signer: rsa.RSAPrivateKey
    device: str = ""

    @property
    def tcti(self) -> str:
        return f"swtpm:path={self.directory}/tpm"

    @property
    def image(self) -> Path:
        return self.directory / "disk"

    @property
    def partition(self) -> str:
        return f"{self.device}p4"

    @property
    def machine(self) -> Machine:
        paths = Paths(
            command_line=str(self.directory / "cmdline"),
            public_key=str(self.directory / "public.pem"),
            signatures=str(self.directory / "signatures.json"),
            state=self.directory / "state",
            secure_boot=str(self.directory / "SecureBoot"),
        )
        environment = {"DM_DISABLE_UDEV": "1", "SYSTEMD_FORCE_MEASURE": "1"}
        return this_machine(SubprocessRunner(environment=environment), paths, self.tcti)

    def anchor_exists(self) -> bool:
        with self._tpm(), opened(self.tcti) as esys:
            return anchors.probe(esys, self.machine.key).standing is not Standing.ABSENT

    def anchor(self) -> anchors.Found:
        with opened(self.tcti) as esys:
            return anchors.probe(esys, self.machine.key)

    @contextlib.contextmanager
    def booting(self) -> Iterator[Machine]:
        """Be in the initrd of one boot; afterwards nothing of it is left but disk and TPM."""
        with self._tpm(), self._measurements(), self._disk():
            yield self.machine

    @contextlib.contextmanager
    def _tpm(self) -> Iterator[None]:
        address = f"{self.directory}/tpm"
        process = subprocess.Popen(
            [
                "swtpm",
                "socket",
                "--tpm2",
                "--tpmstate",
                f"dir={self.directory}",
                "--flags",
                "not-need-init,startup-clear",
            ]
            + ["--server", f"type=unixio,path={address}", "--ctrl", f"type=unixio,path={address}.ctrl"]
            + ["--pid", f"file={address}.pid"]
        )
        try:
            wait_for(Path(f"{address}.pid"))
            with opened(self.tcti) as esys:
                extend(esys, b"enter-initrd")
            yield
        finally:
            end(process)
            for path in (address, f"{address}.ctrl", f"{address}.pid"):
                Path(path).unlink(missing_ok=True)

    @contextlib.contextmanager
    def _measurements(self) -> Iterator[None]:
        """Serve systemd's socket for measurements, and start with an empty log."""
        socket = Path("/run/systemd/io.systemd.PCRExtend")
        Path(self.machine.paths.measurements).unlink(missing_ok=True)
        server = subprocess.Popen(
            ["systemd-socket-activate", "--accept", f"--listen={socket}", "--fdname=varlink"]
            + ["-E", "SYSTEMD_FORCE_MEASURE=1"]
            + ["/usr/lib/systemd/systemd-pcrextend", f"--tpm2-device={self.tcti}"],
            stderr=subprocess.DEVNULL,
        )
        try:
            wait_for(socket)
            yield
        finally:
            end(server)
            socket.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _disk(self) -> Iterator[None]:
        self.device = run("losetup", "--find", "--show", "--partscan", str(self.image)).decode().strip()
        try:
            data, hashes_ = f"{self.device}p2", f"{self.device}p3"
            run("veritysetup", "open", data, "root", hashes_, self.root_hash)
            yield
        finally:
            mapper = self.machine.mapper
            clone.disassemble(mapper)
            for name in ("fde-crypt", "fde-crypt_dif", "root"):
                if mapper.find(name) is not None:
                    mapper.remove(name)
            run("losetup", "--detach", self.device)


def end(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    process.wait()


def wait_for(*paths: Path) -> None:
    for _attempt in range(1000):
        if all(path.exists() for path in paths):
            return
        time.sleep(0.01)
    raise TimeoutError(str(paths))


def extend(esys: Any, word: bytes, pcr: int = 11) -> None:
    digest = tss.TPMT_HA(hashAlg=tss.TPM2_ALG.SHA256)
    digest.digest.sha256 = hashlib.sha256(word).digest()
    esys.pcr_extend(tss.ESYS_TR.PCR0 + pcr, tss.TPML_DIGEST_VALUES([digest]))


@pytest.fixture(scope="module")
def signer() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 2048)


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A disk image with ESP, verity data and verity hashes, and its root hash."""
    directory = tmp_path_factory.mktemp("sealed")
    data, tree, image = directory / "data", directory / "hash", directory / "disk"
    content = directory / "content"
    content.mkdir()
    (content / "plaintext").write_bytes(PLAINTEXT)
    for path, size in ((data, ROOT_SIZE), (tree, HASH_SIZE), (image, DISK_SIZE)):
        with path.open("wb") as file:
            file.truncate(size)
    run("mkfs.ext4", "-q", "-b", "4096", "-d", str(content), str(data))
    output = run("veritysetup", "format", str(data), str(tree)).decode()
    root_hash = next(line.split()[-1] for line in output.splitlines() if line.startswith("Root hash"))
    ids = uuid.UUID(root_hash[:32]), uuid.UUID(root_hash[32:])
    places = (MIB, MIB + ESP_SIZE, MIB + ESP_SIZE + ROOT_SIZE)
    table = gpt.new_table(
        uuid.uuid4(),
        DISK_SIZE,
        (
            gpt.Partition(1, gpt.ESP, ESP_ID, places[0], ESP_SIZE),
            gpt.Partition(2, gpt.ROOT_X86_64, ids[0], places[1], ROOT_SIZE),
            gpt.Partition(3, gpt.ROOT_VERITY_X86_64, ids[1], places[2], HASH_SIZE),
        ),
    )
    with image.open("r+b") as disk:
        for offset, block in gpt.encode_table(table):
            disk.seek(offset)
            disk.write(block)
        for place, source in ((places[1], data), (places[2], tree)):
            disk.seek(place)
            disk.write(source.read_bytes())
    return image, root_hash


@pytest.fixture
def lab(tmp_path: Path, sealed: tuple[Path, str], signer: rsa.RSAPrivateKey) -> Lab:
    return make_lab(tmp_path, sealed, signer)


def make_lab(tmp_path: Path, sealed: tuple[Path, str], signer: rsa.RSAPrivateKey) -> Lab:
    """Return an instance of the sealed image that was never booted."""
    image, root_hash = sealed
    run("cp", "--sparse=always", str(image), str(tmp_path / "disk"))
    (tmp_path / "cmdline").write_text(f"roothash={root_hash} root=/dev/mapper/fde-root rw fde.strategy=clone\n")
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    pem = signer.public_key().public_bytes(serialization.Encoding.PEM, form)
    (tmp_path / "public.pem").write_bytes(pem)
    (tmp_path / "SecureBoot").write_bytes(b"\x06\0\0\0\x01")
    value = hashlib.sha256(bytes(32) + hashlib.sha256(b"enter-initrd").digest()).digest()
    digest = pcr_policy(11, value)
    entry = {
        "pcrs": [11],
        "pkfp": PolicyKey.from_pem(pem).pkfp,
        "pol": digest.hex(),
        "sig": base64.b64encode(signer.sign(digest, padding.PKCS1v15(), hashes.SHA256())).decode(),
    }
    (tmp_path / "signatures.json").write_text(json.dumps({"sha256": [entry]}))
    return Lab(tmp_path, root_hash, signer)


def write_file(name: str, content: bytes) -> None:
    with mounted() as root:
        (root / name).write_bytes(content)


@contextlib.contextmanager
def mounted() -> Iterator[Path]:
    root = Path("/run/mounted-root")
    root.mkdir(exist_ok=True)
    run("mount", "-t", "ext4", "/dev/mapper/fde-root", str(root))
    try:
        yield root
    finally:
        run("umount", str(root))


class PowerCut(Exception):
    """The machine lost power."""


class CutRunner(SubprocessRunner):
    """Loses power right before the first program whose arguments begin as ``before``."""

    def __init__(self, before: tuple[str, ...], environment: dict[str, str]) -> None:
        super().__init__(environment=environment)
        self._before = before

    def run(self, argv: Any, **options: Any) -> Any:
        words = [os.path.basename(argv[0]), *argv[1:]]
        if all(word in words for word in self._before):
            raise PowerCut(" ".join(self._before))
        return super().run(argv, **options)


@pytest.fixture(scope="module")
def installed_once(
    tmp_path_factory: pytest.TempPathFactory, sealed: tuple[Path, str], signer: rsa.RSAPrivateKey
) -> Path:
    """The directory of an instance that has had its first boot."""
    directory = tmp_path_factory.mktemp("installed")
    instance = make_lab(directory, sealed, signer)
    with instance.booting() as machine:
        assert boot(machine) is Action.FIRST_BOOT
    return directory


@pytest.fixture
def installed(installed_once: Path, lab: Lab) -> Lab:
    """An instance after its first boot, for one test: a copy of the disk and of the TPM's state."""
    run("cp", "--sparse=always", str(installed_once / "disk"), str(lab.image))
    for state in installed_once.glob("tpm2-*"):
        run("cp", str(state), str(lab.directory))
    return lab


def refused(instance: Lab) -> str:
    """Boot and return the code of the refusal; nothing may be open afterwards that was not before."""
    with instance.booting() as machine:
        with pytest.raises(Refusal) as caught:
            boot(machine)
        assert machine.mapper.find("fde-root") is None
        return caught.value.code


def test_agent_first_boot_then_later_boots(lab: Lab) -> None:
    with lab.booting() as machine:
        assert boot(machine) is Action.FIRST_BOOT
        write_file("written", b"first boot")
        ready = lab.anchor()
        assert ready.standing is Standing.OURS and ready.anchor is not None
        assert ready.anchor.state is State.READY
        known = status(machine.mapper, machine.paths, lab.tcti)
        assert known["problems"] == []
        assert known["anchor"]["header_current"] == read_area(lab.partition).digest.hex()
    with lab.booting() as machine:
        assert boot(machine) is Action.OPEN
        with mounted() as root:
            assert (root / "written").read_bytes() == b"first boot"
            assert (root / "plaintext").read_bytes() == PLAINTEXT
        assert lab.anchor() == ready
        assert status(machine.mapper, machine.paths, lab.tcti)["luks_uuid"] == known["luks_uuid"]


def test_hydration_ends_and_leaves_no_plaintext_on_the_partition(installed: Lab) -> None:
    told: list[str] = []
    with installed.booting() as machine:
        assert boot(machine) is Action.OPEN
        with mounted() as root:
            state = hydrate(machine.mapper, machine.runner, told.append, mount_point=str(root), interval=0.1)
            assert state is not None and state.complete
            assert (root / "plaintext").read_bytes() == PLAINTEXT
        assert status(machine.mapper, machine.paths, installed.tcti)["hydration"]["percent"] == 100.0
        assert PLAINTEXT[:64] not in Path(installed.partition).read_bytes()
        assert PLAINTEXT[:64] in Path(f"{installed.device}p2").read_bytes()
    assert told[-1].startswith("100.0 %")
    with installed.booting() as machine:
        assert boot(machine) is Action.OPEN
        with mounted() as root:
            assert (root / "plaintext").read_bytes() == PLAINTEXT


CUTS = (
    ("systemd-repart",),
    ("cryptsetup", "luksFormat"),
    ("systemd-cryptenroll",),
    ("cryptsetup", "token"),
    ("systemd-cryptsetup", "attach"),
    ("dmsetup", "create", "fde-clone-dest"),
    ("dmsetup", "create", "fde-root"),
)


def test_a_power_cut_between_any_two_steps_of_the_first_boot_starts_it_over(lab: Lab) -> None:
    partitions = set()
    for before in CUTS:
        with lab.booting() as machine:
            cut = CutRunner(before, {"DM_DISABLE_UDEV": "1", "SYSTEMD_FORCE_MEASURE": "1"})
            with pytest.raises(PowerCut):
                boot(replace(machine, runner=cut))
            found = lab.anchor()
            assert found.anchor is not None and found.anchor.state is State.INITIALIZING, before
    with lab.booting() as machine, pytest.MonkeyPatch.context() as patch:
        # The last step: everything is there, only the anchor does not say so yet.
        patch.setattr(first_boot, "_anchor_ready", lambda *_: (_ for _ in ()).throw(PowerCut("anchor")))
        with pytest.raises(PowerCut):
            boot(machine)
    with lab.booting() as machine:
        assert boot(machine) is Action.FIRST_BOOT
        [disk] = [disk for disk in disks.disks() if disk.device == lab.device]
        partitions = {one.id for one in disk.table.of_type(gpt.FDE)}
        assert len(partitions) == 1
        with mounted() as root:
            assert (root / "plaintext").read_bytes() == PLAINTEXT


def test_a_power_cut_before_the_anchor_exists_starts_over(lab: Lab) -> None:
    with lab.booting() as machine:
        with opened(lab.tcti) as esys:
            anchors.define(esys, machine.key)
        assert lab.anchor().standing is Standing.UNWRITTEN
    with lab.booting() as machine:
        assert boot(machine) is Action.FIRST_BOOT


def test_a_second_power_cut_finds_the_anchor_still_there(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    with lab.booting() as machine:
        cut = CutRunner(("systemd-cryptenroll",), {"DM_DISABLE_UDEV": "1", "SYSTEMD_FORCE_MEASURE": "1"})
        with pytest.raises(PowerCut):
            boot(replace(machine, runner=cut))

    def deleted(*_: Any) -> None:
        raise AssertionError("the anchor was taken away while a volume stood on the disk")

    monkeypatch.setattr(anchors, "define", deleted)
    with lab.booting() as machine:
        assert boot(machine) is Action.FIRST_BOOT


def test_another_system_on_the_same_tpm_cannot_anchor_a_volume_of_its_own(installed: Lab) -> None:
    """It can bring PCR 11 to a signed value, since that is public; PCR 7 says that firmware started something else."""
    with installed.booting() as machine, opened(installed.tcti) as esys:
        extend(esys, b"another boot loader", 7)
        forged = anchors.Anchor(State.READY, header_current=b"h" * 32, volume_key_id=b"k" * 32)
        with pytest.raises(tss.TSS2_Exception):
            anchors.write(esys, machine.key, machine.policies, forged)
        anchors.define(esys, machine.key)
        anchors.write(esys, machine.key, machine.policies, forged)
    assert refused(installed) == "anchor-foreign"


@pytest.mark.parametrize(("state", "pcr"), [("first boot", 12), ("first boot", 13), ("later boot", 12)])
def test_what_the_host_adds_to_the_configuration_is_refused(
    lab: Lab, state: str, pcr: int, request: pytest.FixtureRequest
) -> None:
    instance = lab if state == "first boot" else request.getfixturevalue("installed")
    with instance.booting() as machine:
        with opened(instance.tcti) as esys:
            extend(esys, b"init=/bin/sh", pcr)
        with pytest.raises(Refusal) as caught:
            boot(machine)
    assert caught.value.code == "configuration-added"


@pytest.mark.parametrize("content", [b"\x06\0\0\0\0", b"", b"\x06\0\0\0\x01\x01"])
def test_without_secure_boot_nothing_is_made(lab: Lab, content: bytes) -> None:
    (lab.directory / "SecureBoot").write_bytes(content)
    assert refused(lab) == "secure-boot-off"
    assert lab.anchor_exists() is False


@pytest.mark.parametrize("offset", [0, 4096, 256 << 10, (256 << 10) + 4096 + 100, 1 << 20, (8 << 20) - 1])
def test_a_changed_byte_of_the_header_area_is_refused(installed: Lab, offset: int) -> None:
    change(installed, offset)
    assert refused(installed) == "header-mismatch"


def test_a_volume_of_somebody_else_sealed_to_the_same_tpm_is_refused(installed: Lab) -> None:
    with installed.booting() as machine:
        mine, temporary = bytearray(os.urandom(96)), volume_key.temporary()
        identifier = str(uuid.uuid4())
        volumes.format_volume(
            machine.runner, installed.partition, volume_key=mine, temporary_key=temporary, uuid=identifier
        )
        volumes.enrol_tpm2(
            machine.runner,
            installed.partition,
            unlock_key=temporary,
            tpm2_device=installed.tcti,
            public_key=machine.paths.public_key,
            pcrs=BOUND_PCRS,
        )
    assert refused(installed) == "header-mismatch"


def test_a_volume_that_waits_for_the_first_boot_is_refused(installed: Lab, lab: Lab) -> None:
    for state in lab.directory.glob("tpm2-*"):
        state.unlink()
    assert refused(installed) == "volume-without-anchor"


def test_an_empty_partition_that_waits_for_the_first_boot_is_refused(lab: Lab) -> None:
    add_partition(lab, gpt.FDE)
    assert refused(lab) == "partition-foreign"


@pytest.mark.parametrize("kind", [gpt.LINUX_GENERIC, gpt.FDE, gpt.ROOT_X86_64, gpt.ESP])
def test_a_partition_that_nobody_made_is_refused_later(installed: Lab, kind: uuid.UUID) -> None:
    with installed.booting():
        run("sfdisk", "--no-reread", "--force", "--delete", installed.device, "4")
    assert refused(installed) == "volume-missing"
    add_partition(installed, kind)
    assert refused(installed) == ("header-mismatch" if kind == gpt.FDE else "partition-foreign")


def test_a_missing_volume_is_refused(installed: Lab, sealed: tuple[Path, str]) -> None:
    run("cp", "--sparse=always", str(sealed[0]), str(installed.image))
    assert refused(installed) == "volume-missing"


def test_a_second_disk_with_the_same_ids_is_refused(installed: Lab) -> None:
    copy = installed.directory / "copy"
    run("cp", "--sparse=always", str(installed.image), str(copy))
    with installed.booting() as machine:
        twin = run("losetup", "--find", "--show", "--partscan", str(copy)).decode().strip()
        try:
            with pytest.raises(Refusal) as caught:
                boot(machine)
        finally:
            run("losetup", "--detach", twin)
    assert caught.value.code == "disk-ambiguous"


def test_a_deleted_anchor_is_refused(installed: Lab) -> None:
    with installed.booting(), opened(installed.tcti) as esys:
        esys.nv_undefine_space(esys.tr_from_tpmpublic(anchors.INDEX))
    assert refused(installed) == "volume-without-anchor"


def test_an_anchor_of_another_key_is_refused(installed: Lab) -> None:
    other = rsa.generate_private_key(65537, 2048).public_key()
    pem = other.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    with installed.booting(), opened(installed.tcti) as esys:
        anchors.define(esys, PolicyKey.from_pem(pem))
    assert refused(installed) == "anchor-foreign"


def test_a_later_phase_gets_neither_key_nor_anchor(installed: Lab) -> None:
    with installed.booting() as machine:
        with opened(installed.tcti) as esys:
            extend(esys, b"leave-initrd")
        with pytest.raises(Refusal) as caught:
            boot(machine)
        assert caught.value.code == "key-unavailable"
        with pytest.raises(FdeError), opened(installed.tcti) as esys:
            anchors.write(esys, machine.key, machine.policies, anchors.Anchor(State.INITIALIZING))


def test_a_refusal_closes_the_tpm_until_the_next_reset(installed: Lab) -> None:
    with installed.booting() as machine:
        console.refuse(
            Refusal("header-mismatch", "/dev/x", "it differs", "stop"), PcrRunner(installed), machine.paths.state
        )
        assert json.loads((machine.paths.state / console.REFUSAL_FILE).read_text())["code"] == "header-mismatch"
        with pytest.raises(Refusal) as caught:
            boot(machine)
        assert caught.value.code == "key-unavailable"
    with installed.booting() as machine:
        assert boot(machine) is Action.OPEN


class PcrRunner(SubprocessRunner):
    """Tells systemd-pcrextend where the software TPM is; in a machine it finds the TPM by itself."""

    def __init__(self, instance: Lab) -> None:
        super().__init__(environment={"SYSTEMD_FORCE_MEASURE": "1"})
        self._device = f"--tpm2-device={instance.tcti}"

    def run(self, argv: Any, **options: Any) -> Any:
        return super().run([argv[0], self._device, *argv[1:]], **options)


def test_another_root_hash_is_refused(installed: Lab) -> None:
    line = (installed.directory / "cmdline").read_text().replace(installed.root_hash, "0" * 64)
    with installed.booting() as machine:
        (installed.directory / "cmdline").write_text(line)
        with pytest.raises(Refusal) as caught:
            boot(installed.machine)
        assert caught.value.code == "verity-missing"
        assert machine.mapper.find("fde-crypt") is None


def change(instance: Lab, offset: int) -> None:
    """Flip a bit of the encrypted partition, from the host's side."""
    with instance.image.open("r+b") as disk:
        table = gpt.read_table(disk, DISK_SIZE, "disk")
        [partition] = table.of_type(gpt.FDE)
        disk.seek(partition.offset + offset)
        [byte] = disk.read(1)
        disk.seek(partition.offset + offset)
        disk.write(bytes([byte ^ 1]))


def add_partition(instance: Lab, kind: uuid.UUID) -> None:
    """Add a partition behind the others, from the host's side."""
    with instance.image.open("r+b") as disk:
        table = gpt.read_table(disk, DISK_SIZE, "disk")
        start = max(one.end for one in table.partitions) + 64 * MIB
        added = gpt.Partition(len(table.partitions) + 1, kind, uuid.uuid4(), start, 64 * MIB)
        for offset, block in gpt.encode_table(replace(table, partitions=(*table.partitions, added))):
            disk.seek(offset)
            disk.write(block)
