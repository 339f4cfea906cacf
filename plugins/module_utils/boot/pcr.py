# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Predict the PCRs of a machine that boots a unified kernel image.

Pure functions over bytes, of the SHA-256 bank unless another one is named. The rules live here once: the sealing side
writes their values into the manifest, the verifying side compares quotes with them.

Source: systemd docs/TPM2_PCR_MEASUREMENTS.md and src/fundamental/uki.c (order of sections); TCG PC Client Platform
Firmware Profile 1.06, sections 3.3.4 and 10; TPM 2.0 Library part 3, TPM2_PolicyPCR.
"""

from __future__ import annotations

import hashlib
import struct
from typing import Mapping, Optional, Sequence

from .secure_boot import Signature, Variable

ZERO = bytes(32)
#: The order in which systemd-stub measures the sections of a UKI into PCR 11; .pcrsig is never measured.
MEASURED_SECTIONS = (
    ".linux",
    ".osrel",
    ".cmdline",
    ".initrd",
    ".ucode",
    ".splash",
    ".dtb",
    ".uname",
    ".sbat",
    ".pcrpkey",
    ".profile",
    ".dtbauto",
    ".hwids",
    ".efifw",
)
#: The words that systemd-pcrphase measures into PCR 11 one after the other.
PHASES = ("enter-initrd", "leave-initrd", "sysinit", "ready", "shutdown")
#: Phase paths whose PCR 11 value is signed: the initrd opens the root, the running system and shutdown write the
#: anchor.
SIGNED_PHASE_PATHS = (
    "enter-initrd",
    "enter-initrd:leave-initrd:sysinit:ready",
    "enter-initrd:leave-initrd:sysinit:ready:shutdown",
)
#: systemd >= 261 extends this word into PCR 0-7, 9, 12-14 in the initrd, so that each has a value before and one after.
OS_SEPARATOR = b"os-separator"
FIRMWARE_SEPARATOR = bytes(4)
CALLING_BOOT_OPTION = b"Calling EFI Application from Boot Option"
TPM_ALG_SHA256 = 0x000B
TPM_CC_POLICY_PCR = 0x0000017F


def zero(bank: str = "sha256") -> bytes:
    """Return what the PCRs of a bank hold after a TPM reset."""
    return bytes(hashlib.new(bank).digest_size)


def extend(pcr: bytes, digest: bytes, bank: str = "sha256") -> bytes:
    """Return the PCR's value after one event digest was extended into it."""
    return hashlib.new(bank, pcr + digest).digest()


def extend_data(pcr: bytes, *events: bytes, bank: str = "sha256") -> bytes:
    """Return the PCR's value after the digests of these events were extended into it."""
    for event in events:
        pcr = extend(pcr, hashlib.new(bank, event).digest(), bank)
    return pcr


def with_os_separator(pcr: bytes, bank: str = "sha256") -> tuple[bytes, bytes]:
    """Return both legal values of a PCR that systemd-pcrosseparator closes: before and after it ran."""
    return pcr, extend_data(pcr, OS_SEPARATOR, bank=bank)


def phase_paths() -> tuple[str, ...]:
    """Return the phase paths of a boot from its first to its last."""
    return tuple(":".join(PHASES[: count + 1]) for count in range(len(PHASES)))


def pcr11(sections: Mapping[str, bytes], bank: str = "sha256") -> dict[str, bytes]:
    """Return the value of PCR 11 in each phase path for a UKI with these sections (one profile)."""
    value = zero(bank)
    for name in MEASURED_SECTIONS:
        if name in sections:
            value = extend_data(value, name.encode() + b"\0", sections[name], bank=bank)
    values = {}
    for path, phase in zip(phase_paths(), PHASES):
        value = extend_data(value, phase.encode(), bank=bank)
        values[path] = value
    return values


def measures_inner_kernel(stub: int, secure_boot: bool) -> bool:
    """Tell whether firmware measures the kernel in a UKI as well, whose stub is of this major version of systemd.

    From 258 on the stub starts the kernel itself. From 252 on, with Secure Boot, firmware is kept from checking it, and
    with that from measuring it.
    """
    return stub < 258 and not (stub >= 252 and secure_boot)


def pcr4(authenticode: Sequence[bytes], bank: str = "sha256") -> bytes:
    """Return PCR 4 after firmware called the first boot option and loaded these images, before the OS separator.

    That is the UKI, and the kernel in it where `measures_inner_kernel` says so.
    """
    value = extend_data(zero(bank), CALLING_BOOT_OPTION, FIRMWARE_SEPARATOR, bank=bank)
    for digest in authenticode:
        value = extend(value, digest, bank)
    return value


def pcr7(
    variables: Mapping[Variable, bytes],
    authority: Optional[Signature],
    bank: str = "sha256",
    secure_boot: bool = True,
) -> bytes:
    """Return PCR 7 before the OS separator.

    ``variables`` are contents of PK, KEK, db and dbx; one that is absent is measured as empty. ``authority`` is the
    entry of db that vouches for the image; without Secure Boot none is used.
    """
    value = zero(bank)
    for variable in Variable:
        data = bytes([secure_boot]) if variable is Variable.SECURE_BOOT else variables.get(variable, b"")
        value = extend_data(value, variable_data(variable, data), bank=bank)
    value = extend_data(value, FIRMWARE_SEPARATOR, bank=bank)
    if authority is None:
        return value
    return extend_data(value, variable_data(Variable.DB, authority.encoded), bank=bank)


def variable_data(variable: Variable, data: bytes) -> bytes:
    """Return UEFI_VARIABLE_DATA, the event of a measured variable (no NUL after the name)."""
    name = variable.value.encode("utf-16-le")
    return variable.guid.bytes_le + struct.pack("<QQ", len(variable.value), len(data)) + name + data
