# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A software TPM over a socket, and the image builder's key that signs PCR policies for it."""

from __future__ import annotations

import base64
import hashlib
import json
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

_POLICY_PCR = bytes.fromhex("0000017f")


@dataclass(frozen=True)
class Tpm:
    """``socket`` is where it listens; systemd and tpm2-tools name it by ``tcti``."""

    socket: Path

    @property
    def tcti(self) -> str:
        return f"swtpm:path={self.socket}"

    @classmethod
    @contextmanager
    def start(cls, directory: Path) -> Iterator[Tpm]:
        """Make a TPM with a fresh state, start it, and end it afterwards."""
        directory.mkdir()
        subprocess.run(
            ["swtpm_setup", "--tpm2", "--tpmstate", str(directory), "--createek", "--pcr-banks", "sha256"],
            check=True,
            capture_output=True,
        )
        socket = directory / "socket"
        # libtss2-tcti-swtpm looks for the control channel beside the data channel, under this very name.
        process = subprocess.Popen(
            [
                *("swtpm", "socket", "--tpm2", "--tpmstate", f"dir={directory}", "--flags", "startup-clear"),
                *("--server", f"type=unixio,path={socket}", "--ctrl", f"type=unixio,path={socket}.ctrl"),
                *("--pid", f"file={directory / 'pid'}"),
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            while not (directory / "pid").exists():
                assert process.poll() is None, "the software TPM ended at its start"
                time.sleep(0.01)
            yield cls(socket)
        finally:
            process.kill()
            process.wait()

    def extend(self, pcr: int, text: str) -> None:
        """Extend a PCR by the digest of a text, as a boot phase does."""
        digest = hashlib.sha256(text.encode()).hexdigest()
        subprocess.run(["tpm2_pcrextend", "-T", self.tcti, f"{pcr}:sha256={digest}"], check=True)

    def pcr(self, pcr: int) -> bytes:
        """Return the value of a PCR in the SHA-256 bank."""
        done = subprocess.run(
            ["tpm2_pcrread", "-T", self.tcti, f"sha256:{pcr}", "-o", "/dev/stdout", "-Q"],
            check=True,
            capture_output=True,
        )
        assert len(done.stdout) == 32
        return done.stdout


class PolicyKey:
    """The image builder's key pair."""

    def __init__(self, directory: Path) -> None:
        self._key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self.public_key = directory / "tpm2-pcr-public-key.pem"
        self.public_key.write_bytes(
            self._key.public_key().public_bytes(
                serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
            )
        )

    def sign(self, values: Sequence[bytes], file: Path) -> Path:
        """Write systemd's signature file for PCR 11 at each of the given values, as ukify puts it into an image."""
        entries = []
        public = self._key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.PKCS1)
        for value in values:
            policy = _pcr_policy(11, value)
            signature = self._key.sign(policy, padding.PKCS1v15(), hashes.SHA256())
            entries.append(
                {
                    "pcrs": [11],
                    "pkfp": hashlib.sha256(public).hexdigest(),
                    "pol": policy.hex(),
                    "sig": base64.b64encode(signature).decode(),
                }
            )
        file.write_text(json.dumps({"sha256": entries}))
        return file


def _pcr_policy(pcr: int, value: bytes) -> bytes:
    """The digest of TPM2_PolicyPCR over one PCR of the SHA-256 bank (TPM 2.0 Part 3, section 23.7)."""
    selection = bytearray(3)
    selection[pcr // 8] |= 1 << pcr % 8
    listed = bytes.fromhex("00000001000b03") + bytes(selection)
    return hashlib.sha256(bytes(32) + _POLICY_PCR + listed + hashlib.sha256(value).digest()).digest()
