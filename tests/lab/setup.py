# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Install what the project's tests and its demonstration need, and nothing that is there already.

Run by ``make setup`` with the machine's own Python (>= 3.11) and its standard library alone: Debian packages first,
then a virtual environment under ``.venv`` with the packages that pyproject.toml names.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import tomllib

CHECKOUT = Path(__file__).resolve().parents[2]
ENVIRONMENT = CHECKOUT / ".venv"
STAMP = ENVIRONMENT / "requirements.digest"

#: Debian packages by what they are for. QEMU, its firmware and ukify come from a tree that is built later.
PACKAGES = {
    "trees and images": "mmdebstrap debian-archive-keyring dosfstools e2fsprogs fdisk mtools openssl util-linux",
    "sealing with a tree of tools": "bubblewrap",
    "guests": "openssh-client",
    "the virtual environment": "python3-venv python3-dev gcc pkg-config libtss2-dev git",
    "unit tests with a real TPM, LUKS2 headers and databases": "swtpm swtpm-tools tpm2-tools libtss2-tcti-swtpm0 "
    "cryptsetup-bin postgresql cpio",
}


def main() -> None:
    """Install Debian packages, make the folders and the environment, and say so."""
    _debian_packages([name for names in PACKAGES.values() for name in names.split()])
    link = CHECKOUT / "build/collections/ansible_collections/cvm/fde"
    link.parent.mkdir(parents=True, exist_ok=True)
    if not link.exists():
        link.symlink_to(CHECKOUT)
    _environment()


def _debian_packages(wanted: list[str]) -> None:
    installed = _installed()
    missing = [name for name in wanted if name not in installed]
    if not missing:
        return
    print(f"setup: installing the Debian packages {' '.join(missing)}", flush=True)
    sudo = [] if os.geteuid() == 0 else ["sudo"]
    apt = [*sudo, "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-q"]
    for command in (["update"], ["install", "--yes", "--no-install-recommends", *missing]):
        subprocess.run([*apt, *command], check=True, stdin=subprocess.DEVNULL)


def _installed() -> set[str]:
    """Return the names of installed packages, and those that they provide."""
    query = ["dpkg-query", "--show", "--showformat=${db:Status-Status} ${Package}, ${Provides}\n"]
    listed = subprocess.run(query, check=True, capture_output=True, text=True).stdout
    lines = [line.removeprefix("installed ") for line in listed.splitlines() if line.startswith("installed ")]
    return {name.split()[0] for line in lines for name in line.split(",") if name.strip()}


def _environment() -> None:
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())
    groups = project["dependency-groups"]
    wanted = [*project["project"]["dependencies"], *groups["test"], *groups["lint"]]
    digest = hashlib.sha256(repr((wanted, sys.version, sysconfig.get_config_var("BINDIR"))).encode()).hexdigest()
    if STAMP.exists() and STAMP.read_text() == digest:
        return
    print(f"setup: making the virtual environment {ENVIRONMENT} with Python {sys.version.split()[0]}", flush=True)
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(ENVIRONMENT)], check=True)
    pip = [str(ENVIRONMENT / "bin/python"), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    subprocess.run([*pip, *wanted], check=True, stdin=subprocess.DEVNULL)
    STAMP.write_text(digest)


if __name__ == "__main__":
    try:
        main()
    except subprocess.CalledProcessError as error:
        sys.exit(f"setup: '{' '.join(error.cmd)}' ended with status {error.returncode}; what it said is above")
