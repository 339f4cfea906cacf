# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Makes headers that real programs open and nobody should, for the unit tests of the policy.

    python -m tests.integration.uml --share DIR -- python3 tests/integration/inside/make_hostile_headers.py DIR

DIR is tests/unit/plugins/module_utils/luks2/fixtures/hostile as an absolute path. cryptsetup itself makes a volume that
encrypts nothing (CVE-2025-59054, CVE-2025-58356), and the three kinds of an interrupted reencryption, by which
CVE-2021-4122 had a volume decrypt itself; systemd-cryptenroll, as it does by default, a TPM keyslot without conditions.
"""

from __future__ import annotations

import lzma
import os
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from make_headers import UUID, new_disk
from software_tpm import Tpm

METADATA = 256 << 10
KEY = Path("/run/passphrase")
STRETCHING = ["--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "100000"]
PLACES = ["--sector-size", "4096", "--luks2-metadata-size", str(METADATA)]
AES = ["--cipher", "aes-xts-plain64", "--key-size", "512"]


def cryptsetup(*argv: str) -> None:
    subprocess.run(["cryptsetup", *argv, "--batch-mode", "--key-file", str(KEY)], check=True)


def formatted(directory: Path, *cipher: str) -> str:
    """Return a disk with a new volume."""
    disk = new_disk(directory)
    options = [*PLACES, "--offset", "16384", "--hash", "sha256", *STRETCHING, *cipher]
    cryptsetup("luksFormat", "--type", "luks2", "--uuid", UUID, *options, disk)
    return disk


def main(fixtures: Path) -> None:
    KEY.write_text("a passphrase")
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        directory = Path(name)
        os.chdir(directory)
        made = {"null-cipher": formatted(directory, "--cipher", "cipher_null-ecb", "--key-size", "256")}
        made["reencrypting"] = formatted(directory, *AES)
        cryptsetup("reencrypt", "--init-only", *STRETCHING, made["reencrypting"])
        made["decrypting"] = str(directory / "header")
        cryptsetup("reencrypt", "--decrypt", "--init-only", "--header", made["decrypting"], formatted(directory, *AES))
        made["encrypting"] = new_disk(directory)
        descriptor = os.open(made["encrypting"], os.O_WRONLY)
        os.pwrite(descriptor, os.urandom(1 << 20), 0)
        os.close(descriptor)
        options = ["--type", "luks2", "--uuid", UUID, "--reduce-device-size", "16M", *PLACES, *STRETCHING, *AES]
        cryptsetup("reencrypt", "--encrypt", "--init-only", *options, made["encrypting"])
        made["unbound"] = formatted(directory, *AES, "--integrity", "hmac-sha256", "--integrity-no-wipe")
        with Tpm.start(directory / "tpm") as tpm:
            enrolment = ["--tpm2-public-key=", "--tpm2-pcrlock=", f"--unlock-key-file={KEY}"]
            subprocess.run(
                ["systemd-cryptenroll", f"--tpm2-device={tpm.tcti}", *enrolment, made["unbound"]], check=True
            )
        for kind, path in made.items():
            with open(path, "rb") as file:
                (fixtures / f"{kind}.xz").write_bytes(lzma.compress(file.read(2 * METADATA)))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
