# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Predict the PCRs of a machine that boots a unified kernel image.

Pure functions over bytes, SHA-256 bank only. The rules live here once: the sealing side writes their values into the
manifest, the verifying side compares quotes with them.

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


def extend(pcr: bytes, digest: bytes) -> bytes:
    """Return the PCR's value after one event digest was extended into it."""
    return hashlib.sha256(pcr + digest).digest()


def extend_data(pcr: bytes, *events: bytes) -> bytes:
    """Return the PCR's value after the digests of these events were extended into it."""
    for event in events:
        pcr = extend(pcr, hashlib.sha256(event).digest())
    return pcr


def with_os_separator(pcr: bytes) -> tuple[bytes, bytes]:
    """Return both legal values of a PCR that systemd-pcrosseparator closes: before and after it ran."""
    return pcr, extend_data(pcr, OS_SEPARATOR)


def phase_paths() -> tuple[str, ...]:
    """Return the phase paths of a boot from its first to its last."""
    return tuple(":".join(PHASES[: count + 1]) for count in range(len(PHASES)))


def pcr11(sections: Mapping[str, bytes]) -> dict[str, bytes]:
    """Return the value of PCR 11 in each phase path for a UKI with these sections (one profile)."""
    value = ZERO
    for name in MEASURED_SECTIONS:
        if name in sections:
            value = extend_data(value, name.encode() + b"\0", sections[name])
    values = {}
    for path, phase in zip(phase_paths(), PHASES):
        value = extend_data(value, phase.encode())
        values[path] = value
    return values


def policy_pcr(values: Mapping[int, bytes]) -> bytes:
    """Return the policy digest of TPM2_PolicyPCR over these SHA-256 PCRs (0-23) in a fresh session."""
    select = bytearray(3)
    for pcr in values:
        select[pcr // 8] |= 1 << pcr % 8
    selection = struct.pack(">IHB", 1, TPM_ALG_SHA256, len(select)) + bytes(select)
    digest = hashlib.sha256(b"".join(values[pcr] for pcr in sorted(values))).digest()
    return hashlib.sha256(ZERO + struct.pack(">I", TPM_CC_POLICY_PCR) + selection + digest).digest()


def pcr4(authenticode: Sequence[bytes]) -> bytes:
    """Return PCR 4 after firmware called the first boot option and loaded these images, before the OS separator.

    systemd-stub >= 258 starts the inner kernel itself, and with Secure Boot >= 252 does not have it measured either,
    so a UKI is the only image.
    """
    value = extend_data(ZERO, CALLING_BOOT_OPTION, FIRMWARE_SEPARATOR)
    for digest in authenticode:
        value = extend(value, digest)
    return value


def pcr7(variables: Mapping[Variable, bytes], authority: Optional[Signature]) -> bytes:
    """Return PCR 7 with Secure Boot on, before the OS separator.

    ``variables`` are contents of PK, KEK, db and dbx; one that is absent is measured as empty. ``authority`` is the
    entry of db that vouches for the image.
    """
    value = ZERO
    for variable in Variable:
        data = b"\x01" if variable is Variable.SECURE_BOOT else variables.get(variable, b"")
        value = extend_data(value, variable_data(variable, data))
    value = extend_data(value, FIRMWARE_SEPARATOR)
    return value if authority is None else extend_data(value, variable_data(Variable.DB, authority.encoded))


def variable_data(variable: Variable, data: bytes) -> bytes:
    """Return UEFI_VARIABLE_DATA, the event of a measured variable (no NUL after the name)."""
    name = variable.value.encode("utf-16-le")
    return variable.guid.bytes_le + struct.pack("<QQ", len(variable.value), len(data)) + name + data
