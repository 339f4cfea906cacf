# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Predicted PCRs equal what systemd-measure, firmware logs and signed policies say."""

from __future__ import annotations

import hashlib
import struct
import uuid
from pathlib import Path

import pytest
from ansible_collections.cvm.fde.plugins.module_utils.boot import pcr
from ansible_collections.cvm.fde.plugins.module_utils.boot.secure_boot import (
    X509,
    Signature,
    Variable,
    encode_list,
    parse_lists,
)
from ansible_collections.cvm.fde.plugins.module_utils.tpm.policy import pcr_policy
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal import event_log

EV_SEPARATOR = 0x4
EV_EFI_VARIABLE_AUTHORITY = 0x800000E0

#: What `systemd-measure calculate` (systemd 262) printed for these sections.
NAMES = (".linux", ".osrel", ".cmdline", ".initrd", ".uname", ".sbat")
SECTIONS = {name: f"content of {name[1:]}".encode() for name in NAMES}
MEASURED = {
    "enter-initrd": "cc27519bf9a5866fbda94d78f2427f5d0180cc34631f8eca9faf29342af51c44",
    "enter-initrd:leave-initrd": "51cccccb60e5179dd4e5af495c5ad1c7b31ee26fb91d7cdb48a610dabb280e83",
    "enter-initrd:leave-initrd:sysinit": "26f2eb7a82725dab30fa9f716a074713d9e85213a3b88f0dcb8ad11bb00f8411",
    "enter-initrd:leave-initrd:sysinit:ready": "916e8a5356ff00ae955bed8704656a527bedbb8924212c03dc935c21d9401927",
    "enter-initrd:leave-initrd:sysinit:ready:shutdown": (
        "6f0b29ac1f5047c8b9e010d81580930dc92bda5642199fc3653e529bc40489b8"
    ),
}
#: And `systemd-measure policy-digest` for the first of these phases.
POLICY = "cf2284d4be5b2366067045e5846b3758d677bf774ca027f6b18205cad92c07d5"


def test_pcr_11_is_what_systemd_measure_calculates_in_every_phase() -> None:
    assert {path: value.hex() for path, value in pcr.pcr11(SECTIONS).items()} == MEASURED


def test_the_order_of_sections_in_the_file_and_unmeasured_ones_do_not_matter() -> None:
    shuffled = dict(reversed(list(SECTIONS.items())))
    assert pcr.pcr11({**shuffled, ".pcrsig": b"signatures", ".text": b"code"}) == pcr.pcr11(SECTIONS)


def test_every_measured_section_matters() -> None:
    base = pcr.pcr11(SECTIONS)["enter-initrd"]
    others = {pcr.pcr11({**SECTIONS, name: b"changed"})["enter-initrd"] for name in pcr.MEASURED_SECTIONS}
    assert len(others | {base}) == len(pcr.MEASURED_SECTIONS) + 1


def test_the_policy_is_the_one_that_systemd_signs() -> None:
    assert pcr_policy(11, bytes.fromhex(MEASURED["enter-initrd"])).hex() == POLICY


def test_signed_phases_are_phases_of_a_boot() -> None:
    assert set(pcr.SIGNED_PHASE_PATHS) <= set(pcr.phase_paths())


def test_the_event_digests_are_those_of_the_tcg_profile() -> None:
    assert hashlib.sha256(pcr.CALLING_BOOT_OPTION).hexdigest().startswith("3d6772b4")
    assert hashlib.sha256(pcr.FIRMWARE_SEPARATOR).hexdigest().startswith("df3f6198")
    assert hashlib.sha256(pcr.OS_SEPARATOR).hexdigest().startswith("ff5b9d73")


def test_pcr_4_is_boot_option_separator_and_image() -> None:
    image = bytes(range(32))
    value = bytes(32)
    for digest in (
        hashlib.sha256(b"Calling EFI Application from Boot Option").digest(),
        hashlib.sha256(bytes(4)).digest(),
        image,
    ):
        value = hashlib.sha256(value + digest).digest()
    assert pcr.pcr4([image]) == value


def test_the_os_separator_gives_a_second_value() -> None:
    before, after = pcr.with_os_separator(pcr.ZERO)
    assert before == pcr.ZERO
    assert after == hashlib.sha256(bytes(32) + hashlib.sha256(b"os-separator").digest()).digest()


def test_variables_are_measured_with_their_name_space_and_absent_ones_as_empty() -> None:
    event = pcr.variable_data(Variable.DB, b"data")
    assert event[:16] == uuid.UUID("d719b2cb-3d3a-4596-a3bc-dad00e67656f").bytes_le
    assert event[16:] == bytes([2] + [0] * 7 + [4] + [0] * 7) + "db".encode("utf-16-le") + b"data"
    assert pcr.variable_data(Variable.PK, b"")[:16] == uuid.UUID("8be4df61-93ca-11d2-aa0d-00e098032b8c").bytes_le
    empty = dict.fromkeys((Variable.PK, Variable.DBX), b"")
    assert pcr.pcr7({}, None) == pcr.pcr7(empty, None)


def test_pcr_7_depends_on_every_variable_and_on_the_authority() -> None:
    entry = Signature(X509, uuid.UUID(int=1), b"certificate")
    base = {variable: encode_list(entry) for variable in (Variable.PK, Variable.KEK, Variable.DB)}
    values = {pcr.pcr7(base, entry), pcr.pcr7(base, None)}
    values |= {pcr.pcr7({**base, variable: b"x"}, entry) for variable in list(Variable)[1:]}
    assert len(values) == 6


def payload(event: bytes) -> tuple[str, bytes]:
    """Return name and data of UEFI_VARIABLE_DATA."""
    characters, size = struct.unpack_from("<QQ", event, 16)
    end = 32 + 2 * characters
    return event[32:end].decode("utf-16-le"), event[end : end + size]


@pytest.mark.parametrize("name", ["cos-85-amd-sev.bin", "keylime-binary_bios_measurements-secureboot"])
def test_pcr_7_is_what_real_firmware_with_secure_boot_measured_up_to_the_first_authority(
    vectors: Path, name: str
) -> None:
    log = event_log.parse((vectors / "eventlogs" / name).read_bytes())
    assert log is not None
    events = [event for event in log.events if event.pcr == 7]
    first = next(index for index, event in enumerate(events) if event.kind == EV_EFI_VARIABLE_AUTHORITY)
    value = pcr.ZERO
    for event in events[: first + 1]:
        value = pcr.extend(value, event.digests["sha256"])
    variables = dict(payload(event.data) for event in events[:first] if event.kind != EV_SEPARATOR)
    assert variables.pop("SecureBoot") == b"\x01"
    contents = {Variable(variable): data for variable, data in variables.items()}
    vouching = payload(events[first].data)[1]
    (entry,) = (entry for entry in parse_lists(contents[Variable.DB], "db") if entry.encoded == vouching)
    assert pcr.pcr7(contents, entry) == value
