# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Our parsers beside others: what tpm2-pytss reads in every captured structure, and tpm2_eventlog in every log.

The others may be more lenient: what we refuse is tested elsewhere. Where both read, they must read the same.
"""

from __future__ import annotations

import shutil
import subprocess
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
    parse_public,
    parse_quote,
    parse_signature,
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
        if log.startup_locality:
            # Releases before 5.5 begin PCR 0 at zero whatever the locality.
            ours.pop(0), pcrs.pop(0)
        assert ours == {int(pcr): value for pcr, value in pcrs.items()}, bank


@pytss
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
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
