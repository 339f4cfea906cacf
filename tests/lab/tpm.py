# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Software TPMs whose endorsement keys are certified by the lab's authority."""

from __future__ import annotations

from pathlib import Path

from .cache import BUILD, lock
from .keys import Keys
from .trees import run_in, tools_tree

#: One bank only: under emulation every hash of a 40 MB kernel image is paid in seconds.
BANKS = "sha256"


def manufacture(guest: Path, keys: Keys) -> None:
    """Make a new TPM in the folder ``tpm`` of a guest: RSA-2048 and ECC P-384 endorsement keys, both certified."""
    (guest / "tpm").mkdir(mode=0o700)
    inside, lab = _seen(guest), _seen(keys.folder)
    (guest / "tpm-authority.conf").write_text(
        f"statedir = {lab}\nsigningkey = {lab}/ek-ca.key\nissuercert = {lab}/ek-ca.crt\n"
        f"certserial = {lab}/ek-ca.serial\n"
    )
    (guest / "tpm-authority.options").write_text(
        "--platform-manufacturer cvm.fde\n--platform-version 1.0\n--platform-model lab\n"
    )
    (guest / "tpm-setup.conf").write_text(
        "create_certs_tool = /usr/bin/swtpm_localca\n"
        f"create_certs_tool_config = {inside}/tpm-authority.conf\n"
        f"create_certs_tool_options = {inside}/tpm-authority.options\n"
        f"active_pcr_banks = {BANKS}\n"
    )
    with lock("ek-authority"):
        run_in(
            tools_tree(),
            ["swtpm_setup", "--tpm2", "--tpmstate", f"{inside}/tpm", "--create-ek-cert", "--vmid", guest.name]
            + ["--pcr-banks", BANKS, "--config", f"{inside}/tpm-setup.conf", "--logfile", f"{inside}/tpm-setup.log"],
            work=BUILD,
        )


def _seen(path: Path) -> str:
    """Return where the tools see a path of the build folder."""
    return f"/mnt/{path.relative_to(BUILD)}"
