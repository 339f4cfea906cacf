# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What TPMs of real machines and clouds made, taken apart, and bytes that no TPM makes."""

from __future__ import annotations

import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.cvm.fde.plugins.module_utils.tpm import templates
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal import structures
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.errors import AppraisalError
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.structures import (
    Scheme,
    parse_creation,
    parse_nv_certification,
    parse_nv_public,
    parse_public,
    parse_quote,
    parse_signature,
    same_selection,
    verify_by,
)
from ansible_collections.cvm.fde.tests.unit.plugins.plugin_utils.appraisal.captured import SAMPLES
from hypothesis import example, given, settings
from hypothesis import strategies as st


def test_every_cut_of_a_structure_is_refused(vectors: Path) -> None:
    folder = vectors / "quotes" / "keylime"
    for parse, data in (
        (parse_quote, (folder / "quote.out").read_bytes()),
        (parse_public, (folder / "ak.pub").read_bytes()[2:]),
        (parse_public, (folder / "ek.pub").read_bytes()[2:]),
        (parse_signature, (folder / "quotesig.out").read_bytes()),
    ):
        for length in range(len(data)):
            with pytest.raises(AppraisalError):
                parse(data[:length])
        with pytest.raises(AppraisalError, match="follow"):
            parse(data + b"\0")


def attest(
    kind: int = 0x8018, magic: int = 0xFF544347, selections: bytes = b"", count: int = 1, safe: int = 1
) -> bytes:
    head = struct.pack(">IHHH", magic, kind, 0, 0) + struct.pack(">QIIBQ", 1, 2, 3, safe, 4)
    return head + struct.pack(">I", count) + selections + struct.pack(">H", 0)


def select(bank: int, size: int, bits: bytes) -> bytes:
    return struct.pack(">HB", bank, size) + bits


SHA1, SHA256 = 0x4, 0xB
BAD_QUOTES = {
    "other magic": (attest(magic=0xFF544346, selections=select(SHA256, 3, b"\1\0\0")), "not-from-a-tpm"),
    "a certification": (attest(kind=0x8017, selections=select(SHA256, 3, b"\1\0\0")), "other-attestation"),
    "an NV certification": (attest(kind=0x8014, selections=select(SHA256, 3, b"\1\0\0")), "other-attestation"),
    "safe is 2": (attest(safe=2, selections=select(SHA256, 3, b"\1\0\0")), "malformed"),
    "a bank twice": (
        attest(selections=select(SHA256, 3, b"\1\0\0") + select(SHA256, 3, b"\2\0\0"), count=2),
        "duplicate-bank",
    ),
    "a PCR above 23": (attest(selections=select(SHA256, 4, b"\1\0\0\1")), "malformed"),
    "a selection of two bytes": (attest(selections=select(SHA256, 2, b"\1\0")), "malformed"),
    "a selection of 255 bytes": (attest(selections=select(SHA256, 255, bytes(255))), "malformed"),
    "a bank that nobody knows": (attest(selections=select(0x27, 3, b"\1\0\0")), "unsupported"),
    "more banks than there can be": (attest(selections=b"", count=0xFFFFFFFF), "malformed"),
    "too long": (bytes(5000), "malformed"),
}


@pytest.mark.parametrize("name", BAD_QUOTES)
def test_a_quote_that_is_not_one_is_refused(name: str) -> None:
    data, code = BAD_QUOTES[name]
    with pytest.raises(AppraisalError) as refused:
        parse_quote(data)
    assert refused.value.code == code


def test_a_selection_of_four_bytes_is_the_same_as_one_of_three() -> None:
    quote = parse_quote(attest(selections=select(SHA256, 4, b"\x01\x00\x80\x00")))
    assert same_selection(quote.selection, {"sha256": (0, 23)})


@pytest.mark.parametrize(
    "public",
    [
        pytest.param(
            templates.AK_ECC_P256.fixed + struct.pack(">H", 32) + bytes(32) + struct.pack(">H", 32) + bytes(32),
            id="off",
        ),
        pytest.param(templates.AK_ECC_P256.public, id="empty"),
    ],
)
def test_a_point_that_is_not_on_the_curve_is_no_key(public: bytes) -> None:
    with pytest.raises(AppraisalError, match="bad-key"):
        _ = parse_public(public).key


def test_an_even_modulus_is_no_key() -> None:
    public = templates.EK_RSA_2048.fixed + struct.pack(">H", 256) + b"\xff" * 255 + b"\xfe"
    with pytest.raises(AppraisalError, match="bad-key"):
        _ = parse_public(public).key


def test_a_small_rsa_key_is_refused() -> None:
    public = bytearray(templates.EK_RSA_2048.fixed)
    public[-6:-4] = struct.pack(">H", 1024)
    with pytest.raises(AppraisalError, match="bad-key"):
        parse_public(bytes(public) + struct.pack(">H", 128) + b"\xff" * 128)


def test_a_signature_by_another_scheme_than_the_keys_own_is_refused(vectors: Path) -> None:
    folder = vectors / "quotes" / "keylime"
    public = parse_public((folder / "ak.pub").read_bytes()[2:])
    signature, message = (folder / "quotesig.out").read_bytes(), (folder / "quote.out").read_bytes()
    verify_by(public, signature, message)
    other = replace(public, scheme=Scheme(templates.ALG_RSASSA, "sha384"))
    with pytest.raises(AppraisalError, match="bad-signature"):
        verify_by(other, signature, message)
    with pytest.raises(AppraisalError, match="bad-signature"):
        verify_by(replace(public, scheme=None), signature, message)


def test_names_are_those_that_the_tpm_gives(vectors: Path) -> None:
    folder = vectors / "quotes" / "keylime"
    assert parse_public((folder / "ak.pub").read_bytes()[2:]).name == (folder / "ak.name").read_bytes()


def test_our_reading_equals_that_of_tpm2_pytss(vectors: Path) -> None:
    tss = pytest.importorskip("tpm2_pytss")
    for make in SAMPLES.values():
        sample = make(vectors)
        ours, (theirs, size) = parse_quote(sample.attest), tss.TPMS_ATTEST.unmarshal(sample.attest)
        assert size == len(sample.attest)
        assert ours.qualified_signer == bytes(theirs.qualifiedSigner)
        assert ours.extra_data == bytes(theirs.extraData)
        assert ours.pcr_digest == bytes(theirs.attested.quote.pcrDigest)
        clock = theirs.clockInfo
        assert (ours.clock.clock, ours.clock.reset_count) == (clock.clock, clock.resetCount)
        assert (ours.clock.restart_count, ours.clock.safe) == (clock.restartCount, bool(clock.safe))
        assert ours.firmware_version == theirs.firmwareVersion
        selected = theirs.attested.quote.pcrSelect.pcrSelections
        assert len(selected) == len(ours.selection)
        for theirs_bank, (bank, pcrs) in zip(selected, ours.selection.items()):
            assert theirs_bank.hash == structures.HASH_IDS[bank]
            bits = int.from_bytes(bytes(theirs_bank.pcrSelect)[:3], "little")
            assert {pcr for pcr in range(24) if bits >> pcr & 1} == pcrs
    for name in ("ak.pub", "ek.pub"):
        data = (vectors / "quotes" / "keylime" / name).read_bytes()
        area = tss.TPM2B_PUBLIC.unmarshal(data)[0]
        assert parse_public(data[2:]).name == bytes(area.get_name())


def test_an_nv_public_area_has_the_name_that_tpm2_pytss_computes() -> None:
    tss = pytest.importorskip("tpm2_pytss")
    data = struct.pack(">IHIH", 0x0180FDE0, SHA256, 0x20060008, 32) + bytes(32) + struct.pack(">H", 152)
    area, size = tss.TPMS_NV_PUBLIC.unmarshal(data)
    assert size == len(data)
    public = parse_nv_public(data)
    assert public.name == bytes(tss.TPM2B_NV_PUBLIC(nvPublic=area).get_name())
    assert (public.index, public.attributes, public.size) == (0x0180FDE0, 0x20060008, 152)


def test_a_creation_statement_is_read() -> None:
    head = struct.pack(">IHHH", 0xFF544347, 0x801A, 0, 0) + struct.pack(">QIIBQ", 1, 2, 3, 1, 4)
    found = parse_creation(head + struct.pack(">H", 2) + b"ab" + struct.pack(">H", 1) + b"c")
    assert (found.object_name, found.creation_hash) == (b"ab", b"c")
    with pytest.raises(AppraisalError, match="other-attestation"):
        parse_quote(head)


PARSERS = (parse_quote, parse_nv_certification, parse_creation, parse_public, parse_nv_public, parse_signature)


@settings(max_examples=300)
@given(st.binary(max_size=300))
@example(templates.AK_ECC_P256.public)
@example(templates.EK_RSA_2048.public)
@example(attest(selections=select(SHA256, 3, b"\1\0\0")))
def test_bytes_are_read_or_refused_and_nothing_else_happens(data: bytes) -> None:
    for parse in PARSERS:
        try:
            parse(data)
        except AppraisalError:
            continue


@settings(max_examples=300)
@given(st.data())
def test_a_mutated_structure_is_read_or_refused(data: Any) -> None:
    good = data.draw(
        st.sampled_from(
            [
                attest(selections=select(SHA256, 3, b"\1\0\0") + select(SHA1, 3, b"\1\0\0"), count=2),
                templates.AK_ECC_P256.fixed + struct.pack(">H", 32) + b"\1" * 32 + struct.pack(">H", 32) + b"\2" * 32,
                templates.EK_RSA_2048.fixed + struct.pack(">H", 256) + b"\xff" * 256,
                struct.pack(">HHH", 0x18, SHA256, 32) + b"\1" * 32 + struct.pack(">H", 32) + b"\2" * 32,
            ]
        )
    )
    changed = bytearray(good)
    for _change in range(data.draw(st.integers(1, 4))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    for parse in PARSERS:
        try:
            found = parse(bytes(changed))
            if isinstance(found, structures.PublicArea):
                _ = found.key
        except AppraisalError:
            continue
