# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Our parsers beside others: what tpm2-pytss reads in every captured structure, and tpm2_eventlog in every log.

The others may be more lenient: what we refuse is tested elsewhere. Where both read, they must read the same.
"""

from __future__ import annotations

import hashlib
import shutil
import socket
import subprocess
import time
from pathlib import Path
from typing import Any, Iterator

import pytest
import yaml
from ansible_collections.cvm.fde.plugins.module_utils.tpm.esys import tss
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal import event_log
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.errors import AppraisalError
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.quote import verify_quote
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.structures import (
    HASH_IDS,
    parse_creation,
    parse_public,
    parse_quote,
    parse_signature,
    qualified_name,
    verify_by,
)
from ansible_collections.cvm.fde.tests.unit.plugins.plugin_utils.appraisal.captured import SAMPLES
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytss = pytest.mark.skipif(tss is None, reason="tpm2-pytss is not installed")


def quotes(vectors: Path) -> Iterator[tuple[str, bytes]]:
    """Yield the TPMS_ATTEST of every captured quote, by where it was captured."""
    for name, make in SAMPLES.items():
        yield name, make(vectors).attest


def selection_of(theirs: Any) -> dict[str, frozenset[int]]:
    names = {number: name for name, number in HASH_IDS.items()}
    found = {}
    for bank in theirs.attested.quote.pcrSelect:
        bits = int.from_bytes(bytes(bank.pcrSelect)[: bank.sizeofSelect], "little")
        found[names[int(bank.hash)]] = frozenset(pcr for pcr in range(24) if bits >> pcr & 1)
    return found


@pytss
def test_every_captured_quote_reads_as_tpm2_pytss_reads_it(vectors: Path) -> None:
    for name, raw in quotes(vectors):
        ours, (theirs, size) = parse_quote(raw), tss.TPMS_ATTEST.unmarshal(raw)
        assert size == len(raw), name
        assert ours.qualified_signer == bytes(theirs.qualifiedSigner), name
        assert ours.extra_data == bytes(theirs.extraData), name
        assert ours.firmware_version == int(theirs.firmwareVersion), name
        clock = theirs.clockInfo
        assert (ours.clock.clock, ours.clock.reset_count) == (int(clock.clock), int(clock.resetCount)), name
        assert (ours.clock.restart_count, ours.clock.safe) == (int(clock.restartCount), bool(clock.safe)), name
        assert ours.pcr_digest == bytes(theirs.attested.quote.pcrDigest), name
        assert ours.selection == selection_of(theirs), name


@pytss
def test_every_captured_public_area_has_the_name_that_tpm2_pytss_computes(vectors: Path) -> None:
    for name in ("ak.pub", "ek.pub"):
        raw = (vectors / "quotes/keylime" / name).read_bytes()
        ours, (theirs, _size) = parse_public(raw[2:]), tss.TPM2B_PUBLIC.unmarshal(raw)
        assert ours.name == bytes(theirs.get_name())
        assert ours.attributes == int(theirs.publicArea.objectAttributes)
        assert ours.unique[0] == bytes(theirs.publicArea.unique.rsa)
    assert (
        parse_public((vectors / "quotes/keylime/ak.pub").read_bytes()[2:]).name
        == (vectors / "quotes/keylime/ak.name").read_bytes()
    )


@pytss
def test_a_captured_signature_reads_as_tpm2_pytss_reads_it(vectors: Path) -> None:
    raw = (vectors / "quotes/keylime/quotesig.out").read_bytes()
    ours, (theirs, _size) = parse_signature(raw), tss.TPMT_SIGNATURE.unmarshal(raw)
    assert (ours.scheme.algorithm, ours.value) == (int(theirs.sigAlg), bytes(theirs.signature.rsassa.sig))


#: Schemes, name algorithms and kinds of key that a TPM may sign by, not only those of the clouds.
KINDS = [
    ("rsa2048:rsassa-sha256:null", "sha256"),
    ("rsa2048:rsapss-sha256:null", "sha256"),
    ("rsa2048:rsapss-sha384:null", "sha384"),
    ("rsa3072:rsassa-sha384:null", "sha384"),
    ("ecc256:ecdsa-sha256:null", "sha256"),
    ("ecc384:ecdsa-sha384:null", "sha384"),
    ("ecc384:ecdsa-sha512:null", "sha384"),
]


@pytss
@pytest.mark.parametrize(("algorithm", "name"), KINDS)
def test_a_quote_by_any_kind_of_key_over_both_banks_is_verified(machine: Any, algorithm: str, name: str) -> None:
    from ansible_collections.cvm.fde.plugins.module_utils.tpm.esys import opened
    from ansible_collections.cvm.fde.plugins.module_utils.tpm.quote import read_pcrs, selection_text

    attributes = tss.TPMA_OBJECT.RESTRICTED | tss.TPMA_OBJECT.SIGN_ENCRYPT | tss.TPMA_OBJECT.FIXEDTPM
    attributes |= tss.TPMA_OBJECT.FIXEDPARENT | tss.TPMA_OBJECT.SENSITIVEDATAORIGIN | tss.TPMA_OBJECT.USERWITHAUTH
    template = tss.TPM2B_PUBLIC.parse(algorithm, objectAttributes=attributes, nameAlg=name)
    selection = {"sha256": (0, 4, 7), "sha384": (7, 11)}
    with opened(machine.tcti) as esys:
        handle, public, *_more = esys.create_primary(tss.TPM2B_SENSITIVE_CREATE(), template, tss.ESYS_TR.ENDORSEMENT)
        attest, signature = esys.quote(handle, selection_text(selection), tss.TPM2B_DATA(b"nonce"))
        values = read_pcrs(esys, selection)
        theirs = bytes(public.get_name())
        esys.flush_context(handle)
    ours = parse_public(bytes(public.publicArea.marshal()))
    assert ours.name == theirs
    asked = {bank: frozenset(pcrs) for bank, pcrs in selection.items()}
    verify_quote(ours, bytes(attest), bytes(signature.marshal()), b"nonce", asked, values)


LOGS = (
    *("glinux-alex.bin", "ubuntu-1804-amd-sev.bin", "cos-85-amd-sev.bin", "ubuntu-2104-no-secure-boot.bin"),
    *("keylime-binary_bios_measurements-secureboot", "crypto_agile_eventlog", "debian-10.bin"),
    *("ebs_event_missing_eventlog", "tpm2tools-event-arch-linux.bin", "tpm2tools-event-sd-boot-fedora37.bin"),
    "tpm2tools-event-uefi-sha1-log.bin",
)


@pytest.mark.skipif(not shutil.which("tpm2_eventlog"), reason="tpm2_eventlog is not installed")
@pytest.mark.parametrize("name", LOGS)
def test_every_log_leads_to_the_pcrs_that_tpm2_eventlog_computes(vectors: Path, name: str) -> None:
    path = vectors / "eventlogs" / name
    printed = subprocess.run(["tpm2_eventlog", path], capture_output=True, check=False).stdout
    found = next((part for part in printed.decode("utf-8", "replace").split("\npcrs:\n")[1:]), None)
    if found is None:
        pytest.skip(f"this tpm2_eventlog gives up on {name}")
    expected = yaml.safe_load("pcrs:\n" + found)["pcrs"]
    log = event_log.parse(path.read_bytes())
    assert log is not None
    for bank, pcrs in expected.items():
        ours = {pcr: int.from_bytes(value, "big") for pcr, value in log.values(bank).items()}
        if log.startup_locality and pcrs[0] == with_the_locality_as_an_event(log, bank):
            pcrs[0] = ours[0]
        assert ours == {int(pcr): value for pcr, value in pcrs.items()}, bank


def with_the_locality_as_an_event(log: event_log.FirmwareLog, bank: str) -> int:
    """Return what releases before 5.5 make of PCR 0: they begin at zero and extend what the event does not extend."""
    value = hashlib.new(bank, bytes(2 * hashlib.new(bank).digest_size)).digest()
    for event in log.events:
        value = hashlib.new(bank, value + event.digests[bank]).digest() if event.pcr == 0 else value
    return int.from_bytes(value, "big")


@pytss
@pytest.mark.skipif(not shutil.which("swtpm_ioctl"), reason="swtpm_ioctl is not installed")
@pytest.mark.parametrize("locality", [0, 3])
def test_a_tpm_that_was_started_from_a_locality_holds_what_its_log_leads_to(
    vectors: Path, tmp_path: Path, locality: int
) -> None:
    """A firmware that starts the TPM from locality 3 says so in its log, and PCR 0 begins with that number."""
    raw = (vectors / "eventlogs/glinux-alex.bin").read_bytes()
    assert raw.count(b"StartupLocality\0\3") == 1
    log = event_log.parse(raw.replace(b"StartupLocality\0\3", b"StartupLocality\0" + bytes([locality])))
    assert log is not None and log.startup_locality == locality
    sockets = [f"type=unixio,path={tmp_path}/{name}" for name in ("tpm", "control")]
    words = ["swtpm", "socket", "--tpm2", "--tpmstate", f"dir={tmp_path}", "--flags", "not-need-init"]
    words += ["--server", sockets[0], "--ctrl", sockets[1], "--pid", f"file={tmp_path}/pid"]
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            started_from(tmp_path, locality)
            assert read_pcr(tmp_path, []) == event_log.initial_value("sha256", 0, locality)
            digests = [event.digests["sha256"] for event in log.events if event.pcr == 0]
            assert read_pcr(tmp_path, digests) == log.values("sha256")[0]
        finally:
            process.kill()


def started_from(folder: Path, locality: int) -> None:
    """Send TPM2_Startup(CLEAR) from a locality."""
    while not (folder / "pid").exists() or not (folder / "pid").read_text().strip():
        time.sleep(0.01)
    subprocess.run(["swtpm_ioctl", "--unix", folder / "control", "-l", str(locality)], check=True)
    with socket.socket(socket.AF_UNIX) as tpm:
        tpm.connect(str(folder / "tpm"))
        tpm.sendall(bytes.fromhex("80010000000c000001440000"))
        assert tpm.recv(64) == bytes.fromhex("80010000000a00000000")
    subprocess.run(["swtpm_ioctl", "--unix", folder / "control", "-l", "0"], check=True)


def read_pcr(folder: Path, digests: list[bytes]) -> bytes:
    """Extend PCR 0 by digests and return what it holds."""
    # TPM2_PCR_Extend of PCR 0 with an empty password, TPM2_PCR_Read of it.
    extend = bytes.fromhex("8002 00000041 00000182 00000000 00000009 40000009 0000 00 0000 00000001 000b")
    read = bytes.fromhex("8001 00000014 0000017e 00000001 000b 03 010000")
    with socket.socket(socket.AF_UNIX) as tpm:
        tpm.connect(str(folder / "tpm"))
        for command in (*(extend + digest for digest in digests), read):
            tpm.sendall(command)
            answer = tpm.recv(4096)
            assert answer[6:10] == bytes(4)
    return answer[-32:]


@pytss
@pytest.mark.parametrize("primary", [True, False], ids=["of the hierarchy", "below another key"])
def test_a_tpms_word_on_the_creation_of_a_key_is_read(machine: Any, primary: bool) -> None:
    """TPM2_CertifyCreation: which key it was, and the digest of what it was made with."""
    from ansible_collections.cvm.fde.plugins.module_utils.tpm.esys import opened
    from ansible_collections.cvm.fde.plugins.module_utils.tpm.keys import attestation_key

    outside, nonce = tss.TPM2B_DATA(b"outside"), tss.TPM2B_DATA(b"nonce")
    pcrs = tss.TPML_PCR_SELECTION.parse("sha256:7")
    with opened(machine.tcti) as esys, attestation_key(esys) as signer:
        flags = tss.TPMA_OBJECT.FIXEDTPM | tss.TPMA_OBJECT.FIXEDPARENT | tss.TPMA_OBJECT.SENSITIVEDATAORIGIN
        flags |= tss.TPMA_OBJECT.USERWITHAUTH | tss.TPMA_OBJECT.RESTRICTED | tss.TPMA_OBJECT.DECRYPT
        storage = tss.TPM2B_PUBLIC.parse("ecc256:aes128cfb", objectAttributes=flags)
        sensitive = tss.TPM2B_SENSITIVE_CREATE()
        parent, public, data, digest, ticket = esys.create_primary(sensitive, storage, tss.ESYS_TR.OWNER, outside, pcrs)
        made = parent
        if not primary:
            signs = flags & ~(tss.TPMA_OBJECT.RESTRICTED | tss.TPMA_OBJECT.DECRYPT) | tss.TPMA_OBJECT.SIGN_ENCRYPT
            below = tss.TPM2B_PUBLIC.parse("ecc256:ecdsa-sha256:null", objectAttributes=signs)
            private, public, data, digest, ticket = esys.create(parent, sensitive, below, outside, pcrs)
            made = esys.load(parent, private, public)
        scheme = tss.TPMT_SIG_SCHEME(scheme=tss.TPM2_ALG.NULL)
        attest, signature = esys.certify_creation(signer.handle, made, nonce, digest, scheme, ticket)
        for handle in {made, parent}:
            esys.flush_context(handle)
    found, key = parse_creation(bytes(attest)), parse_public(signer.public)
    verify_by(key, bytes(signature.marshal()), found.raw)
    assert found.qualified_signer == qualified_name(key)
    assert found.extra_data == b"nonce"
    assert found.object_name == bytes(public.get_name())
    assert found.creation_hash == bytes(digest) == hashlib.sha256(data.creationData.marshal()).digest()
    for length in range(len(found.raw)):
        with pytest.raises(AppraisalError, match="malformed"):
            parse_creation(found.raw[:length])
    with pytest.raises(AppraisalError, match="other-attestation"):
        parse_quote(found.raw)


@pytss
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(data=st.data())
def test_a_damaged_quote_is_refused_or_read_as_tpm2_pytss_reads_it(vectors: Path, data: Any) -> None:
    raw = bytearray(data.draw(st.sampled_from([raw for _name, raw in quotes(vectors)])))
    for _change in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        ours = parse_quote(bytes(raw))
    except AppraisalError:
        return
    theirs, size = tss.TPMS_ATTEST.unmarshal(bytes(raw))
    assert size == len(raw)
    assert ours.extra_data == bytes(theirs.extraData)
    assert ours.selection == selection_of(theirs)
