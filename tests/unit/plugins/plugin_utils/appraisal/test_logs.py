# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Firmware logs of real machines, and logs that no honest firmware writes."""

from __future__ import annotations

import hashlib
import json
import struct
import tracemalloc
from pathlib import Path
from typing import Any, Optional

import pytest
import yaml
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal import event_log, secure_boot, userspace_log
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.errors import AppraisalError
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.event_log import FirmwareLog, parse, parse_confidential
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.replay import LogCache, replay
from hypothesis import given, settings
from hypothesis import strategies as st

REPLAYING = (
    "glinux-alex.bin",
    "ubuntu-1804-amd-sev.bin",
    "cos-85-amd-sev.bin",
    "ubuntu-2104-no-secure-boot.bin",
    "keylime-binary_bios_measurements-secureboot",
    "crypto_agile_eventlog",
    "tpm2tools-event-arch-linux.bin",
    "tpm2tools-event-sd-boot-fedora37.bin",
    "tpm2tools-event-uefi-sha1-log.bin",
    "debian-10.bin",
    "ebs_event_missing_eventlog",
)
BROKEN = {
    "ccel-dupe-separator.bin": "second-separator",
    "short_no_action_eventlog": "malformed",
    "keylime-binary_bios_measurements-bogus": "malformed",
    "tpm2tools-specid-vendordata.bin": "malformed",
}
EMPTY = "keylime-binary_bios_measurements-empty"
COMPARED = ("arch-linux", "sd-boot-fedora37", "uefi-sha1-log")


def load(vectors: Path, name: str) -> bytes:
    return (vectors / "eventlogs" / name).read_bytes()


def some(log: Optional[FirmwareLog]) -> FirmwareLog:
    assert log is not None
    return log


def test_every_captured_log_is_known_here(vectors: Path) -> None:
    names = {path.name for path in (vectors / "eventlogs").iterdir() if path.suffix != ".yaml"}
    assert names == {*REPLAYING, *BROKEN, EMPTY}


@pytest.mark.parametrize("name", REPLAYING)
def test_the_log_of_a_real_machine_is_read_and_replays_in_all_its_banks(vectors: Path, name: str) -> None:
    log = some(parse(load(vectors, name)))
    for bank in log.banks:
        assert all(len(value) == hashlib.new(bank).digest_size for value in log.values(bank).values())


@pytest.mark.parametrize("name", COMPARED)
def test_the_replay_equals_that_of_tpm2_eventlog(vectors: Path, name: str) -> None:
    expected = list(yaml.safe_load_all(load(vectors, f"tpm2tools-event-{name}.yaml")))[-1]["pcrs"]
    log = some(parse(load(vectors, f"tpm2tools-event-{name}.bin")))
    assert set(log.banks) == set(expected)
    for bank, pcrs in expected.items():
        ours = {pcr: int.from_bytes(value, "big") for pcr, value in log.values(bank).items()}
        assert ours == {int(pcr): value for pcr, value in pcrs.items()}


@pytest.mark.parametrize(("name", "code"), BROKEN.items())
def test_a_log_that_is_broken_or_dishonest_is_refused(vectors: Path, name: str, code: str) -> None:
    with pytest.raises(AppraisalError) as refused:
        parse(load(vectors, name))
    assert refused.value.code == code


def test_no_bytes_are_no_log(vectors: Path) -> None:
    assert parse(load(vectors, EMPTY)) is None
    assert LogCache().replay(b"", b"", "sha256") is None


def test_a_log_of_sha1_alone_does_not_serve_a_sha256_policy(vectors: Path) -> None:
    with pytest.raises(AppraisalError, match="bank-not-logged"):
        LogCache().replay(load(vectors, "debian-10.bin"), b"", "sha256")


def test_a_log_without_the_end_of_the_boot_services_has_no_boundary(vectors: Path) -> None:
    for name in ("ebs_event_missing_eventlog", "crypto_agile_eventlog"):
        with pytest.raises(AppraisalError, match="no-exit-boot-services"):
            _ = some(parse(load(vectors, name))).boundary


def mended(vectors: Path) -> bytes:
    """Return the captured log of a confidential VM with its second separator in the register that lacks one."""
    raw = load(vectors, "ccel-dupe-separator.bin")
    place = raw.index(struct.pack("<III", 1, 4, 1), raw.index(b"Calling EFI Application"))
    return raw[:place] + struct.pack("<I", 2) + raw[place + 4 :]


def test_the_captured_log_of_a_confidential_vm_has_a_separator_twice(vectors: Path) -> None:
    with pytest.raises(AppraisalError, match="second-separator"):
        parse_confidential(load(vectors, "ccel-dupe-separator.bin"))


def test_the_boundary_of_a_confidential_vms_log_is_in_its_own_register(vectors: Path) -> None:
    raw = mended(vectors)
    for padded in (raw, raw + b"\xff" * (65536 - len(raw)), raw + bytes(65536 - len(raw))):
        log = some(parse_confidential(padded))
        assert log.confidential
        assert log.boundary == 42
    with pytest.raises(AppraisalError, match="malformed"):
        parse_confidential(raw + b"\xff" * 64 + b"\0")


def test_the_log_of_a_confidential_vm_says_nothing_about_a_tpm(vectors: Path) -> None:
    """Its registers are others: what stands for the end of the firmware there is a PCR of option ROMs in a TPM."""
    for raw in (mended(vectors), header(pcr=1) + SEPARATOR + event(2, 0x80000007, b"Exit Boot Services Invocation")):
        assert some(parse_confidential(raw)).confidential
        with pytest.raises(AppraisalError, match="not-a-tpm-log"):
            parse(raw)
        with pytest.raises(AppraisalError, match="not-a-tpm-log"):
            LogCache().replay(raw, b"", "sha256")


@pytest.mark.parametrize("pcr", [2, 5, 24, 0xFFFFFFFF])
def test_a_header_of_another_register_is_of_no_log(pcr: int) -> None:
    for read in (parse, parse_confidential):
        with pytest.raises(AppraisalError, match="malformed"):
            read(header(pcr=pcr) + SEPARATOR)


def test_the_log_of_a_tpm_is_not_that_of_a_confidential_vm(vectors: Path) -> None:
    for name in ("glinux-alex.bin", "debian-10.bin"):
        with pytest.raises(AppraisalError, match="not-a-confidential-log"):
            parse_confidential(load(vectors, name))
    assert parse_confidential(b"") is None


def test_startup_locality_is_where_pcr_0_begins(vectors: Path) -> None:
    assert some(parse(load(vectors, "glinux-alex.bin"))).startup_locality == 3
    assert event_log.initial_value("sha256", 0, 3) == bytes(31) + b"\3"
    assert event_log.initial_value("sha1", 17) == b"\xff" * 20


def test_secure_boot_is_read_from_bound_events(vectors: Path) -> None:
    for name, enabled in (
        ("keylime-binary_bios_measurements-secureboot", True),
        ("ubuntu-2104-no-secure-boot.bin", False),
    ):
        found = secure_boot.judge(some(parse(load(vectors, name))), "sha256")
        assert found.enabled is enabled
        assert bool(found.authorities) is enabled


def header(
    banks: tuple[tuple[int, int], ...] = ((0xB, 32),), vendor: bytes = b"", count: Optional[int] = None, pcr: int = 0
) -> bytes:
    body = b"Spec ID Event03\0" + struct.pack("<IBBBBI", 0, 0, 2, 0, 2, len(banks) if count is None else count)
    body += b"".join(struct.pack("<HH", *bank) for bank in banks) + struct.pack("<B", len(vendor)) + vendor
    return struct.pack("<II20sI", pcr, 3, b"", len(body)) + body


def event(
    pcr: int, kind: int, data: bytes, digest: Optional[bytes] = None, algorithm: int = 0xB, count: int = 1
) -> bytes:
    found = struct.pack("<III", pcr, kind, count)
    found += struct.pack("<H", algorithm) + (digest or hashlib.sha256(data).digest())
    return found + struct.pack("<I", len(data)) + data


SEPARATOR = event(0, 4, bytes(4))
LOCALITY = event(0, 3, b"StartupLocality\0\x03", bytes(32))
BAD_LOGS = {
    "a separator twice": (header() + SEPARATOR + SEPARATOR, "second-separator"),
    "a locality twice": (header() + LOCALITY + LOCALITY + SEPARATOR, "second-locality"),
    "a locality after PCR 0 was used": (header() + SEPARATOR + LOCALITY, "late-locality"),
    "a locality of 7": (header() + event(0, 3, b"StartupLocality\0\x07") + SEPARATOR, "malformed"),
    "a locality of PCR 1": (header() + event(1, 3, b"StartupLocality\0\x03") + SEPARATOR, "malformed"),
    "a PCR that does not exist": (header() + event(24, 1, b""), "malformed"),
    "a digest that was not declared": (header() + event(0, 1, b"", bytes(32), algorithm=0xC), "malformed"),
    "no digest": (header() + struct.pack("<IIII", 0, 1, 0, 0), "malformed"),
    "as many digests as 32 bits can count": (header() + event(0, 1, b"", count=0xFFFFFFFF), "malformed"),
    "an event that says it is 4 GiB long": (
        header() + struct.pack("<IIIH", 0, 1, 1, 0xB) + bytes(32) + struct.pack("<I", 0xFFFFFFFF),
        "malformed",
    ),
    "no algorithm": (header(()) + SEPARATOR, "malformed"),
    "an algorithm twice": (header(((0xB, 32), (0xB, 32))), "malformed"),
    "SHA-256 of 20 bytes": (header(((0xB, 20),)), "malformed"),
    "an algorithm without a size": (header(((0xB, 32), (0x99, 0))), "malformed"),
    "more algorithms than it lists": (header(count=2), "malformed"),
    "as many algorithms as 32 bits can count": (header(count=0xFFFFFFFF), "malformed"),
    "nothing but a header": (header(), "malformed"),
    "too many events": (header() + event(1, 1, b"") * 9000, "malformed"),
    "too many bytes": (bytes(event_log.LOG_LIMIT + 1), "malformed"),
}


@pytest.mark.parametrize("name", BAD_LOGS)
def test_a_log_that_no_firmware_writes_is_refused(name: str) -> None:
    raw, code = BAD_LOGS[name]
    with pytest.raises(AppraisalError) as refused:
        parse(raw)
    assert refused.value.code == code


def test_a_bank_that_nobody_knows_is_skipped_by_its_declared_size() -> None:
    two = struct.pack("<III", 0, 1, 2) + struct.pack("<H", 0x99) + bytes(5) + struct.pack("<H", 0xB) + bytes(32)
    log = some(parse(header(((0xB, 32), (0x99, 5)), vendor=b"\xde\xad") + two + struct.pack("<I", 0)))
    assert log.banks == ("sha256",)
    assert log.values("sha256")[0] == hashlib.sha256(bytes(64)).digest()


def test_an_event_that_is_no_action_extends_nothing() -> None:
    log = some(parse(header() + event(0, 3, b"SP800-155 Event", b"\1" * 32) + event(0xFFFFFFFF, 3, b"") + SEPARATOR))
    assert [found.kind for found in log.events] == [4]


def variable(owner: bytes, name: str, data: bytes) -> bytes:
    return owner + struct.pack("<QQ", len(name), len(data)) + name.encode("utf-16-le") + data


GLOBAL = bytes.fromhex("61dfe48bca93d211aa0d00e098032b8c")
SECURITY = bytes.fromhex("cbb219d73a3d9645a3bcdad00e67656f")
VARIABLES = [
    event(7, 0x80000001, variable(owner, name, data))
    for owner, name, data in (
        (GLOBAL, "SecureBoot", b"\1"),
        (GLOBAL, "PK", b""),
        (GLOBAL, "KEK", b""),
        (SECURITY, "db", b""),
        (SECURITY, "dbx", b""),
    )
]
END = event(7, 4, bytes(4))
EXIT = event(5, 0x80000007, b"Exit Boot Services Invocation")
OFF = event(7, 0x80000001, variable(GLOBAL, "SecureBoot", b"\0"))
DISHONEST = {
    "no separator": [*VARIABLES, EXIT],
    "a separator of an error": [*VARIABLES, event(7, 4, b"\1\0\0\0"), EXIT],
    "another order": [*VARIABLES[::-1], END, EXIT],
    "no dbx": [*VARIABLES[:-1], END, EXIT],
    "said twice": [*VARIABLES, OFF, END, EXIT],
    "said after the separator": [*VARIABLES[1:], END, VARIABLES[0], EXIT],
    "something else first": [event(7, 0x80000007, b"UEFI Debug Mode"), *VARIABLES, END, EXIT],
    "a variable of another owner": [
        event(7, 0x80000001, variable(SECURITY, "SecureBoot", b"\1")),
        *VARIABLES[1:],
        END,
        EXIT,
    ],
    "a digest of something else": [
        event(7, 0x80000001, variable(GLOBAL, "SecureBoot", b"\1"), bytes(32)),
        *VARIABLES[1:],
        END,
        EXIT,
    ],
    "a length that lies": [
        event(7, 0x80000001, variable(GLOBAL, "SecureBoot", b"\1") + b"\0"),
        *VARIABLES[1:],
        END,
        EXIT,
    ],
    "a name of 2^63 characters": [
        event(7, 0x80000001, GLOBAL + struct.pack("<QQ", 1 << 63, 1) + b"\1"),
        *VARIABLES[1:],
        END,
        EXIT,
    ],
    "after the system took over": [EXIT, *VARIABLES, END],
    "only before an end that PCR 4 claims": [*VARIABLES, END, event(4, 0x80000007, b"Exit Boot Services Invocation")],
}


@pytest.mark.parametrize("name", DISHONEST)
def test_a_pcr_7_of_another_form_says_nothing_about_secure_boot(name: str) -> None:
    with pytest.raises(AppraisalError):
        secure_boot.judge(some(parse(header() + b"".join(DISHONEST[name]))), "sha256")


OWNER = bytes(range(16))
#: DER of a length that its first bytes state, as every certificate is.
CERTIFICATE = b"\x30\x82\x00\x04abcd"
SHIM = bytes.fromhex("50ab5d6046e00043abb63dd810dd8b23")


def booted(*authorities: bytes) -> secure_boot.SecureBoot:
    """Judge a log in which Secure Boot is on and these authorities were used."""
    return secure_boot.judge(some(parse(header() + b"".join([*VARIABLES, END, *authorities, EXIT]))), "sha256")


def authority(owner: bytes, name: str, data: bytes, behind: bytes = b"", logged: bytes = b"") -> bytes:
    """Return an event of an authority; what is ``behind`` was measured too, what is ``logged`` was not."""
    measured = variable(owner, name, data) + behind
    return event(7, 0x800000E0, measured + logged, hashlib.sha256(measured).digest())


def digest(*certificates: bytes) -> frozenset[str]:
    return frozenset(hashlib.sha256(one).hexdigest() for one in certificates)


def test_every_certificate_that_admitted_something_is_an_authority() -> None:
    used = [authority(SECURITY, "db", OWNER + CERTIFICATE)]
    assert booted(*used) == secure_boot.SecureBoot(True, digest(CERTIFICATE))
    for owner, name in ((SECURITY, "vendor_db"), (SHIM, "MokList"), (SHIM, "Shim"), (GLOBAL, "db"), (SECURITY, "dbt")):
        used = [authority(SECURITY, "db", OWNER + CERTIFICATE), authority(owner, name, OWNER + b"other")]
        assert booted(*used).authorities == digest(CERTIFICATE, b"other"), name


def test_what_shim_says_of_its_own_state_is_no_authority() -> None:
    used = [authority(SHIM, name, b"sbat,1,2021030218\n") for name in ("SbatLevel", "MokListTrusted")]
    assert booted(*used).authorities == frozenset()
    # Under another owner anyone may have said it.
    assert booted(authority(SECURITY, "SbatLevel", b"sbat,1,2021030218\n")).authorities


def test_a_certificate_without_its_owner_is_the_same_authority() -> None:
    """Shim measures the certificate alone, firmware the owner's GUID before it."""
    used = [authority(SECURITY, "db", OWNER + CERTIFICATE), authority(SECURITY, "db", CERTIFICATE)]
    assert booted(*used).authorities == digest(CERTIFICATE)


def test_the_authorities_of_old_shim_are_believed(vectors: Path) -> None:
    """Its events have one byte more than was measured, and five zeroes that were."""
    assert booted(authority(SECURITY, "db", CERTIFICATE, bytes(5), b"\xaf")).authorities == digest(CERTIFICATE)
    assert booted(authority(SECURITY, "db", CERTIFICATE, bytes(5))).authorities == digest(CERTIFICATE)
    found = secure_boot.judge(some(parse(load(vectors, "cos-85-amd-sev.bin"))), "sha256")
    assert found.enabled
    # Firmware's event and shim's two are of one certificate.
    assert len(found.authorities) == 1


@pytest.mark.parametrize(
    ("behind", "logged"),
    [
        (b"", b"\xaf"),
        (bytes(5), b"\xaf\xaf"),
        (bytes(4), b"\xaf"),
        (bytes(6), b"\xaf"),
        (bytes(4) + b"\1", b"\xaf"),
        (bytes(4) + b"\1", b""),
        (bytes(6), b""),
    ],
)
def test_what_is_only_nearly_an_event_of_old_shim_is_not_believed(behind: bytes, logged: bytes) -> None:
    with pytest.raises(AppraisalError):
        booted(authority(SECURITY, "db", CERTIFICATE, behind, logged))


def test_the_rule_for_old_shim_is_for_authorities_only() -> None:
    """A byte behind a variable of the firmware's configuration was never measured by anybody."""
    measured = variable(GLOBAL, "SecureBoot", b"\1")
    longer = event(7, 0x80000001, measured + b"\xaf", hashlib.sha256(measured).digest())
    with pytest.raises(AppraisalError, match="unbound-event"):
        secure_boot.judge(some(parse(header() + b"".join([longer, *VARIABLES[1:], END, EXIT]))), "sha256")


def test_logs_are_remembered_by_their_digest_up_to_a_limit(vectors: Path) -> None:
    raw = load(vectors, "glinux-alex.bin")
    cache = LogCache(limit=3)
    first = cache.replay(raw, b"", "sha256")
    assert cache.replay(raw, b"", "sha256") is first
    assert cache.replay(raw, b"", "sha1") is not first
    assert cache.replay(raw, b"", "sha256") is not first


def test_what_is_remembered_is_bounded_by_its_size() -> None:
    """Whether logs have few large events or many small ones, of many machines no more are kept than fit."""
    limit = 1_000_000
    for body in (event(1, 0xD, bytes(90_000)), event(1, 0xD, b"") * 800):
        cache = LogCache(size_limit=limit)
        tracemalloc.start()
        try:
            for turn in range(60):
                cache.replay(header() + SEPARATOR + body + event(2, 0xD, struct.pack("<I", turn)), b"", "sha256")
            used, _peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert limit / 4 < used < limit


def test_what_is_asked_for_often_is_remembered_longest() -> None:
    cache = LogCache(size_limit=20_000)
    often, rarely = (header() + SEPARATOR + event(1, 0xD, bytes([number]) * 100) for number in range(2))
    kept, gone = cache.firmware(often), cache.firmware(rarely)
    for turn in range(40):
        assert cache.firmware(often) is kept
        cache.firmware(header() + SEPARATOR + event(2, 0xD, struct.pack("<I", turn)))
    assert cache.firmware(often) is kept
    assert cache.firmware(rarely) is not gone


def test_a_log_that_is_larger_than_the_cache_is_read_and_not_remembered() -> None:
    cache = LogCache(size_limit=20_000)
    small, large = (header() + SEPARATOR + event(1, 0xD, bytes(size)) for size in (1, 20_000))
    first = cache.firmware(small)
    assert some(cache.firmware(large)) == some(parse(large))
    assert cache.firmware(large) is not cache.firmware(large)
    assert cache.firmware(small) is first


def test_a_replay_that_is_remembered_is_that_of_its_logs() -> None:
    cache = LogCache()
    for data in (b"one", b"other", b"one"):
        raw = header() + event(1, 0xD, data)
        found = cache.replay(raw, text(record()), "sha256")
        assert found is not None
        assert found.values == replay(some(parse(raw)), userspace_log.parse(text(record())), "sha256").values


@settings(max_examples=300)
@given(st.binary(max_size=400), st.booleans())
def test_bytes_are_read_or_refused_and_nothing_else_happens(data: bytes, agile: bool) -> None:
    check((header(((0xB, 32), (0x4, 20))) if agile else b"") + data)


@settings(max_examples=200)
@given(st.data())
def test_a_mutated_log_is_read_or_refused(data: Any) -> None:
    raw = bytearray(header() + LOCALITY + b"".join(VARIABLES) + SEPARATOR + END + EXIT)
    for _change in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    check(bytes(raw))


def check(raw: bytes) -> None:
    try:
        log = parse(raw)
        if log is not None:
            for bank in log.banks:
                log.values(bank)
                secure_boot.judge(log, bank)
    except AppraisalError:
        return


# --- systemd's log
# -----------------------------------------------------------------------------------------------------


def record(**changes: Any) -> dict[str, Any]:
    return {
        "pcr": 11,
        "digests": [{"hashAlg": "sha256", "digest": hashlib.sha256(b"ready").hexdigest()}],
        "content_type": "systemd",
        "content": {"eventType": "phase", "string": "ready"},
        **changes,
    }


def text(*records: Any) -> bytes:
    return b"".join(b"\x1e" + json.dumps(found).encode() + b"\n" for found in records)


def test_systemds_log_continues_the_firmwares() -> None:
    log = userspace_log.parse(text(record(), record(pcr=15)))
    assert log is not None
    firmware = some(parse(header() + event(11, 13, b".linux\0")))
    replayed = replay(firmware, log, "sha256").values
    stub = hashlib.sha256(bytes(32) + hashlib.sha256(b".linux\0").digest()).digest()
    phase = hashlib.sha256(b"ready").digest()
    assert replayed[11] == hashlib.sha256(stub + phase).digest()
    assert replayed[15] == hashlib.sha256(bytes(32) + phase).digest()
    assert replayed[17] == b"\xff" * 32


def test_digests_of_banks_that_nobody_judges_by_are_left_out() -> None:
    """A TPM with a bank of SM3 or SHA-3 gets records with one digest more, which say nothing about the others."""
    known = record()["digests"]
    for more in ({"hashAlg": "sm3_256", "digest": "00" * 32}, {"hashAlg": "sha3_512", "digest": "00" * 64}):
        log = userspace_log.parse(text(record(digests=[more, *known])))
        assert log == userspace_log.parse(text(record()))
    alone = userspace_log.parse(text(record(digests=[{"hashAlg": "sm3_256", "digest": "00" * 32}])))
    with pytest.raises(AppraisalError, match="bank-not-logged"):
        replay(some(parse(header() + SEPARATOR)), alone, "sha256")


def test_records_of_nv_indexes_are_left_out() -> None:
    other = record()
    other["nv_index"] = other.pop("pcr") + 0x01D10200
    log = userspace_log.parse(text(other, record()))
    assert log is not None
    assert [found.pcr for found in log.records] == [11]


def test_what_was_extended_into_a_pcr_is_found_whatever_is_said_of_it() -> None:
    log = userspace_log.parse(text(record(pcr=15), record(pcr=15, content={"eventType": "other"}), record(pcr=14)))
    assert log is not None
    assert log.digests(15, "sha256") == (hashlib.sha256(b"ready").digest(),) * 2
    assert log.digests(13, "sha256") == ()


def test_a_volume_key_is_found_by_name_uuid_and_register() -> None:
    def key(**changes: Any) -> dict[str, Any]:
        content = {"eventType": "volume-key", "string": "cryptsetup:fde-crypt:u"}
        return record(pcr=15, content=content) | changes

    log = userspace_log.parse(
        text(key(), key(pcr=14), key(content={"eventType": "phase", "string": "cryptsetup:fde-crypt:u"}))
    )
    assert log is not None
    assert log.volume_keys("fde-crypt", "u", "sha256", 15) == (hashlib.sha256(b"ready").digest(),)
    assert log.volume_keys("fde-crypt", "v", "sha256", 15) == ()


def test_no_bytes_are_no_log_of_systemd() -> None:
    assert userspace_log.parse(b"") is None


BAD_RECORDS: dict[str, bytes] = {
    "no separator": json.dumps(record()).encode() + b"\n",
    "no end": b"\x1e" + json.dumps(record()).encode(),
    "not JSON": b"\x1e{\n",
    "not UTF-8": b'\x1e{"a":"\xff"}\n',
    "half a surrogate pair": b'\x1e{"pcr":11,"digests":[],"content":{"string":"\\ud800"}}\n',
    "a name twice": b'\x1e{"pcr":11,"pcr":12}\n',
    "deep": b"\x1e" + b"[" * 60000 + b"\n",
    "deep and closed": b"\x1e" + b"[" * 12 + b"]" * 12 + b"\n",
    "a long number": b'\x1e{"pcr":' + b"1" * 60000 + b"}\n",
    "not a number": b'\x1e{"pcr":NaN}\n',
    "a list": text([]),
    "a PCR of text": text(record(pcr="11")),
    "a PCR that is true": text(record(pcr=True)),
    "a PCR of 24": text(record(pcr=24)),
    "both a PCR and an NV index": text(record(nv_index=1)),
    "no digests": text(record(digests=[])),
    "digests of text": text(record(digests="sha256")),
    "a digest that is too short": text(record(digests=[{"hashAlg": "sha256", "digest": "00"}])),
    "a digest in upper case": text(record(digests=[{"hashAlg": "sha256", "digest": "AA" * 32}])),
    "a digest of an algorithm that has no name": text(record(digests=[{"hashAlg": "", "digest": "00" * 16}])),
    "a digest of an algorithm that is a path": text(record(digests=[{"hashAlg": "../sm3", "digest": "00" * 16}])),
    "a digest of an unknown algorithm, half a byte": text(record(digests=[{"hashAlg": "sm3_256", "digest": "0"}])),
    "a digest of an unknown algorithm that is too long": text(
        record(digests=[{"hashAlg": "sm3_256", "digest": "00" * 65}])
    ),
    "a digest of an unknown algorithm twice": text(record(digests=[{"hashAlg": "sm3_256", "digest": "00" * 32}] * 2)),
    "a digest twice": text(record(digests=[{"hashAlg": "sha256", "digest": "00" * 32}] * 2)),
    "content of text": text(record(content="phase")),
    "a string that is none": text(record(content={"string": 1})),
    "too many records": text(record()) * 9000,
    "a record that is too long": text(record(more="x" * 70000)),
    "too long": b"\x1e" * (userspace_log.LOG_LIMIT + 1),
}


@pytest.mark.parametrize("name", BAD_RECORDS)
def test_a_log_that_systemd_does_not_write_is_refused(name: str) -> None:
    with pytest.raises(AppraisalError):
        userspace_log.parse(BAD_RECORDS[name])


def test_a_record_without_the_bank_cannot_be_replayed() -> None:
    log = userspace_log.parse(text(record(digests=[{"hashAlg": "sha1", "digest": "00" * 20}])))
    with pytest.raises(AppraisalError, match="bank-not-logged"):
        replay(some(parse(header() + SEPARATOR)), log, "sha256")


def test_a_log_of_systemd_cut_at_any_byte_is_refused_or_shorter() -> None:
    raw = text(record(), record(pcr=12), record(pcr=15))
    for length in range(1, len(raw)):
        try:
            log = userspace_log.parse(raw[:length])
        except AppraisalError:
            continue
        assert log is not None and len(log.records) < 3


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=300)
@given(st.sampled_from(["pcr", "nv_index", "digests", "content"]), json_values)
def test_a_record_with_any_value_is_read_or_refused(name: str, value: Any) -> None:
    try:
        log = userspace_log.parse(text(record(**{name: value})))
    except AppraisalError:
        return
    assert log is not None
    assert all(0 <= found.pcr < 24 for found in log.records)


class Watched(bytes):
    """Bytes that count how many of them were looked at."""

    looked = 0

    def __getitem__(self, key: Any) -> Any:
        found = super().__getitem__(key)
        self.looked += len(found) if isinstance(found, bytes) else 1
        return found

    def rstrip(self, *what: Any) -> bytes:
        self.looked += len(self)
        return super().rstrip(*what)


def test_the_end_of_a_padded_log_is_not_looked_for_before_each_event() -> None:
    digest = bytes([1]) * 32
    raw = header() + event(0, 8, b"", digest) * (event_log.EVENT_LIMIT - 2)
    zeroes = event_log.LOG_LIMIT - len(raw) - len(event(0, 8, b"", digest))
    watched = Watched(raw + event(0, 8, bytes(zeroes), digest))
    log = some(event_log.parse(watched))
    assert len(log.events) == event_log.EVENT_LIMIT - 1
    # Once for the events themselves, and once for each byte that a buffer may be filled with.
    assert len(watched) == event_log.LOG_LIMIT
    assert len(watched) <= watched.looked <= 3 * len(watched)
