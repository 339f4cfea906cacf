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
import signal
import subprocess
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import tpm2_pytss as tss
from ansible_collections.cvm.fde.plugins.module_utils.agent.boot import boot
from ansible_collections.cvm.fde.plugins.module_utils.agent.decision import Action
from ansible_collections.cvm.fde.plugins.module_utils.agent.machine import Machine, Paths, this_machine
from ansible_collections.cvm.fde.plugins.module_utils.agent.process import SubprocessRunner
from ansible_collections.cvm.fde.plugins.module_utils.agent.status import status
from ansible_collections.cvm.fde.plugins.module_utils.disk import gpt
from ansible_collections.cvm.fde.plugins.module_utils.dm import clone
from ansible_collections.cvm.fde.plugins.module_utils.luks2.area import read_area
from ansible_collections.cvm.fde.plugins.module_utils.tpm import anchor as anchors
from ansible_collections.cvm.fde.plugins.module_utils.tpm.anchor import Standing, State
from ansible_collections.cvm.fde.plugins.module_utils.tpm.esys import opened
from ansible_collections.cvm.fde.plugins.module_utils.tpm.policy import PolicyKey, pcr_policy
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
        )
        environment = {"DM_DISABLE_UDEV": "1", "SYSTEMD_FORCE_MEASURE": "1"}
        return this_machine(SubprocessRunner(environment=environment), paths, self.tcti)

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
        )
        try:
            wait_for(Path(address), Path(f"{address}.ctrl"))
            with opened(self.tcti) as esys:
                extend(esys, b"enter-initrd")
            yield
        finally:
            end(process)
            for path in (address, f"{address}.ctrl"):
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


def extend(esys: Any, word: bytes) -> None:
    digest = tss.TPMT_HA(hashAlg=tss.TPM2_ALG.SHA256)
    digest.digest.sha256 = hashlib.sha256(word).digest()
    esys.pcr_extend(tss.ESYS_TR.PCR11, tss.TPML_DIGEST_VALUES([digest]))


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
    image, root_hash = sealed
    run("cp", "--sparse=always", str(image), str(tmp_path / "disk"))
    (tmp_path / "cmdline").write_text(f"roothash={root_hash} root=/dev/mapper/fde-root rw fde.strategy=clone\n")
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    pem = signer.public_key().public_bytes(serialization.Encoding.PEM, form)
    (tmp_path / "public.pem").write_bytes(pem)
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
