# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A machine with a sealed image: a real disk image, a real device-mapper and a software TPM.

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
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Optional
from unittest import mock

import pytest
import tpm2_pytss as tss
from ansible_collections.cvm.fde.plugins.module_utils.agent.boot import boot
from ansible_collections.cvm.fde.plugins.module_utils.agent.machine import Machine, Paths, this_machine
from ansible_collections.cvm.fde.plugins.module_utils.agent.process import SubprocessRunner
from ansible_collections.cvm.fde.plugins.module_utils.agent.strategy_overlay import LOWER, UPPER
from ansible_collections.cvm.fde.plugins.module_utils.disk import gpt
from ansible_collections.cvm.fde.plugins.module_utils.errors import Refusal
from ansible_collections.cvm.fde.plugins.module_utils.runner import Completed
from ansible_collections.cvm.fde.plugins.module_utils.tpm import anchor as anchors
from ansible_collections.cvm.fde.plugins.module_utils.tpm.anchor import Standing
from ansible_collections.cvm.fde.plugins.module_utils.tpm.esys import opened
from ansible_collections.cvm.fde.plugins.module_utils.tpm.policy import PolicyKey, pcr_policy
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

MIB = 1 << 20
DISK_SIZE = 640 * MIB
ESP_ID, ESP_SIZE = uuid.UUID("0e5ba5e0-0000-4000-8000-000000000001"), 16 * MIB
ROOT_SIZE, HASH_SIZE = 64 * MIB, 8 * MIB
PHASES = (b"enter-initrd", b"leave-initrd", b"sysinit", b"ready")
#: Programs are to wait for no udev, and to measure although no stub has measured a kernel image.
ENVIRONMENT = {"DM_DISABLE_UDEV": "1", "SYSTEMD_FORCE_MEASURE": "1"}
#: Where systemd's own programs look for the signatures of PCR 11; systemd-cryptenroll has no option for it.
SIGNATURES = Path("/run/systemd/tpm2-pcr-signature.json")
PLAINTEXT = b"this sentence stands in the image and must never reach the encrypted partition " * 64


def run(*argv: str, **options: Any) -> bytes:
    return subprocess.run(argv, check=True, stdout=subprocess.PIPE, **options).stdout


@dataclass
class Lab:
    """A disk with a sealed image, a TPM and the files that systemd-stub would leave."""

    directory: Path
    root_hash: str
    device: str = ""
    #: Bytes of a sector of its disks, and the file of a second disk, if it has one.
    sector: int = 512
    spare: Optional[Path] = None
    #: Devices of device-mapper that a boot does not own.
    kept: ClassVar[tuple[str, ...]] = ()

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
        return this_machine(SubprocessRunner(environment=ENVIRONMENT), paths, self.tcti)

    def anchor_exists(self) -> bool:
        with self._tpm(), opened(self.tcti) as esys:
            return anchors.probe(esys, self.machine.key).standing is not Standing.ABSENT

    def anchor(self) -> anchors.Found:
        with opened(self.tcti) as esys:
            return anchors.probe(esys, self.machine.key)

    def anchored(self) -> anchors.Anchor:
        """Return what the anchor holds, which must be there."""
        anchor = self.anchor().anchor
        assert anchor is not None
        return anchor

    @contextlib.contextmanager
    def booting(self) -> Iterator[Machine]:
        """Be in the initrd of one boot; afterwards nothing of it is left but disk and TPM."""
        with self._tpm(), self._measurements(), self._disk():
            yield self.machine

    def start_system(self) -> None:
        """Leave the initrd: the boot phases up to the running system are measured."""
        with opened(self.tcti) as esys:
            for phase in PHASES[1:]:
                extend(esys, phase)

    @contextlib.contextmanager
    def _tpm(self) -> Iterator[None]:
        with self._tpm_at(f"{self.directory}/tpm"):
            with opened(self.tcti) as esys:
                extend(esys, b"enter-initrd")
            yield

    @contextlib.contextmanager
    def _tpm_at(self, address: str) -> Iterator[None]:
        """Run the software TPM on its state in the directory; it listens at ``address``."""
        process = subprocess.Popen(
            ["swtpm", "socket", "--tpm2", "--tpmstate", f"dir={self.directory}"]
            + ["--flags", "not-need-init,startup-clear", "--pid", f"file={address}.pid"]
            + ["--server", f"type=unixio,path={address}", "--ctrl", f"type=unixio,path={address}.ctrl"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            wait_for(Path(f"{address}.pid"))
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
        with self._attached():
            data, hashes_ = f"{self.device}p2", f"{self.device}p3"
            run("veritysetup", "open", data, "root", hashes_, self.root_hash)
            try:
                yield
            finally:
                for layer in (UPPER, LOWER):
                    subprocess.run(["umount", self.directory / "state" / layer], capture_output=True)
                take_down(*self.kept)

    @contextlib.contextmanager
    def _attached(self) -> Iterator[None]:
        """Attach the disk as ``device``, with its partitions."""
        attach = ("losetup", "--find", "--show", "--partscan", "--sector-size", str(self.sector))
        self.device = run(*attach, str(self.image)).decode().strip()
        attached = [self.device]
        if self.spare is not None:
            attached.append(run(*attach, str(self.spare)).decode().strip())
        try:
            yield
        finally:
            for device in attached:
                run("losetup", "--detach", device)


def take_down(*kept: str) -> None:
    """Remove every device of device-mapper but ``kept``; what was made last lies on top and goes first."""
    for _attempt in range(5):
        listed = run("dmsetup", "info", "-c", "--noheadings", "--separator", " ", "-o", "minor,name").decode()
        if listed.startswith("No devices found"):
            return
        found = sorted((int(minor), name) for minor, name in map(str.split, listed.splitlines()) if name not in kept)
        if not found:
            return
        subprocess.run(["dmsetup", "remove", *(name for _minor, name in reversed(found))], capture_output=True)
    raise AssertionError(f"still in use: {found}")


def end(process: subprocess.Popen[bytes]) -> None:
    """End a program, and ask again each second: swtpm forgets a signal that comes while it takes leave of a client."""
    for _attempt in range(60):
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(1)
            return
    process.kill()
    raise AssertionError(f"{process.args} did not end")


def wait_for(*paths: Path) -> None:
    for _attempt in range(6000):
        if all(path.exists() for path in paths):
            return
        time.sleep(0.01)
    raise TimeoutError(str(paths))


def extend(esys: Any, word: bytes, pcr: int = 11) -> None:
    digest = tss.TPMT_HA(hashAlg=tss.TPM2_ALG.SHA256)
    digest.digest.sha256 = hashlib.sha256(word).digest()
    esys.pcr_extend(tss.ESYS_TR.PCR0 + pcr, tss.TPML_DIGEST_VALUES([digest]))


#: Blocks of 4096 bytes of the root that an installed instance has written.
USED = (300, 700)


def use() -> None:
    """Write those blocks of the root as they are."""
    descriptor = os.open("/dev/mapper/fde-root", os.O_RDWR)
    try:
        for block in USED:
            os.pwrite(descriptor, os.pread(descriptor, 4096, block * 4096), block * 4096)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@dataclass(frozen=True)
class Content:
    """What a sealed image holds, how large it is, in bytes, and what else mkfs.ext4 is told.

    ``image`` is how large the image was before it was put on the disk, None where it fills the disk.
    """

    files: Mapping[str, bytes] = field(default_factory=lambda: {"plaintext": PLAINTEXT})
    disk: int = DISK_SIZE
    root: int = ROOT_SIZE
    options: tuple[str, ...] = ()
    image: Optional[int] = None


def make_sealed(directory: Path, wanted: Content = Content()) -> tuple[Path, str]:
    """Make a disk image with ESP, verity data and verity hashes in ``directory``; return it and its root hash."""
    data, tree, image = directory / "data", directory / "hash", directory / "disk"
    esp = directory / "esp"
    content = directory / "content"
    content.mkdir()
    for name, text in wanted.files.items():
        (content / name).parent.mkdir(parents=True, exist_ok=True)
        (content / name).write_bytes(text)
    for path, size in ((data, wanted.root), (tree, HASH_SIZE), (image, wanted.disk), (esp, ESP_SIZE)):
        with path.open("wb") as file:
            file.truncate(size)
    run("mkfs.vfat", str(esp))
    run("mkfs.ext4", "-q", "-b", "4096", *wanted.options, "-d", str(content), str(data))
    output = run("veritysetup", "format", str(data), str(tree)).decode()
    root_hash = next(line.split()[-1] for line in output.splitlines() if line.startswith("Root hash"))
    ids = uuid.UUID(root_hash[:32]), uuid.UUID(root_hash[32:])
    places = (MIB, MIB + ESP_SIZE, MIB + ESP_SIZE + wanted.root)
    table = gpt.new_table(
        uuid.uuid4(),
        wanted.image or wanted.disk,
        (
            gpt.Partition(1, gpt.ESP, ESP_ID, places[0], ESP_SIZE),
            gpt.Partition(2, gpt.ROOT_X86_64, ids[0], places[1], wanted.root),
            gpt.Partition(3, gpt.ROOT_VERITY_X86_64, ids[1], places[2], HASH_SIZE),
        ),
    )
    with image.open("r+b") as disk:
        for offset, block in gpt.encode_table(table):
            disk.seek(offset)
            disk.write(block)
        for place, source in ((places[0], esp), (places[1], data), (places[2], tree)):
            disk.seek(place)
            disk.write(source.read_bytes())
    return image, root_hash


def update(lab: Lab, directory: Path, files: dict[str, bytes]) -> Lab:
    """Replace the image of an instance by a newer one: other content, other root hash, same volume and TPM."""
    directory.mkdir()
    return put_below(lab, make_sealed(directory, Content(files)))


def put_below(lab: Lab, sealed: tuple[Path, str]) -> Lab:
    """Write a sealed image over that of an instance, whose volume stays."""
    image, root_hash = sealed
    with image.open("rb") as file:
        fresh = gpt.read_table(file, DISK_SIZE, "image")
    with lab.image.open("r+b") as disk:
        old = gpt.read_table(disk, DISK_SIZE, "disk")
        [volume] = old.of_type(gpt.FDE)
        for offset, block in gpt.encode_table(replace(old, partitions=(*fresh.partitions, volume))):
            disk.seek(offset)
            disk.write(block)
        with image.open("rb") as file:
            file.seek(MIB)
            disk.seek(MIB)
            disk.write(file.read(max(one.end for one in fresh.partitions) - MIB))
    line = (lab.directory / "cmdline").read_text().replace(lab.root_hash, root_hash)
    (lab.directory / "cmdline").write_text(line)
    return replace(lab, root_hash=root_hash)


def seal_with(lab: Lab, *, svn: int) -> None:
    """Give the image of an instance a security version."""
    line = lab.directory / "cmdline"
    words = [word for word in line.read_text().split() if not word.startswith("fde.svn=")]
    line.write_text(" ".join((*words, f"fde.svn={svn}")) + "\n")


def make_lab(tmp_path: Path, sealed: tuple[Path, str], signer: rsa.RSAPrivateKey, strategy: str = "clone") -> Lab:
    """Return an instance of the sealed image that was never booted."""
    image, root_hash = sealed
    run("cp", "--sparse=always", str(image), str(tmp_path / "disk"))
    (tmp_path / "cmdline").write_text(f"roothash={root_hash} root=/dev/mapper/fde-root rw fde.strategy={strategy}\n")
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    pem = signer.public_key().public_bytes(serialization.Encoding.PEM, form)
    (tmp_path / "public.pem").write_bytes(pem)
    (tmp_path / "SecureBoot").write_bytes(b"\x06\0\0\0\x01")
    (tmp_path / "signatures.json").write_text(json.dumps({"sha256": list(signatures(signer, pem))}))
    return Lab(tmp_path, root_hash)


def signatures(signer: rsa.RSAPrivateKey, pem: bytes) -> Iterator[dict[str, Any]]:
    """Yield what the image builder signs: PCR 11 in the initrd, and in the system that runs."""
    value = bytes(32)
    for phase in PHASES:
        value = hashlib.sha256(value + hashlib.sha256(phase).digest()).digest()
        digest = pcr_policy(11, value)
        if phase in (PHASES[0], PHASES[-1]):
            signature = signer.sign(digest, padding.PKCS1v15(), hashes.SHA256())
            entry = {"pcrs": [11], "pkfp": PolicyKey.from_pem(pem).pkfp, "pol": digest.hex()}
            yield {**entry, "sig": base64.b64encode(signature).decode()}


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


class PowerCut(BaseException):
    """The machine lost power; nothing may catch this, as nothing catches a power cut."""


@contextlib.contextmanager
def power_cut_at(place: Any, name: str) -> Iterator[None]:
    """Lose power where ``name`` of ``place`` would be called, and see that it is."""

    def cut(*_arguments: Any, **_options: Any) -> Any:
        raise PowerCut(name)

    with mock.patch.object(place, name, cut):
        try:
            yield
        except PowerCut:
            return
    raise AssertionError(f"{name} was not called")


class CutRunner(SubprocessRunner):
    """Loses power right before the first program whose arguments begin as ``before``."""

    def __init__(self, *before: str) -> None:
        super().__init__(environment=ENVIRONMENT)
        self._before = before

    def run(self, argv: Any, **options: Any) -> Any:
        words = [os.path.basename(argv[0]), *argv[1:]]
        if all(word in words for word in self._before):
            raise PowerCut(" ".join(self._before))
        return super().run(argv, **options)


class PoorRunner(SubprocessRunner):
    """A kernel without one module."""

    def __init__(self, lacks: str) -> None:
        super().__init__(environment=ENVIRONMENT)
        self._lacks = lacks

    def run(self, argv: Any, **options: Any) -> Any:
        if argv[0] == "modprobe" and self._lacks in argv:
            return Completed(tuple(argv), 1, b"", b"")
        return super().run(argv, **options)


class PcrRunner(SubprocessRunner):
    """Tells systemd-pcrextend where the software TPM is; in a machine it finds the TPM by itself.

    Unless it is ``forced`` it measures nothing, because no stub has measured a kernel image here.
    """

    def __init__(self, instance: Lab, forced: bool = True) -> None:
        super().__init__(environment={"DM_DISABLE_UDEV": "1", **({"SYSTEMD_FORCE_MEASURE": "1"} if forced else {})})
        self._device = f"--tpm2-device={instance.tcti}"

    def run(self, argv: Any, **options: Any) -> Any:
        measuring = argv[0].endswith("systemd-pcrextend")
        return super().run([argv[0], self._device, *argv[1:]] if measuring else argv, **options)


def refused(instance: Lab) -> str:
    """Boot and return the code of the refusal; nothing may be open afterwards that was not before."""
    with instance.booting() as machine:
        with pytest.raises(Refusal) as caught:
            boot(machine)
        assert machine.mapper.find("fde-root") is None
        return caught.value.code


def change(instance: Lab, offset: int) -> None:
    """Flip a bit of the encrypted partition, from the host's side."""
    with instance.image.open("r+b") as disk:
        table = gpt.read_table(disk, instance.image.stat().st_size, "disk")
        [partition] = table.of_type(gpt.FDE)
        disk.seek(partition.offset + offset)
        [byte] = disk.read(1)
        disk.seek(partition.offset + offset)
        disk.write(bytes([byte ^ 1]))


def add_partition(instance: Lab, kind: uuid.UUID) -> None:
    """Add a partition behind the others, from the host's side."""
    with instance.image.open("r+b") as disk:
        table = gpt.read_table(disk, instance.image.stat().st_size, "disk")
        start = max(one.end for one in table.partitions) + 64 * MIB
        added = gpt.Partition(len(table.partitions) + 1, kind, uuid.uuid4(), start, 64 * MIB)
        for offset, block in gpt.encode_table(replace(table, partitions=(*table.partitions, added))):
            disk.seek(offset)
            disk.write(block)


def widen(instance: Lab, by: int = 512 * MIB) -> None:
    """Give the disk more room behind the volume, from the host's side."""
    size = instance.image.stat().st_size
    with instance.image.open("r+b") as disk:
        table = gpt.read_table(disk, size, "disk")
        disk.truncate(size + by)
        for offset, block in gpt.encode_table(gpt.new_table(table.disk_id, size + by, table.partitions)):
            disk.seek(offset)
            disk.write(block)
