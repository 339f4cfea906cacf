# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What TPMs of real machines and clouds signed, and everything that is nearly that."""

from __future__ import annotations

import base64
import hashlib
import json
import struct
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Callable, Optional

import pytest
from ansible_collections.cvm.fde.plugins.module_utils.tpm import templates
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal import structures
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.errors import AppraisalError
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.structures import (
    Scheme,
    Signature,
    VerifyingKey,
    parse_creation,
    parse_nv_certification,
    parse_nv_public,
    parse_public,
    parse_quote,
    parse_signature,
    pcr_digest,
    qualified_name,
    same_selection,
    verify_by,
    verify_signature,
)
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import load_der_public_key
from hypothesis import example, given, settings
from hypothesis import strategies as st

RSASSA = Scheme(templates.ALG_RSASSA, "sha256")
ECDSA = Scheme(templates.ALG_ECDSA, "sha256")
ALL = frozenset(range(24))


@dataclass
class Sample:
    """A quote of a real machine, with what is needed to judge it."""

    key: VerifyingKey
    attest: bytes
    signature: Signature
    nonce: bytes
    bank: str
    values: dict[int, bytes]

    def check(self) -> None:
        """Judge the quote as a verifier does that asked for just these PCRs under this nonce."""
        quote = parse_quote(self.attest)
        verify_signature(self.key, self.signature, self.attest)
        assert quote.extra_data == self.nonce
        assert same_selection(quote.selection, {self.bank: self.values})
        digest = pcr_digest(quote, {self.bank: self.values}, self.signature.scheme.hash_name)
        if digest != quote.pcr_digest:
            raise AppraisalError("pcr-values", "the PCR values are not those that were quoted")


def jwk(key: dict[str, str]) -> rsa.RSAPublicKey:
    number = {name: int.from_bytes(base64.urlsafe_b64decode(key[name] + "=="), "big") for name in ("n", "e")}
    return rsa.RSAPublicNumbers(number["e"], number["n"]).public_key()


def keylime(vectors: Path) -> Sample:
    folder = vectors / "quotes" / "keylime"
    # tpm2-tools' files: a TPM2B_PUBLIC, a bare TPMS_ATTEST, a TPMT_SIGNATURE, and the values in the C structures'
    # own layout.
    raw = (folder / "quotepcr.out").read_bytes()
    (digests,) = struct.unpack_from("<I", raw, 132 + 4)
    pcrs, place, values = (15, 16, 22), 132 + 4 + 4, {}
    assert digests == 3
    for pcr in pcrs:
        (size,) = struct.unpack_from("<H", raw, place)
        values[pcr] = raw[place + 2 : place + 2 + size]
        place += 66
    attest = (folder / "quote.out").read_bytes()
    public = parse_public((folder / "ak.pub").read_bytes()[2:])
    signature = parse_signature((folder / "quotesig.out").read_bytes())
    return Sample(public.key, attest, signature, parse_quote(attest).extra_data, "sha256", values)


def azure(vectors: Path, name: str, nonce: Optional[bytes] = b"challenge") -> Sample:
    found = json.loads((vectors / "quotes" / name).read_text())
    hcl = base64.urlsafe_b64decode(found["hcl_report"] + "==")
    start = 32 + 1184
    (size,) = struct.unpack_from("<I", hcl, start + 16)
    runtime = json.loads(hcl[start + 20 : start + 20 + size])
    key = next(key for key in runtime["keys"] if key["kid"] == "HCLAkPub")
    quote = found["tpm_quote"]
    values = {pcr: bytes.fromhex(value) for pcr, value in enumerate(quote["pcrs"])}
    signature = Signature(RSASSA, bytes.fromhex(quote["signature"]))
    if nonce is None:
        nonce = bytes.fromhex(runtime["user-data"]).rstrip(b"\0")
    return Sample(jwk(key), bytes.fromhex(quote["message"]), signature, nonce, "sha256", values)


def vaportpm(vectors: Path, name: str, bank: str) -> Sample:
    found = json.loads((vectors / "quotes" / name).read_text())
    point, quote = found["ak_pubkeys"]["ecc_p256"], found["attestation"]["tpm"]["ecc_p256"]
    key = ec.EllipticCurvePublicNumbers(int(point["x"], 16), int(point["y"], 16), ec.SECP256R1()).public_key()
    values = {int(pcr): bytes.fromhex(value) for pcr, value in found["pcrs"][bank].items()}
    signature = Signature(ECDSA, bytes.fromhex(quote["signature"]))
    return Sample(key, bytes.fromhex(quote["attest_data"]), signature, bytes.fromhex(found["nonce"]), bank, values)


def trustee(vectors: Path) -> Sample:
    found = json.loads((vectors / "quotes" / "trustee-tpm-evidence.json").read_text())
    key = load_der_public_key(base64.b64decode(found["ak_public"]))
    assert isinstance(key, rsa.RSAPublicKey)
    attest = base64.b64decode(found["tpm_quote"]["message"])
    signature = parse_signature(base64.b64decode(found["tpm_quote"]["signature"]))
    values = {pcr: bytes.fromhex(value) for pcr, value in enumerate(found["tpm_quote"]["pcrs"])}
    nonce = parse_quote(attest).extra_data
    assert len(nonce) == 64
    return Sample(key, attest, signature, nonce, "sha256", values)


SAMPLES: dict[str, Callable[[Path], Sample]] = {
    "keylime": keylime,
    "azure-snp-v1": lambda vectors: azure(vectors, "azure-snp/evidence-v1.json"),
    "azure-snp-v2": lambda vectors: azure(vectors, "azure-snp/evidence-v2.json", None),
    "azure-tdx-v1": lambda vectors: azure(vectors, "azure-tdx/evidence-v1.json"),
    "aws-nitrotpm": lambda vectors: vaportpm(vectors, "aws-nitrotpm.json", "sha384"),
    "gcp-sev": lambda vectors: vaportpm(vectors, "gcp-sev.json", "sha256"),
    "trustee": trustee,
}


@pytest.fixture(params=SAMPLES)
def sample(request: Any, vectors: Path) -> Sample:
    return SAMPLES[request.param](vectors)


def test_the_quote_of_a_real_machine_is_good(sample: Sample) -> None:
    sample.check()


def flipped(data: bytes, place: int = -1) -> bytes:
    changed = bytearray(data)
    changed[place] ^= 1
    return bytes(changed)


def swapped(sample: Sample) -> dict[int, bytes]:
    first = min(sample.values)
    other = next(pcr for pcr, value in sample.values.items() if value != sample.values[first])
    return {**sample.values, first: sample.values[other], other: sample.values[first]}


NEARLY: dict[str, tuple[Callable[[Sample], Sample], str]] = {
    "a flipped signature": (
        lambda sample: replace(sample, signature=replace(sample.signature, value=flipped(sample.signature.value))),
        "bad-signature",
    ),
    "a flipped statement": (lambda sample: replace(sample, attest=flipped(sample.attest)), "bad-signature"),
    "an RSAPSS or RSASSA signature that is called the other": (
        lambda sample: replace(
            sample, signature=replace(sample.signature, scheme=Scheme(templates.ALG_RSAPSS, "sha256"))
        ),
        "bad-signature",
    ),
    "a signature said to be over SHA-1": (
        lambda sample: replace(
            sample, signature=replace(sample.signature, scheme=replace(sample.signature.scheme, hash_name="sha1"))
        ),
        "weak-signature",
    ),
    "two values swapped": (lambda sample: replace(sample, values=swapped(sample)), "pcr-values"),
    "a value changed": (
        lambda sample: replace(sample, values={**sample.values, 15: flipped(sample.values[15])}),
        "pcr-values",
    ),
}


@pytest.mark.parametrize("name", NEARLY)
def test_a_quote_that_is_nearly_that_is_refused(sample: Sample, name: str) -> None:
    change, code = NEARLY[name]
    with pytest.raises(AppraisalError) as refused:
        change(sample).check()
    assert refused.value.code == code


def test_values_other_than_those_of_the_selection_are_refused(sample: Sample) -> None:
    quote, hash_name = parse_quote(sample.attest), sample.signature.scheme.hash_name
    fewer = {pcr: value for pcr, value in sample.values.items() if pcr != 15}
    size = hashlib.new(sample.bank).digest_size
    wrong: list[dict[str, dict[int, bytes]]] = [
        {sample.bank: fewer},
        {sample.bank: {**sample.values, 24: bytes(size)}},
        {sample.bank: {**fewer, 24: bytes(size)}},
        {sample.bank: dict(sample.values), "sha1": {0: bytes(20)}},
        {"sha512": {pcr: bytes(64) for pcr in sample.values}},
        {sample.bank: {**sample.values, 15: bytes(size + 1)}},
        {},
    ]
    for values in wrong:
        with pytest.raises(AppraisalError, match="pcr-values"):
            pcr_digest(quote, values, hash_name)


def test_the_qualified_signer_of_cloud_keys_follows_from_their_templates(vectors: Path) -> None:
    for name in ("gcp-sev", "aws-nitrotpm"):
        sample = SAMPLES[name](vectors)
        assert isinstance(sample.key, ec.EllipticCurvePublicKey)
        numbers = sample.key.public_numbers()
        point = b"".join(struct.pack(">H", 32) + part.to_bytes(32, "big") for part in (numbers.x, numbers.y))
        fixed = bytearray(templates.AK_ECC_P256.fixed)
        fixed[4:8] = (0x50072).to_bytes(4, "big")
        public = parse_public(bytes(fixed) + point)
        assert parse_quote(sample.attest).qualified_signer == qualified_name(public)


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


@settings(max_examples=300, deadline=None)
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


@settings(max_examples=300, deadline=None)
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
