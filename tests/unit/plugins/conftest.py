# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A machine for the verifier's tests: a real software TPM that went through a first boot, with logs that fit its PCRs.

Only firmware and systemd are played; keys, certificate, quotes, anchor and policies are the TPM's own, by the code
under test.
"""

from __future__ import annotations

import datetime
import hashlib
import hmac
import json
import os
import shutil
import struct
import subprocess
import zlib
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Callable, Iterator, Optional

import pytest
from ansible_collections.cvm.fde.plugins.module_utils.dm import device
from ansible_collections.cvm.fde.plugins.module_utils.tpm import anchor as anchors
from ansible_collections.cvm.fde.plugins.module_utils.tpm import rounds
from ansible_collections.cvm.fde.plugins.module_utils.tpm.esys import opened, tss
from ansible_collections.cvm.fde.plugins.module_utils.tpm.keys import attestation_key
from ansible_collections.cvm.fde.plugins.module_utils.tpm.policy import (
    PolicyKey,
    SignedPolicy,
    bound_values,
    pcr_policy,
)
from ansible_collections.cvm.fde.plugins.module_utils.tpm.quote import quote
from ansible_collections.cvm.fde.tests.unit.plugins.software_tpm import SoftwareTpm
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

EV_NO_ACTION, EV_SEPARATOR, EV_EVENT_TAG, EV_S_CRTM_VERSION, EV_IPL = 3, 4, 6, 8, 0xD
EV_VARIABLE, EV_BOOT_APPLICATION, EV_ACTION, EV_AUTHORITY = 0x80000001, 0x80000003, 0x80000007, 0x800000E0
GLOBAL = bytes.fromhex("61dfe48bca93d211aa0d00e098032b8c")
SECURITY = bytes.fromhex("cbb219d73a3d9645a3bcdad00e67656f")
SIGNER = b"the certificate that signed the image"
UUID = "0d8f5c4c-3c8e-4c0e-9d69-4c8f3a1f6a01"
#: systemd closes these in the initrd.
SEPARATED = (0, 1, 2, 3, 4, 5, 6, 7, 9, 12, 13, 14)
#: What a kernel image has measured of itself; images differ in it.
SECTIONS = (b".linux\0", b".initrd\0", b".cmdline\0")
INITRD = b"the image's initrd"
#: What the firmware starts; images share it here.
KERNEL = b"the unified kernel image"
PHASES = ("enter-initrd", "leave-initrd", "sysinit", "ready")
CREATION = {"sha256": (0, 1, 2, 3, 4, 5, 7, 9, 11, 12)}


def sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def with_separator(value: bytes) -> list[str]:
    """Return a PCR's values before and after systemd closed it."""
    return [value.hex(), sha256(value + sha256(b"os-separator")).hex()]


def variable(owner: bytes, name: str, data: bytes) -> bytes:
    """Return a UEFI_VARIABLE_DATA."""
    return owner + struct.pack("<QQ", len(name), len(data)) + name.encode("utf-16-le") + data


class FirmwareEvents:
    """A crypto-agile log with one bank, and the digests to extend a TPM with."""

    def __init__(
        self,
        secure_boot: bool = True,
        sections: tuple[bytes, ...] = SECTIONS,
        initrd: bytes = INITRD,
        kernel: bytes = KERNEL,
    ) -> None:
        self.events: list[tuple[int, int, bytes, bytes]] = []
        self.add(0, EV_S_CRTM_VERSION, b"1\0")
        state = b"\1" if secure_boot else b"\0"
        for owner, name, data in (
            (GLOBAL, "SecureBoot", state),
            (GLOBAL, "PK", b"pk"),
            (GLOBAL, "KEK", b"kek"),
            (SECURITY, "db", bytes(16) + SIGNER),
            (SECURITY, "dbx", b""),
        ):
            self.add(7, EV_VARIABLE, variable(owner, name, data))
        self.add(4, EV_ACTION, b"Calling EFI Application from Boot Option")
        for pcr in range(8):
            self.add(pcr, EV_SEPARATOR, bytes(4))
        self.add(7, EV_AUTHORITY, variable(SECURITY, "db", bytes(16) + SIGNER))
        self.add(4, EV_BOOT_APPLICATION, b"a device path", sha256(kernel))
        for section in sections:
            self.add(11, EV_IPL, section)
        self.add(9, EV_EVENT_TAG, b"LOADED_IMAGE::LoadOptions\0", sha256(b"the image's command line"))
        self.add(9, EV_EVENT_TAG, b"Linux initrd\0", sha256(initrd))
        self.add(5, EV_ACTION, b"Exit Boot Services Invocation")
        self.add(5, EV_ACTION, b"Exit Boot Services Returned with Success")

    def add(self, pcr: int, kind: int, data: bytes, digest: Optional[bytes] = None) -> None:
        self.events.append((pcr, kind, data, digest or sha256(data)))

    def log(self) -> bytes:
        header = b"Spec ID Event03\0" + struct.pack("<IBBBBI", 0, 0, 2, 0, 2, 1) + struct.pack("<HHB", 0xB, 32, 0)
        raw = struct.pack("<II20sI", 0, EV_NO_ACTION, b"", len(header)) + header
        for pcr, kind, data, digest in self.events:
            raw += struct.pack("<IIIH", pcr, kind, 1, 0xB) + digest + struct.pack("<I", len(data)) + data
        return raw

    def values(self) -> dict[int, bytes]:
        found: dict[int, bytes] = {}
        for pcr, _kind, _data, digest in self.events:
            found[pcr] = sha256(found.get(pcr, bytes(32)) + digest)
        return found


def record(pcr: int, kind: str, string: str, digest: Optional[bytes] = None) -> bytes:
    """Return one record of systemd's log."""
    found = {
        "pcr": pcr,
        "digests": [{"hashAlg": "sha256", "digest": (digest or sha256(string.encode())).hex()}],
        "content_type": "systemd",
        "content": {"string": string, "bootId": "0" * 32, "timestamp": 1, "eventType": kind},
    }
    return b"\x1e" + json.dumps(found).encode() + b"\n"


class Machine:
    """One machine; ``folder`` holds its TPM state and its logs."""

    def __init__(
        self, folder: Path, authority: Path, secure_boot: bool = True, name: str = "machine", initrd: bytes = INITRD
    ) -> None:
        self.folder = folder
        self._tpm = SoftwareTpm(folder)
        self.tcti = self._tpm.tcti
        self.firmware_log = folder / "firmware.log"
        self.userspace_log = folder / "userspace.log"
        self.token: bytes = b""
        self.recovery: bytes = b""
        self.volume_key = os.urandom(64)
        self._authority = authority
        self._secure_boot = secure_boot
        self._initrd_handed = initrd
        subprocess.run(
            [
                "swtpm_setup",
                "--tpm2",
                "--tpmstate",
                folder,
                "--create-ek-cert",
                "--vmid",
                name,
                "--pcr-banks",
                "sha256,sha384",
            ]
            + ["--config", authority / "setup.conf", "--logfile", folder / "setup.log"],
            check=True,
            stdout=subprocess.DEVNULL,
        )

    @property
    def sources(self) -> rounds.Sources:
        return rounds.Sources(self.tcti, str(self.firmware_log), str(self.userspace_log))

    @property
    def volume_key_id(self) -> bytes:
        return hmac.digest(self.volume_key, f"cryptsetup:fde-crypt:{UUID}".encode(), "sha256")

    def start(self) -> None:
        """Power the TPM on, as a machine's reset does."""
        self._tpm.on()

    def stop(self) -> None:
        """Take the TPM's power away."""
        self._tpm.off()

    def boot(self, image: Image, first: bool, volume: bool = True) -> None:
        """Boot to ``ready``; the first boot makes the volume, its evidence and the anchor."""
        with self._initrd(image) as esys:
            if first:
                self._create(esys, image)
            if volume:
                self.measure(esys, 15, "volume-key", f"cryptsetup:fde-crypt:{UUID}", self.volume_key_id)
            for phase in PHASES[1:]:
                self.measure(esys, 11, "phase", phase)

    @contextmanager
    def _initrd(self, image: Image, kernel: bytes = KERNEL) -> Iterator[Any]:
        """Boot as far as the initrd."""
        self.start()
        firmware = FirmwareEvents(self._secure_boot, image.sections, self._initrd_handed, kernel)
        self.firmware_log.write_bytes(firmware.log())
        self.userspace_log.write_bytes(b"")
        with opened(self.tcti) as esys:
            for pcr, _kind, _data, digest in firmware.events:
                _extend(esys, pcr, digest)
            for pcr in SEPARATED:
                self.measure(esys, pcr, "os-separator", "os-separator")
            self.measure(esys, 11, "phase", PHASES[0])
            yield esys

    def recover(self, image: Image, kernel: bytes = KERNEL, times: int = 1) -> None:
        """Boot as far as the initrd, where somebody gives the recovery key of the volume, now for that many times."""
        with self._initrd(image, kernel) as esys:
            name = anchors.anchor_name(image.key, bound_values(esys))
            made = image.claims(self.volume_key_id, name)
            kept = ("version", "volume_key_id", "luks_uuid", "volume", "root_hash", "strategy", "anchor")
            claims = {name: made[name] for name in kept}
            claims.update(purpose="volume-recovery", code="rolled-back", recoveries=times)
            self.recovery = self._token(esys, claims)
            ready = anchors.Anchor(anchors.State.INITIALIZING).ready(sha256(b"header"), self.volume_key_id)
            anchors.write(esys, image.key, image.policies, replace(ready, recoveries=times))

    def write_header(self) -> Path:
        """Make a LUKS2 header with the evidence token in a file, as the boot agent keeps one in memory."""
        path = self.folder / "header"
        with path.open("wb") as file:
            file.truncate(32 << 20)
        subprocess.run(
            ["cryptsetup", "luksFormat", "--batch-mode", "--type", "luks2", "--uuid", UUID, "--key-file", "-"]
            + ["--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000", "--luks2-metadata-size", "256k", path],
            input=b"a passphrase",
            check=True,
        )
        subprocess.run(["cryptsetup", "token", "import", path], input=self.token, check=True)
        return path

    def measure(self, esys: Any, pcr: int, kind: str, string: str, digest: Optional[bytes] = None) -> None:
        """Extend and record, as systemd does."""
        _extend(esys, pcr, digest or sha256(string.encode()))
        with self.userspace_log.open("ab") as log:
            log.write(record(pcr, kind, string, digest))

    def _create(self, esys: Any, image: Image) -> None:
        anchors.define(esys, image.key)
        anchors.write(esys, image.key, image.policies, anchors.Anchor(anchors.State.INITIALIZING))
        name = anchors.anchor_name(image.key, bound_values(esys))
        self.token = self._token(esys, image.claims(self.volume_key_id, name))
        ready = anchors.Anchor(anchors.State.INITIALIZING).ready(sha256(b"header"), self.volume_key_id)
        anchors.write(esys, image.key, image.policies, ready)

    def _token(self, esys: Any, content: dict[str, Any]) -> bytes:
        """Return the token with these claims, and what proves that they were made in this initrd."""
        claims = json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
        with attestation_key(esys) as key:
            quoted = quote(esys, key, sha256(claims), CREATION)
            return json.dumps(
                {
                    "type": "cvm-fde",
                    "keyslots": [],
                    "version": 1,
                    "claims": rounds.encode(claims),
                    "quote": {"attest": rounds.encode(quoted.attest), "signature": rounds.encode(quoted.signature)},
                    "ak": rounds.encode(key.public),
                    "pcrs": rounds.pcr_values(quoted),
                    "firmware_log": rounds.encode(zlib.compress(self.firmware_log.read_bytes())),
                    "userspace_log": rounds.encode(zlib.compress(self.userspace_log.read_bytes())),
                }
            ).encode()


class Image:
    """A sealed image: its policy key, signed phases and manifest."""

    def __init__(self, before: Optional[Image] = None, name: str = "debian-forky") -> None:
        """Seal an image, or the next one of the same builder with another kernel image."""
        self.name = name
        self.sections = SECTIONS if before is None else (*SECTIONS, name.encode())
        self.signer = before.signer if before else rsa.generate_private_key(65537, 2048)
        self.pem = self.signer.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        self.key = PolicyKey.from_pem(self.pem)
        self.root_hash = sha256(b"root").hex()
        values = FirmwareEvents(sections=self.sections).values()
        self.pcr_11: dict[str, bytes] = {}
        value = values[11]
        for place, phase in enumerate(PHASES):
            value = sha256(value + sha256(phase.encode()))
            self.pcr_11[":".join(PHASES[: place + 1])] = value
        self.policies = tuple(self._sign(self.pcr_11[phase]) for phase in (PHASES[0], ":".join(PHASES)))
        self.pcr_4, self.pcr_7, self.pcr_9 = values[4], values[7], values[9]

    def _sign(self, value: bytes) -> SignedPolicy:
        policy = pcr_policy(11, value)
        return SignedPolicy(self.key.pkfp, policy, self.signer.sign(policy, padding.PKCS1v15(), hashes.SHA256()))

    def claims(self, volume_key_id: bytes, anchor: bytes) -> dict[str, Any]:
        return {
            "version": 1,
            "purpose": "volume-creation",
            "volume_key_id": volume_key_id.hex(),
            "luks_uuid": UUID,
            "volume": "fde-crypt",
            "partition_uuid": "6f8e1f0a-6d39-4d5e-8e1c-0b1b3a3f9c11",
            "root_hash": self.root_hash,
            "cipher": "aes-xts-plain64",
            "integrity": "hmac(sha256)",
            "sector_size": 4096,
            "strategy": "clone",
            "anchor": {"nv_index": "0x0180fde0", "name": anchor.hex()},
        }

    def manifest(self, **changes: Any) -> dict[str, Any]:
        return {
            "version": 1,
            "name": self.name,
            "strategy": "clone",
            "root": {"hash": self.root_hash},
            "secure_boot": {"signer_sha256": sha256(SIGNER).hex()},
            "pcr_policy": {"public_key": self.pem.decode(), "fingerprint": self.key.fingerprint},
            "pcrs": {
                "sha256": {
                    "4": with_separator(self.pcr_4),
                    "7": with_separator(self.pcr_7),
                    "9": with_separator(self.pcr_9),
                    "11": {phase: value.hex() for phase, value in self.pcr_11.items()},
                    "12": with_separator(bytes(32)),
                }
            },
            **changes,
        }

    def signed_manifest(self, folder: Path, **changes: Any) -> tuple[Path, Path]:
        """Write manifest and signature, and return the paths of the manifest and of the key that verifies it."""
        text = json.dumps(self.manifest(**changes)).encode()
        (folder / "manifest.json").write_bytes(text)
        signature = self.signer.sign(text, padding.PKCS1v15(), hashes.SHA256())
        (folder / "manifest.json.sig").write_bytes(signature)
        (folder / "manifest.pem").write_bytes(self.pem)
        return folder / "manifest.json", folder / "manifest.pem"


def _extend(esys: Any, pcr: int, digest: bytes) -> None:
    """Extend both banks; what goes into the second one stands for the digest that a firmware would make."""
    other = hashlib.sha384(digest).digest()
    values = tss.TPML_DIGEST_VALUES(
        [
            tss.TPMT_HA(hashAlg=tss.TPM2_ALG.SHA256, digest=tss.TPMU_HA(sha256=digest)),
            tss.TPMT_HA(hashAlg=tss.TPM2_ALG.SHA384, digest=tss.TPMU_HA(sha384=other)),
        ]
    )
    esys.pcr_extend(tss.ESYS_TR(pcr), values)


def make_authority(folder: Path) -> Path:
    """Make a certificate authority for endorsement keys, as a vTPM's operator runs one."""
    folder.mkdir(exist_ok=True)
    key = rsa.generate_private_key(65537, 2048)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "a test's EK authority")])
    start = datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(days=1)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(start)
        .not_valid_after(start + datetime.timedelta(days=3650))
        .add_extension(x509.BasicConstraints(True, None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    (folder / "ca.pem").write_bytes(certificate.public_bytes(Encoding.PEM))
    (folder / "ca.key").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption()))
    (folder / "localca.conf").write_text(
        f"statedir = {folder}\nsigningkey = {folder}/ca.key\n"
        f"issuercert = {folder}/ca.pem\ncertserial = {folder}/serial\n"
    )
    (folder / "localca.options").write_text(
        "--platform-manufacturer test\n--platform-version 1.0\n--platform-model test\n"
    )
    (folder / "setup.conf").write_text(
        f"create_certs_tool = swtpm_localca\ncreate_certs_tool_config = {folder}/localca.conf\n"
        f"create_certs_tool_options = {folder}/localca.options\n"
    )
    return folder


def write_index(esys: Any, index: int, content: bytes) -> None:
    """Make an index as a platform does, which its owner and anyone may read."""
    attributes = tss.TPMA_NV.OWNERWRITE | tss.TPMA_NV.OWNERREAD | tss.TPMA_NV.AUTHREAD | tss.TPMA_NV.NO_DA
    public = tss.TPMS_NV_PUBLIC(
        nvIndex=index, nameAlg=tss.TPM2_ALG.SHA256, attributes=attributes, dataSize=len(content)
    )
    nv = esys.nv_define_space(tss.TPM2B_AUTH(), tss.TPM2B_NV_PUBLIC(nvPublic=public))
    for start in range(0, len(content), 512):
        esys.nv_write(nv, content[start : start + 512], start, tss.ESYS_TR.OWNER)


def timeless(public: Any = None) -> bytes:
    """Return a certificate (DER) that begins in the year 0, which Python's calendar does not have: by default of any
    key, otherwise of an endorsement key.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "timeless")])
    named = [x509.NameAttribute(x509.ObjectIdentifier(f"2.23.133.2.{number}"), "x") for number in (1, 2, 3)]
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(public or key.public_key())
        .serial_number(1)
        .not_valid_before(datetime.datetime(2055, 1, 1))
        .not_valid_after(datetime.datetime(2060, 1, 1))
        .add_extension(x509.ExtendedKeyUsage([x509.ObjectIdentifier("2.23.133.8.1")]), critical=False)
        .add_extension(x509.SubjectAlternativeName([x509.DirectoryName(x509.Name(named))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    return made.public_bytes(Encoding.DER).replace(b"20550101000000Z", b"00000101000000Z")


@pytest.fixture(scope="session")
def tomorrow() -> datetime.datetime:
    """A moment after the beginning of every certificate that is made for a machine during the tests."""
    return datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(days=1)


@pytest.fixture(scope="session")
def image() -> Image:
    return Image()


@pytest.fixture(scope="session")
def endorsement_authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the authority that vouches for every machine made here."""
    return make_authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="session")
def authority(endorsement_authority: Path) -> Path:
    """The same, under the name that most tests call it by."""
    return endorsement_authority


@pytest.fixture(scope="session")
def make_machine(
    tmp_path_factory: pytest.TempPathFactory, endorsement_authority: Path, image: Image
) -> Iterator[Callable[..., Machine]]:
    """A factory of machines that were booted for the first time."""
    if not shutil.which("swtpm_setup"):
        pytest.skip("swtpm is not installed")
    if tss is None:
        pytest.skip("tpm2-pytss is not installed")
    made: list[Machine] = []

    def make(name: str = "machine", **options: Any) -> Machine:
        machine = Machine(tmp_path_factory.mktemp(name), endorsement_authority, name=name, **options)
        made.append(machine)
        machine.boot(image, first=True)
        return machine

    yield make
    for machine in made:
        machine.stop()


@pytest.fixture(scope="session")
def machine(make_machine: Callable[..., Machine]) -> Machine:
    """A machine that was booted once; tests leave it as it is."""
    return make_machine()


@pytest.fixture
def mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Add a device to what the kernel says of device-mapper, which is nothing at first."""
    monkeypatch.setattr(device, "SYSFS", tmp_path / "sys")

    def add(
        name: str, minor: int, uuid: str = "", size: int = 0, suspended: bool = False, read_only: bool = False
    ) -> None:
        directory = tmp_path / f"sys/block/dm-{minor}"
        (directory / "dm").mkdir(parents=True)
        said = {"dm/name": name, "dm/uuid": uuid, "dm/suspended": int(suspended), "dev": f"254:{minor}"}
        for path, word in {**said, "size": size, "ro": int(read_only)}.items():
            (directory / path).write_text(f"{word}\n")

    return add
