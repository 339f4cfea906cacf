# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Software TPMs whose endorsement keys are certified by the lab's authority."""

from __future__ import annotations

from pathlib import Path

from .keys import Keys
from .process import run

#: One bank: what is not extended is not hashed, and under emulation every hash of a 40 MB kernel image is paid in seconds.
BANKS = "sha256"


def manufacture(state: Path, guest: str, keys: Keys) -> None:
    """Make the state of a new TPM in the folder ``state``: RSA-2048 and ECC P-384 endorsement keys and their certificates."""
    state.mkdir(mode=0o700)
    authority = state.parent / "tpm-authority.conf"
    authority.write_text(
        f"statedir = {keys.folder}\n"
        f"signingkey = {keys.key('ek-ca')}\n"
        f"issuercert = {keys.ek_authority}\n"
        f"certserial = {keys.folder / 'ek-ca.serial'}\n"
    )
    options = state.parent / "tpm-authority.options"
    options.write_text("--platform-manufacturer cvm.fde\n--platform-version 1.0\n--platform-model lab\n")
    setup = state.parent / "tpm-setup.conf"
    setup.write_text(
        f"create_certs_tool = swtpm_localca\n"
        f"create_certs_tool_config = {authority}\n"
        f"create_certs_tool_options = {options}\n"
        f"active_pcr_banks = {BANKS}\n"
    )
    run(
        ["swtpm_setup", "--tpm2", "--tpmstate", state, "--create-ek-cert", "--vmid", guest, "--pcr-banks", BANKS]
        + ["--config", setup, "--logfile", state.parent / "tpm-setup.log"]
    )
