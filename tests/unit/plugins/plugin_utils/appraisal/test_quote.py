# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What TPMs of real machines and clouds quoted is good; everything that is nearly that is refused for its reason."""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any, Callable, Mapping, Union

import pytest
from ansible_collections.cvm.fde.plugins.module_utils.tpm import templates as tpm
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.errors import AppraisalError, Undecided
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.quote import verify_quote
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.roads.choice import Allowed, Shown, walk
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.roads.endorsement_key import Activation
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.roads.first_use import Approval
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.roads.trust import Attester, RoadName
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.structures import (
    PublicArea,
    Scheme,
    Signature,
    parse_public,
    parse_quote,
    parse_signature,
)
from ansible_collections.cvm.fde.tests.unit.plugins.plugin_utils.appraisal.captured import SAMPLES, Sample
from ansible_collections.cvm.fde.tests.unit.plugins.plugin_utils.appraisal.encoding import ecc_area, rsa_area
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st


@pytest.fixture(params=SAMPLES)
def sample(request: Any, vectors: Path) -> Sample:
    return SAMPLES[request.param](vectors)


def test_the_quote_of_a_real_machine_is_good(sample: Sample) -> None:
    found = sample.verify()
    assert found.attest.extra_data == sample.nonce
    assert found.values == sample.values
    assert found.attestation_key is (sample.key if isinstance(sample.key, PublicArea) else None)


#: Those whose key is at hand as a TPMT_PUBLIC, or follows from its platform's template.
KEYED = [name for name in SAMPLES if name not in ("trustee", "guard-good", "guard-failed")]


@pytest.fixture(params=KEYED)
def keyed(request: Any, vectors: Path) -> Sample:
    found = SAMPLES[request.param](vectors)
    assert isinstance(found.key, PublicArea)
    return found


def with_attributes(sample: Sample, attributes: int) -> Sample:
    assert isinstance(sample.key, PublicArea)
    raw = sample.key.raw
    return replace(sample, key=parse_public(raw[:4] + attributes.to_bytes(4, "big") + raw[8:]))


def flipped(data: bytes, place: int = -1) -> bytes:
    changed = bytearray(data)
    changed[place] ^= 1
    return bytes(changed)


def only(sample: Sample) -> tuple[str, Mapping[int, bytes]]:
    ((bank, values),) = sample.values.items()
    return bank, values


def signed(sample: Sample) -> Signature:
    return parse_signature(sample.signature) if isinstance(sample.signature, bytes) else sample.signature


def with_signature(sample: Sample, **changes: Any) -> Sample:
    return replace(sample, signature=replace(signed(sample), **changes))


def with_values(sample: Sample, **changes: bytes) -> Sample:
    bank, values = only(sample)
    return replace(sample, values={bank: {**values, **{int(name[1:]): value for name, value in changes.items()}}})


def swapped(sample: Sample) -> Sample:
    _bank, values = only(sample)
    first = min(values)
    other = next(pcr for pcr, value in values.items() if value != values[first])
    return with_values(sample, **{f"p{first}": values[other], f"p{other}": values[first]})


def dropped(sample: Sample) -> Sample:
    bank, values = only(sample)
    return replace(sample, values={bank: {pcr: value for pcr, value in values.items() if pcr != max(values)}})


def added(sample: Sample) -> Sample:
    bank, _values = only(sample)
    return with_values(sample, p24=bytes(hashlib.new(bank).digest_size))


def changed(sample: Sample) -> Sample:
    _bank, values = only(sample)
    return with_values(sample, **{f"p{max(values)}": flipped(values[max(values)])})


def longer(sample: Sample) -> Sample:
    _bank, values = only(sample)
    return with_values(sample, **{f"p{max(values)}": values[max(values)] + b"\0"})


def other_bank(sample: Sample) -> Sample:
    bank, values = only(sample)
    other = "sha384" if bank == "sha256" else "sha256"
    return replace(sample, values={other: {pcr: bytes(hashlib.new(other).digest_size) for pcr in values}})


def asked(change: Callable[[frozenset[int]], frozenset[int]]) -> Callable[[Sample], Sample]:
    def ask(sample: Sample) -> Sample:
        return replace(sample, selection={bank: change(pcrs) for bank, pcrs in sample.selection.items()})

    return ask


def asked_another(sample: Sample) -> Sample:
    """Ask for one PCR more and one less: the number of values is that of the quote."""
    (pcrs,) = sample.selection.values()
    absent = set(range(25)) - pcrs
    return asked(lambda pcrs: pcrs - {max(pcrs)} | {min(absent)})(sample)


def asked_two_banks(sample: Sample) -> Sample:
    (pcrs,) = sample.selection.values()
    return replace(sample, selection={**sample.selection, "sha1": pcrs})


#: What is changed of a good quote → the change, the code of the refusal, and its reason.
NEARLY: dict[str, tuple[Callable[[Sample], Sample], str, str]] = {
    "a flipped signature": (
        lambda sample: with_signature(sample, value=flipped(signed(sample).value)),
        "bad-signature",
        "not made by this key over this statement",
    ),
    "a flipped statement": (
        lambda sample: replace(sample, attest=flipped(sample.attest)),
        "bad-signature",
        "not made by this key over this statement",
    ),
    "a selection changed in the statement": (
        lambda sample: replace(sample, attest=flipped(sample.attest, sample.attest.rindex(b"\3", 0, -36) + 1)),
        "bad-signature",
        "not made by this key over this statement",
    ),
    "a signature of another scheme": (
        lambda sample: with_signature(sample, scheme=Scheme(tpm.ALG_RSAPSS, "sha256")),
        "bad-signature",
        "",
    ),
    "an empty signature": (lambda sample: replace(sample, signature=b""), "malformed", "the signature ends"),
    "a nonce changed in one bit": (
        lambda sample: replace(sample, nonce=flipped(sample.nonce)),
        "other-nonce",
        "answers another nonce",
    ),
    "another nonce": (lambda sample: replace(sample, nonce=bytes(32)), "other-nonce", "answers another nonce"),
    "a nonce cut by one byte": (
        lambda sample: replace(sample, nonce=sample.nonce[:-1]),
        "other-nonce",
        "answers another nonce",
    ),
    "a nonce longer by a zero": (
        lambda sample: replace(sample, nonce=sample.nonce + b"\0"),
        "other-nonce",
        "answers another nonce",
    ),
    "two PCR values swapped": (swapped, "pcr-values", "not those that were quoted"),
    "a PCR value changed in one bit": (changed, "pcr-values", "not those that were quoted"),
    "one PCR value dropped": (dropped, "pcr-values", "of which there is no value"),
    "a 25th PCR value added": (added, "pcr-values", "PCR 24, which the quote does not select"),
    "a PCR value of another length": (longer, "pcr-values", "does not have the length of a"),
    "the values of another bank": (other_bank, "pcr-values", "a bank that the quote does not select"),
    "the values of a second bank": (
        lambda sample: replace(sample, values={**sample.values, "sha1": {0: bytes(20)}}),
        "pcr-values",
        "a bank that the quote does not select",
    ),
    "no values": (lambda sample: replace(sample, values={}), "pcr-values", "of which there is no value"),
    "another selection asked for": (asked_another, "other-selection", "covers other PCRs than were asked for"),
    "one PCR less asked for": (
        asked(lambda pcrs: pcrs - {max(pcrs)}),
        "other-selection",
        "covers other PCRs than were asked for",
    ),
    "a second bank asked for": (asked_two_banks, "other-selection", "covers other PCRs than were asked for"),
    "another bank asked for": (
        lambda sample: replace(sample, selection={"sha512": next(iter(sample.selection.values()))}),
        "other-selection",
        "covers other PCRs than were asked for",
    ),
    "another machine's key": (lambda sample: replace(sample, key=stranger(sample.key)), "", ""),
    "a byte behind the statement": (
        lambda sample: replace(sample, attest=sample.attest + b"\0"),
        "malformed",
        "1 bytes follow the quote",
    ),
}


def stranger(key: Any) -> Any:
    """Return another key of the same kind."""
    public = key.key if isinstance(key, PublicArea) else key
    if isinstance(public, rsa.RSAPublicKey):
        new = rsa.generate_private_key(65537, 2048).public_key()
        return rsa_area(key.attributes, new.public_numbers().n) if isinstance(key, PublicArea) else new
    curve = ec.generate_private_key(ec.SECP256R1()).public_key()
    numbers = curve.public_numbers()
    return ecc_area(key.attributes, numbers.x, numbers.y) if isinstance(key, PublicArea) else curve


@pytest.mark.parametrize("name", NEARLY)
def test_a_quote_that_is_nearly_good_is_refused_for_its_reason(sample: Sample, name: str) -> None:
    change, code, reason = NEARLY[name]
    with pytest.raises(AppraisalError) as refused:
        change(sample).verify()
    assert refused.value.code == (code or "bad-signature")
    assert reason in refused.value.reason


def test_a_signature_that_is_said_to_be_over_sha1_is_refused(sample: Sample) -> None:
    weak = with_signature(sample, scheme=replace(signed(sample).scheme, hash_name="sha1"))
    with pytest.raises(AppraisalError) as refused:
        weak.verify()
    assert refused.value.code == ("bad-signature" if isinstance(sample.key, PublicArea) else "weak-signature")


#: Attribute bits to clear and to set → the reason.
ATTRIBUTES = {
    "unrestricted": (tpm.RESTRICTED, 0, "may sign what the TPM did not make"),
    "restricted, but does not sign": (tpm.SIGN, 0, "may sign what the TPM did not make"),
    "may leave its TPM": (tpm.FIXED_TPM, 0, "may sign what the TPM did not make"),
    "may leave its parent": (tpm.FIXED_PARENT, 0, "may sign what the TPM did not make"),
    "decrypts": (0, tpm.DECRYPT, "can decrypt"),
    "was imported": (tpm.SENSITIVE_DATA_ORIGIN, 0, "was not made in the TPM"),
}


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_a_key_that_signs_or_does_more_is_refused_for_its_reason(keyed: Sample, name: str) -> None:
    clear, add, reason = ATTRIBUTES[name]
    assert isinstance(keyed.key, PublicArea)
    with pytest.raises(AppraisalError) as refused:
        with_attributes(keyed, keyed.key.attributes & ~clear | add).verify()
    assert refused.value.code == "bad-attestation-key"
    assert reason in refused.value.reason


def test_attributes_that_the_key_does_not_have_are_no_help(keyed: Sample) -> None:
    """Whoever shows an unrestricted key with the attributes of a restricted one contradicts the quote's own signer."""
    assert isinstance(keyed.key, PublicArea)
    with pytest.raises(AppraisalError, match="other-signer"):
        with_attributes(keyed, keyed.key.attributes ^ tpm.NO_DA).verify()


def test_a_key_below_the_endorsement_key_is_believed_only_with_that_key(vectors: Path) -> None:
    """The one of keylime was made by tpm2_createak's way, as a child of the endorsement key."""
    sample = SAMPLES["keylime"](vectors)
    assert sample.endorsement is not None
    other = stranger(sample.endorsement)
    for endorsement in (None, other, sample.key):
        with pytest.raises(AppraisalError, match="other-signer"):
            replace(sample, endorsement=endorsement).verify()


def test_an_endorsement_key_beside_a_primary_key_does_not_matter(vectors: Path) -> None:
    endorsement = SAMPLES["keylime"](vectors).endorsement
    for name in ("azure-snp-v1", "aws-nitrotpm", "gcp-sev"):
        replace(SAMPLES[name](vectors), endorsement=endorsement).verify()


def test_every_cut_of_a_quote_and_of_its_signature_is_refused(sample: Sample) -> None:
    for length in range(len(sample.attest)):
        with pytest.raises(AppraisalError, match="malformed"):
            replace(sample, attest=sample.attest[:length]).verify()
    if isinstance(sample.signature, bytes):
        for length in range(len(sample.signature)):
            with pytest.raises(AppraisalError, match="malformed"):
                replace(sample, signature=sample.signature[:length]).verify()


def test_every_changed_byte_of_a_quote_is_refused(sample: Sample) -> None:
    for place in range(len(sample.attest)):
        with pytest.raises(AppraisalError):
            replace(sample, attest=flipped(sample.attest, place)).verify()


@pytest.mark.parametrize("name", ["trustee", "guard-good", "guard-failed"])
def test_a_quote_by_a_bare_key_is_good_and_yet_no_road_leads_to_its_key(vectors: Path, name: str) -> None:
    """Trustee's `tpm` evidence holds a bare SubjectPublicKeyInfo: whoever has a key in software can make the same."""
    sample = SAMPLES[name](vectors)
    assert sample.verify().attestation_key is None
    assert not isinstance(sample.key, PublicArea)
    # Even where the key is dressed up as one of a TPM, its quote's signer is another.
    numbers = sample.key.public_numbers()
    if isinstance(numbers, rsa.RSAPublicNumbers):
        dressed = rsa_area(0x50472, numbers.n)
    else:
        dressed = ecc_area(0x50072, numbers.x, numbers.y)
    signer = parse_quote(sample.attest).qualified_signer
    now = datetime.datetime(2026, 6, 1, tzinfo=datetime.timezone.utc)
    endorsement = SAMPLES["keylime"](vectors).endorsement
    assert endorsement is not None
    activation, _credential = Activation.begin(endorsement, dressed)
    shown = Shown(Attester(dressed, signer, sample.nonce, sample.values), activation, None)
    approved = Approval("web1", "00" * 32, "alice", now)
    for road in RoadName:
        allowed = Allowed((road,), "web1", ("00" * 32,), approved)
        with pytest.raises((AppraisalError, Undecided)):
            walk(allowed, shown, (), now)


def test_a_verifier_that_asked_for_nothing_is_a_bug(vectors: Path) -> None:
    sample = SAMPLES["gcp-sev"](vectors)
    for wrong in (
        replace(sample, nonce=b""),
        replace(sample, selection={}),
        replace(sample, selection={"sha256": frozenset()}),
    ):
        with pytest.raises(ValueError, match="the caller chose"):
            wrong.verify()


Key = Union[PublicArea, rsa.RSAPublicKey, ec.EllipticCurvePublicKey]


def test_a_bare_key_that_is_too_weak_is_refused(vectors: Path) -> None:
    sample = SAMPLES["trustee"](vectors)
    weak: list[Key] = [
        rsa.generate_private_key(65537, 1024).public_key(),
        rsa.generate_private_key(3, 2048).public_key(),
        ec.generate_private_key(ec.SECP256K1()).public_key(),
    ]
    for key in weak:
        with pytest.raises(AppraisalError, match="bad-key"):
            verify_quote(key, sample.attest, sample.signature, sample.nonce, sample.selection, sample.values)


def test_what_was_verified_cannot_be_changed(vectors: Path) -> None:
    found = SAMPLES["gcp-sev"](vectors).verify()
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.values = {}  # type: ignore[misc]


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(data=st.data())
def test_whatever_is_damaged_is_refused_and_nothing_else_happens(vectors: Path, data: Any) -> None:
    """Bytes of statement, signature, nonce and values are changed, cut and added at random places."""
    sample = SAMPLES[data.draw(st.sampled_from(sorted(SAMPLES)))](vectors)
    bank, values = only(sample)
    parts = {"attest": sample.attest, "signature": signed(sample).value, "nonce": sample.nonce}
    parts.update({str(pcr): value for pcr, value in values.items()})
    name = data.draw(st.sampled_from(sorted(parts)))
    raw = parts[name]
    start = data.draw(st.integers(0, len(raw)))
    damaged = raw[:start] + data.draw(st.binary(max_size=3)) + raw[start + data.draw(st.integers(0, 3)) :]
    if damaged == raw or (name == "nonce" and not damaged):
        return
    if name == "signature":
        damaged_sample = with_signature(sample, value=damaged)
    elif name in ("attest", "nonce"):
        damaged_sample = replace(sample, **{name: damaged})
    else:
        damaged_sample = replace(sample, values={bank: {**values, int(name): damaged}})
    with pytest.raises(AppraisalError):
        damaged_sample.verify()
