# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A header is accepted only where every field is as our own volumes have it."""

from __future__ import annotations

import base64
import json
from dataclasses import replace

import pytest
from ansible_collections.cvm.fde.plugins.module_utils.errors import Refusal
from ansible_collections.cvm.fde.plugins.module_utils.luks2.enrolment import enrolled
from ansible_collections.cvm.fde.plugins.module_utils.luks2.expectation import MAX_VIOLATIONS
from ansible_collections.cvm.fde.plugins.module_utils.luks2.header import Header, HeaderError
from ansible_collections.cvm.fde.plugins.module_utils.luks2.method import Passphrase, Recovery, Tpm2
from ansible_collections.cvm.fde.plugins.module_utils.luks2.policy import (
    Expectation,
    Reason,
    data_volume,
    judge,
    root_volume,
)
from ansible_collections.cvm.fde.plugins.module_utils.luks2.profile import AEGIS, CONFIDENTIAL, PROFILES, Layout
from hypothesis import given, settings
from hypothesis import strategies as st

UUID = "6a2f0e55-5b7e-4d0e-9d59-1c2f35e7a003"


@pytest.fixture(scope="module")
def public_key(request):
    return (request.path.parent / "fixtures/2.8.8-root.pem").read_bytes()


@pytest.fixture(scope="module")
def expected(public_key):
    return root_volume(uuid=UUID, public_key=public_key)


def test_genuine_headers_are_accepted(forger, genuine_name, expected):
    kind = genuine_name.partition("-")[2]
    if kind == "data":
        expected = data_volume(uuid=UUID)
    elif kind != "root":
        expected = Expectation(profile=PROFILES[kind], uuid=UUID, passphrases=(1, 1))
    assert judge(Header.parse(forger.genuine(genuine_name)), expected).violations == ()


def _slot(metadata):
    return metadata["keyslots"]["1"]


def _segment(metadata):
    return metadata["segments"]["0"]


def _digest(metadata):
    return metadata["digests"]["0"]


def _tpm2(metadata):
    return metadata["tokens"]["0"]


def _second_slot(metadata, number="2", offset="1294336"):
    metadata["keyslots"][number] = json.loads(json.dumps(_slot(metadata)))
    metadata["keyslots"][number]["area"].update(offset=offset)
    _digest(metadata)["keyslots"].append(number)


def _recovery(metadata):
    _second_slot(metadata)
    metadata["tokens"]["2"] = {"type": "systemd-recovery", "keyslots": ["2"]}


def _second_tpm2(metadata, **changes):
    _second_slot(metadata)
    metadata["tokens"]["2"] = {**json.loads(json.dumps(_tpm2(metadata))), "keyslots": ["2"], **changes}


def _unsigned(metadata, changes):
    for name in ("tpm2_pubkey", "tpm2_pubkey_pcrs"):
        _tpm2(metadata).pop(name)
    _tpm2(metadata).update(changes)


def _argon2(metadata, **changes):
    _slot(metadata)["kdf"] = {
        "type": "argon2id",
        "time": 4,
        "memory": 65536,
        "cpus": 4,
        "salt": _slot(metadata)["kdf"]["salt"],
        **changes,
    }


def _reencryption(metadata):
    metadata["keyslots"]["2"] = {
        "type": "reencrypt",
        "mode": "encrypt",
        "direction": "forward",
        "key_size": 1,
        "area": {"type": "journal", "offset": "1294336", "size": "4096"},
    }


#: What is done to the header, and every reason for which it must be refused, in order.
ATTACKS = {
    "null cipher in the segment": (
        lambda m: _segment(m).update(encryption="cipher_null-ecb"),
        [Reason.NULL_CIPHER],
    ),
    "null cipher in the keyslot": (
        lambda m: _slot(m)["area"].update(encryption="cipher_null-ecb"),
        [Reason.NULL_CIPHER],
    ),
    "null cipher of the kernel's spelling": (
        lambda m: _segment(m).update(encryption="capi:ecb(cipher_NULL)-plain"),
        [Reason.NULL_CIPHER],
    ),
    "weaker cipher in the segment": (
        lambda m: _segment(m).update(encryption="aes-ecb"),
        [Reason.SEGMENT_CIPHER],
    ),
    "weaker cipher in the keyslot": (
        lambda m: _slot(m)["area"].update(encryption="aes-ecb"),
        [Reason.KEYSLOT_CIPHER],
    ),
    "half a key in the keyslot's cipher": (lambda m: _slot(m)["area"].update(key_size=32), [Reason.KEYSLOT_CIPHER]),
    "integrity removed": (lambda m: _segment(m).pop("integrity"), [Reason.INTEGRITY]),
    "integrity of another kind": (
        lambda m: _segment(m)["integrity"].update(type="none"),
        [Reason.INTEGRITY],
    ),
    "integrity with its own key size": (
        lambda m: _segment(m)["integrity"].update(key_size=1),
        [Reason.INTEGRITY],
    ),
    "journal encryption that needs another key": (
        lambda m: _segment(m)["integrity"].update(journal_encryption="cbc(aes)"),
        [Reason.INTEGRITY],
    ),
    "volume key of size zero": (lambda m: _slot(m).update(key_size=0), [Reason.KEYSLOT_KEY_SIZE]),
    "volume key without the MAC's": (lambda m: _slot(m).update(key_size=64), [Reason.KEYSLOT_KEY_SIZE]),
    "unknown field in a keyslot": (lambda m: _slot(m).update(priority=2), [Reason.UNKNOWN_FIELD]),
    "unknown field in an area": (lambda m: _slot(m)["area"].update(x=1), [Reason.UNKNOWN_FIELD]),
    "unknown field in a key derivation": (lambda m: _slot(m)["kdf"].update(x=1), [Reason.UNKNOWN_FIELD]),
    "unknown field in a splitter": (lambda m: _slot(m)["af"].update(x=1), [Reason.UNKNOWN_FIELD]),
    "unknown field in a segment": (lambda m: _segment(m).update(x=1), [Reason.UNKNOWN_FIELD]),
    "unknown field in the integrity": (lambda m: _segment(m)["integrity"].update(x=1), [Reason.UNKNOWN_FIELD]),
    "unknown field in a digest": (lambda m: _digest(m).update(x=1), [Reason.UNKNOWN_FIELD]),
    "unknown field in a token": (lambda m: _tpm2(m).update(x=1), [Reason.UNKNOWN_FIELD]),
    "unknown field in the configuration": (lambda m: m["config"].update(x=1), [Reason.UNKNOWN_FIELD]),
    "unknown field in the evidence": (lambda m: m["tokens"]["1"]["quote"].update(x=""), [Reason.UNKNOWN_FIELD]),
    "field that is missing": (
        lambda m: _segment(m).pop("sector_size"),
        [Reason.MISSING_FIELD],
    ),
    "number where a text belongs": (
        lambda m: _slot(m)["area"].update(offset=524288),
        [Reason.MALFORMED_FIELD],
    ),
    "truth where a number belongs": (
        lambda m: _digest(m).update(iterations=True),
        [Reason.MALFORMED_FIELD, Reason.KDF_COST],
    ),
    "no segment": (lambda m: m["segments"].clear(), [Reason.SEGMENT_COUNT, Reason.DIGEST_COVERAGE]),
    "a second segment": (
        lambda m: m["segments"].update({"1": dict(_segment(m))}),
        [Reason.SEGMENT_COUNT, Reason.DIGEST_COVERAGE],
    ),
    "a plain segment": (
        lambda m: m["segments"].update({"0": {"type": "linear", "offset": "8388608", "size": "dynamic"}}),
        [Reason.MISSING_FIELD, Reason.SEGMENT_TYPE, Reason.SEGMENT_CIPHER, Reason.INTEGRITY],
    ),
    "a backup segment": (
        lambda m: _segment(m).update(flags=["backup-final"]),
        [Reason.SEGMENT_FLAGS],
    ),
    "a segment under another number": (
        lambda m: m["segments"].update({"1": m["segments"].pop("0")}),
        [Reason.SEGMENT_COUNT, Reason.DIGEST_COVERAGE],
    ),
    "a segment that starts in the header": (lambda m: _segment(m).update(offset="0"), [Reason.SEGMENT_BOUNDS]),
    "a segment that starts later": (lambda m: _segment(m).update(offset="16777216"), [Reason.SEGMENT_BOUNDS]),
    "a segment of fixed size": (lambda m: _segment(m).update(size="4096"), [Reason.SEGMENT_BOUNDS]),
    "a segment with shifted tweaks": (lambda m: _segment(m).update(iv_tweak="8"), [Reason.SEGMENT_BOUNDS]),
    "smaller sectors": (lambda m: _segment(m).update(sector_size=512), [Reason.SEGMENT_SECTOR_SIZE]),
    "requirements": (lambda m: m["config"].update(requirements={}), [Reason.REQUIREMENTS]),
    "requirement of an offline reencryption": (
        lambda m: m["config"].update(requirements={"mandatory": ["online-reencrypt-v2"]}),
        [Reason.REQUIREMENTS],
    ),
    "persistent flag for discards": (lambda m: m["config"].update(flags=["allow-discards"]), [Reason.CONFIG_FLAGS]),
    "persistent flag against the journal": (lambda m: m["config"].update(flags=["no-journal"]), [Reason.CONFIG_FLAGS]),
    "another size of the JSON": (lambda m: m["config"].update(json_size="12288"), [Reason.CONFIG_SIZES]),
    "a keyslot area that reaches into the data": (
        lambda m: m["config"].update(keyslots_size="7868416"),
        [Reason.CONFIG_SIZES],
    ),
    "a keyslot of a reencryption": (
        _reencryption,
        [
            Reason.REENCRYPTION,
            Reason.MISSING_FIELD,
            Reason.UNKNOWN_FIELD,
            Reason.KEYSLOT_KEY_SIZE,
            Reason.AREA_TYPE,
            Reason.KEYSLOT_CIPHER,
            Reason.DIGEST_COVERAGE,
            Reason.KEYSLOT_COUNT,
        ],
    ),
    "a keyslot of unknown type": (lambda m: _slot(m).update(type="luks3"), [Reason.KEYSLOT_TYPE]),
    "no keyslot": (
        lambda m: m["keyslots"].clear(),
        [Reason.KEYSLOT_COUNT, Reason.DIGEST_COVERAGE, Reason.TOKEN_BINDING],
    ),
    "a keyslot more, with a passphrase": (_second_slot, [Reason.KDF_COST, Reason.KEYSLOT_COUNT]),
    "an area inside the headers": (
        lambda m: _slot(m)["area"].update(offset="262144"),
        [Reason.AREA_BOUNDS, Reason.AREA_OVERLAP],
    ),
    "an area inside the data": (lambda m: _slot(m)["area"].update(offset="8388608"), [Reason.AREA_BOUNDS]),
    "an area that ends in the data": (lambda m: _slot(m)["area"].update(offset="8384512"), [Reason.AREA_BOUNDS]),
    "an area at an odd place": (lambda m: _slot(m)["area"].update(offset="909313"), [Reason.AREA_BOUNDS]),
    "an area that is too small": (lambda m: _slot(m)["area"].update(size="4096"), [Reason.AREA_BOUNDS]),
    "areas that overlap": (
        lambda m: (_second_slot(m), m["keyslots"]["2"]["area"].update(offset="913408")),
        [Reason.KDF_COST, Reason.AREA_OVERLAP, Reason.KEYSLOT_COUNT],
    ),
    "an area that is not raw": (lambda m: _slot(m)["area"].update(type="journal"), [Reason.AREA_TYPE]),
    "a splitter with one stripe": (lambda m: _slot(m)["af"].update(stripes=1), [Reason.KEYSLOT_SPLITTER]),
    "a splitter with a broken hash": (lambda m: _slot(m)["af"].update(hash="md5"), [Reason.KEYSLOT_SPLITTER]),
    "a key derivation that takes for ever": (
        lambda m: _slot(m)["kdf"].update(iterations=4_000_000_000),
        [Reason.KDF_COST],
    ),
    "a key derivation of one round": (lambda m: _slot(m)["kdf"].update(iterations=1), [Reason.KDF_COST]),
    "a key derivation that needs 4 GiB": (lambda m: _argon2(m, memory=4 << 20), [Reason.KDF_COST]),
    "a key derivation that needs much time": (lambda m: _argon2(m, time=1 << 30), [Reason.KDF_COST]),
    "a key derivation that needs much memory and much time": (
        lambda m: _argon2(m, memory=1 << 20, time=33),
        [Reason.KDF_COST],
    ),
    "a key derivation with a cost below zero": (
        lambda m: _argon2(m, memory=-65536),
        [Reason.MALFORMED_FIELD, Reason.KDF_COST],
    ),
    "a key derivation with many threads": (lambda m: _argon2(m, cpus=1000), [Reason.KDF_COST]),
    "a key derivation with a list for a cost": (
        lambda m: _argon2(m, memory=[]),
        [Reason.MALFORMED_FIELD, Reason.KDF_COST],
    ),
    "a key derivation of another kind": (lambda m: _slot(m)["kdf"].update(type="argon2i"), [Reason.KDF_TYPE]),
    "a key derivation with a broken hash": (lambda m: _slot(m)["kdf"].update(hash="sha1"), [Reason.KDF_TYPE]),
    "a digest that takes for ever": (lambda m: _digest(m).update(iterations=1 << 40), [Reason.KDF_COST]),
    "a digest that takes one round": (lambda m: _digest(m).update(iterations=1), [Reason.KDF_COST]),
    "a digest that covers a keyslot that is not there": (
        lambda m: _digest(m).update(keyslots=["1", "2"]),
        [Reason.DIGEST_COVERAGE],
    ),
    "a digest that does not cover the keyslot": (lambda m: _digest(m).update(keyslots=[]), [Reason.DIGEST_COVERAGE]),
    "a digest that does not cover the segment": (lambda m: _digest(m).update(segments=[]), [Reason.DIGEST_COVERAGE]),
    "a digest that covers a keyslot twice": (
        lambda m: _digest(m).update(keyslots=["1", "1"]),
        [Reason.DIGEST_COVERAGE],
    ),
    "a second digest": (lambda m: m["digests"].update({"1": dict(_digest(m))}), [Reason.DIGEST_COUNT]),
    "no digest": (lambda m: m["digests"].clear(), [Reason.DIGEST_COUNT]),
    "a digest of another kind": (lambda m: _digest(m).update(type="none"), [Reason.DIGEST_TYPE]),
    "a short digest": (lambda m: _digest(m).update(digest="AAAA"), [Reason.MALFORMED_FIELD]),
    "a token of unknown type": (
        lambda m: m["tokens"].update({"2": {"type": "clevis", "keyslots": ["1"]}}),
        [Reason.TOKEN_BINDING, Reason.TOKEN_TYPE],
    ),
    "a token that loads a plugin": (
        lambda m: m["tokens"].update({"2": {"type": "luks2-keyring", "keyslots": [], "key_description": "x"}}),
        [Reason.TOKEN_TYPE],
    ),
    "a TPM token that is bound to nothing": (
        lambda m: _tpm2(m).update(keyslots=[]),
        [Reason.KDF_COST, Reason.TOKEN_BINDING, Reason.KEYSLOT_COUNT],
    ),
    "a TPM token that is bound to a keyslot that is not there": (
        lambda m: _tpm2(m).update(keyslots=["7"]),
        [Reason.KDF_COST, Reason.TOKEN_BINDING, Reason.KEYSLOT_COUNT],
    ),
    "a TPM token with an object for a keyslot": (
        lambda m: _tpm2(m).update(keyslots=[{}]),
        [Reason.KDF_COST, Reason.MALFORMED_FIELD, Reason.TOKEN_BINDING, Reason.KEYSLOT_COUNT],
    ),
    "a second TPM token for the same keyslot": (
        lambda m: m["tokens"].update({"2": dict(_tpm2(m))}),
        [Reason.TOKEN_BINDING],
    ),
    "a third TPM token": (
        lambda m: m["tokens"].update({"2": dict(_tpm2(m)), "3": dict(_tpm2(m))}),
        [Reason.TOKEN_BINDING, Reason.TOKEN_COUNT],
    ),
    "a third piece of evidence": (
        lambda m: m["tokens"].update({"2": dict(m["tokens"]["1"]), "3": dict(m["tokens"]["1"])}),
        [Reason.TOKEN_COUNT],
    ),
    "evidence that is bound to a keyslot": (
        lambda m: m["tokens"]["1"].update(keyslots=["1"]),
        [Reason.TOKEN_BINDING],
    ),
    "no evidence": (lambda m: m["tokens"].pop("1"), [Reason.TOKEN_COUNT]),
    "a third recovery key": (
        lambda m: (
            _recovery(m),
            _second_slot(m, number="3", offset="1679360"),
            _second_slot(m, number="4", offset="2064384"),
            m["tokens"].update({"3": {"type": "systemd-recovery", "keyslots": ["3"]}}),
            m["tokens"].update({"4": {"type": "systemd-recovery", "keyslots": ["4"]}}),
        ),
        [Reason.TOKEN_COUNT],
    ),
    "a recovery token for the TPM's keyslot": (
        lambda m: m["tokens"].update({"2": {"type": "systemd-recovery", "keyslots": ["1"]}}),
        [Reason.TOKEN_BINDING],
    ),
    "a TPM policy without PCR 7": (lambda m: _tpm2(m).update({"tpm2-pcrs": []}), [Reason.TOKEN_POLICY]),
    "a TPM policy without signed PCRs": (
        lambda m: (_tpm2(m).pop("tpm2_pubkey"), _tpm2(m).pop("tpm2_pubkey_pcrs")),
        [Reason.TOKEN_POLICY],
    ),
    "a TPM policy of another image's key": (
        lambda m: _tpm2(m).update(tpm2_pubkey="LS0tLS1CRUdJTg=="),
        [Reason.TOKEN_POLICY],
    ),
    "a TPM policy over a weak bank": (lambda m: _tpm2(m).update({"tpm2-pcr-bank": "sha1"}), [Reason.TOKEN_POLICY]),
    "a TPM keyslot that asks for a PIN": (lambda m: _tpm2(m).update({"tpm2-pin": True}), [Reason.TOKEN_POLICY]),
    "a TPM policy of resettable PCRs only": (
        lambda m: _unsigned(m, {"tpm2-pcrs": [16, 23]}),
        [Reason.TOKEN_UNBOUND],
    ),
    "a TPM policy of no PCR at all": (lambda m: _unsigned(m, {"tpm2-pcrs": []}), [Reason.TOKEN_UNBOUND]),
    "a TPM policy whose digest is that of no condition": (
        lambda m: _tpm2(m).update({"tpm2-policy-hash": "0" * 64}),
        [Reason.TOKEN_UNBOUND],
    ),
    "a TPM policy of several steps without a condition": (
        lambda m: _tpm2(m).update({"tpm2-policy-hash": ["0" * 64, "0" * 64]}),
        [Reason.TOKEN_UNBOUND],
    ),
    "evidence of another version": (lambda m: m["tokens"]["1"].update(version=2), [Reason.MALFORMED_FIELD]),
}


#: Numbers as a lenient reader takes them, and as the specification does not write them.
for text in (
    "+913408",
    "-913408",
    " 913408",
    "913408 ",
    "0913408",
    "913_408",
    "0xdf000",
    "9.13408e5",
    "９１３４０８",
    "",
):
    ATTACKS[f"an area at {text!r}"] = (
        lambda m, text=text: _slot(m)["area"].update(offset=text),
        [Reason.MALFORMED_FIELD],
    )
for text in ("18446744073709551616", "18446744073710464000", "dynamic"):
    ATTACKS[f"an area of {text} bytes"] = (
        lambda m, text=text: _slot(m)["area"].update(size=text),
        [Reason.MALFORMED_FIELD],
    )
    if text != "dynamic":
        ATTACKS[f"a segment of {text} bytes"] = (
            lambda m, text=text: _segment(m).update(size=text),
            [Reason.SEGMENT_BOUNDS],
        )
for name in ("offset", "iv_tweak"):
    ATTACKS[f"a segment whose {name} is dynamic"] = (
        lambda m, name=name: _segment(m).update({name: "dynamic"}),
        [Reason.MALFORMED_FIELD],
    )
for priority in (0, 1, 2, None, "0"):
    ATTACKS[f"a keyslot of priority {priority!r}"] = (
        lambda m, priority=priority: _slot(m).update(priority=priority),
        [Reason.UNKNOWN_FIELD],
    )
for stripes in (0, 3999, 4001, 1 << 31, (1 << 63) - 1):
    ATTACKS[f"a splitter of {stripes} stripes"] = (
        lambda m, stripes=stripes: _slot(m)["af"].update(stripes=stripes),
        [Reason.KEYSLOT_SPLITTER],
    )
for size in (0, 1, 32, 63, 65, 1 << 31, (1 << 63) - 1):
    ATTACKS[f"an area whose key has {size} bytes"] = (
        lambda m, size=size: _slot(m)["area"].update(key_size=size),
        [Reason.KEYSLOT_CIPHER],
    )
for name in ("same-cpu-crypt", "submit-from-crypt-cpus", "no-read-workqueue", "no-write-workqueue", "", "\x1b[2J"):
    ATTACKS[f"the persistent flag {name!r}"] = (
        lambda m, name=name: m["config"].update(flags=[name]),
        [Reason.CONFIG_FLAGS],
    )
for name in ("offline-reencrypt", "online-reencrypt-v3", "inline-hw-tags", "opal", "unknown"):
    ATTACKS[f"the requirement {name}"] = (
        lambda m, name=name: m["config"].update(requirements={"mandatory": [name]}),
        [Reason.REQUIREMENTS],
    )
for iterations in (0, 999, 20_000_001, (1 << 63) - 1):
    ATTACKS[f"a digest of {iterations} rounds"] = (
        lambda m, iterations=iterations: _digest(m).update(iterations=iterations),
        [Reason.KDF_COST],
    )
for name in ("sha1", "SHA256", "md5", "crc32", "whirlpool", "hmac(sha256)"):
    ATTACKS[f"a digest by {name}"] = (lambda m, name=name: _digest(m).update(hash=name), [Reason.KDF_TYPE])
for salt in ("", "AAAA", "A" * 44 + "=", "=" * 44, "A" * 43 + "B" + "=", "A" * 100_000, "\u0430" * 44, "A" * 22):
    ATTACKS[f"a digest with the salt {salt[:46]!r}"] = (
        lambda m, salt=salt: _digest(m).update(salt=salt),
        [Reason.MALFORMED_FIELD],
    )
for pcrs in ([7, 7, 12], [12, 7], [7, 24], [-1, 7], [7, True], ["7"], [[7]], {"7": 1}, [0] * 1000):
    ATTACKS[f"a TPM policy of the PCRs {str(pcrs)[:20]}"] = (
        lambda m, pcrs=pcrs: _tpm2(m).update({"tpm2-pcrs": pcrs}),
        [Reason.MALFORMED_FIELD],
    )
for field in ("tpm2-blob", "tpm2_srk", "tpm2_pubkey", "tpm2_pcrlock_nv"):
    for value in ("A" * 8196, "AB==", "AA", "A A=", "", 1, {}, "\u0410A=="):
        ATTACKS[f"a TPM token whose {field} is {str(value)[:5]!r}"] = (
            lambda m, field=field, value=value: _tpm2(m).update({field: value}),
            [Reason.MALFORMED_FIELD],
        )
ATTACKS |= {
    "an area far beyond the device": (
        lambda m: _slot(m)["area"].update(offset="9223372036854775808"),
        [Reason.AREA_BOUNDS],
    ),
    "an area behind the part for keyslots": (
        lambda m: m["config"].update(keyslots_size="4096"),
        [Reason.AREA_BOUNDS],
    ),
    "a part for keyslots of no size": (lambda m: m["config"].update(keyslots_size="0"), [Reason.AREA_BOUNDS]),
    "a self-encrypting disk": (
        lambda m: _segment(m).update(type="hw-opal", opal_segment_number=1, opal_key_size=32),
        [Reason.SEGMENT_TYPE, Reason.UNKNOWN_FIELD],
    ),
    "a self-encrypting disk below the encryption": (
        lambda m: _segment(m).update(type="hw-opal-crypt"),
        [Reason.SEGMENT_TYPE],
    ),
    "a journal with a MAC that needs another key": (
        lambda m: _segment(m)["integrity"].update(journal_integrity="hmac(sha256)"),
        [Reason.INTEGRITY],
    ),
    "integrity by a list": (
        lambda m: _segment(m).update(integrity=["hmac(sha256)"]),
        [Reason.MALFORMED_FIELD],
    ),
    "integrity by a checksum": (lambda m: _segment(m)["integrity"].update(type="crc32c"), [Reason.INTEGRITY]),
    "no flags in a way that is no list": (
        lambda m: m["config"].update(flags={}),
        [Reason.MALFORMED_FIELD],
    ),
    "a digest that names its keyslots by numbers": (
        lambda m: _digest(m).update(keyslots=[1]),
        [Reason.MALFORMED_FIELD],
    ),
    "a digest with all texts for its keyslots": (
        lambda m: _digest(m).update(keyslots=["1"] + [""] * 4000),
        [Reason.MALFORMED_FIELD, Reason.DIGEST_COVERAGE],
    ),
    "a token that names its keyslot by a number": (
        lambda m: _tpm2(m).update(keyslots=[1]),
        [Reason.KDF_COST, Reason.KEYSLOT_COUNT, Reason.MALFORMED_FIELD, Reason.TOKEN_BINDING],
    ),
    "a token that names its keyslot with a zero in front": (
        lambda m: _tpm2(m).update(keyslots=["01"]),
        [Reason.KDF_COST, Reason.KEYSLOT_COUNT, Reason.TOKEN_BINDING],
    ),
    "a token that names its keyslot twice": (
        lambda m: _tpm2(m).update(keyslots=["1", "1"]),
        [Reason.TOKEN_BINDING],
    ),
    "a volume key one byte longer": (lambda m: _slot(m).update(key_size=97), [Reason.KEYSLOT_KEY_SIZE]),
    "a TPM parent key of an unknown kind": (
        lambda m: _tpm2(m).update({"tpm2-primary-alg": "sm2"}),
        [Reason.MALFORMED_FIELD],
    ),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_is_refused_for_its_own_reasons(forger, expected, name):
    edit, reasons = ATTACKS[name]
    header = Header.parse(forger.edited(edit))
    assert sorted(judge(header, expected).reasons) == sorted(reasons)


@pytest.mark.parametrize(
    ("name", "reasons"),
    [
        ("null-cipher", {Reason.NULL_CIPHER, Reason.KEYSLOT_KEY_SIZE}),
        ("reencrypting", {Reason.REQUIREMENTS, Reason.REENCRYPTION, Reason.SEGMENT_FLAGS, Reason.DIGEST_COUNT}),
        ("decrypting", {Reason.REQUIREMENTS, Reason.REENCRYPTION, Reason.SEGMENT_BOUNDS, Reason.SEGMENT_TYPE}),
        ("encrypting", {Reason.REQUIREMENTS, Reason.REENCRYPTION, Reason.SEGMENT_TYPE, Reason.SEGMENT_COUNT}),
        ("unbound", {Reason.TOKEN_UNBOUND}),
    ],
)
def test_what_native_tools_make_and_open_is_refused_all_the_same(forger, expected, name, reasons):
    header = Header.parse(forger.hostile(name))
    for expectation in (expected, *(data_volume(profile=profile) for profile in PROFILES.values())):
        assert reasons <= set(judge(header, expectation).reasons), expectation.profile.name


def test_every_hostile_header_has_its_test(request):
    names = {path.stem for path in (request.path.parent / "fixtures/hostile").glob("*.xz")}
    assert names == {"null-cipher", "reencrypting", "decrypting", "encrypting", "unbound"}


def test_what_systemd_enrols_by_default_is_refused_for_that_and_nothing_else(forger):
    assert judge(Header.parse(forger.hostile("unbound")), data_volume()).reasons == (Reason.TOKEN_UNBOUND,)


def test_every_reason_has_an_attack():
    covered = {reason for _edit, reasons in ATTACKS.values() for reason in reasons}
    elsewhere = {Reason.UUID, Reason.LABEL, Reason.METADATA_SIZE, Reason.DEVICE_SIZE}
    assert covered | elsewhere == set(Reason)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({168: b"6b2f0e55"}, Reason.UUID),
        ({24: b"label"}, Reason.LABEL),
        ({208: b"subsystem"}, Reason.LABEL),
    ],
)
def test_the_names_in_the_binary_header_are_judged_too(forger, expected, changes, reason):
    assert judge(Header.parse(forger.with_bytes(changes)), expected).reasons == (reason,)


def test_a_layout_other_than_expected_is_refused(forger, expected):
    other = Expectation(layout=Layout(metadata_size=16 << 10), tokens=expected.tokens, tpm2=expected.tpm2)
    assert Reason.METADATA_SIZE in judge(Header.parse(forger.genuine()), other).reasons


def test_a_genuine_volume_of_another_profile_is_refused(forger):
    for profile in (AEGIS, CONFIDENTIAL):
        header = Header.parse(forger.genuine("2.8.8-authenticated"))
        reasons = judge(header, Expectation(profile=profile, passphrases=(1, 1))).reasons
        assert {Reason.INTEGRITY, Reason.KEYSLOT_KEY_SIZE} <= set(reasons)


def test_all_that_is_wrong_is_named_at_once(forger, expected):
    def edit(metadata):
        _segment(metadata).update(encryption="cipher_null-ecb", flags=["backup-final"])
        metadata["config"].update(requirements={"mandatory": []})

    with pytest.raises(Refusal) as caught:
        judge(Header.parse(forger.edited(edit)), expected).require("/dev/sdx")
    assert (caught.value.code, caught.value.subject) == ("luks2-policy", "/dev/sdx")
    for named in ("null-cipher at segments.0.encryption", "segment-flags at", "requirements at config.requirements"):
        assert named in str(caught.value)


def test_what_a_forger_writes_never_reaches_the_console_as_it_is(forger, expected):
    def edit(metadata):
        metadata["config"]["\x1b[2Jnew\nline"] = "\x1b[31m" * 1000
        _segment(metadata).update(size="\x1b[2J")

    judgement = judge(Header.parse(forger.edited(edit)), expected)
    with pytest.raises(Refusal) as caught:
        judgement.require("/dev/sdx")
    assert judgement.reasons == (Reason.UNKNOWN_FIELD, Reason.SEGMENT_BOUNDS)
    shown = [text for violation in judgement.violations for text in (violation.where, violation.found)]
    assert all(text.isprintable() for text in [str(caught.value), *shown])
    assert len(str(caught.value)) < 1000


def _flooded(metadata):
    """As much that is wrong as the reader lets through, in the longest words."""
    _segment(metadata).update(encryption="cipher_null-ecb")
    for section, most in (("segments", 32), ("digests", 8), ("keyslots", 32), ("tokens", 32)):
        for number in range(most):
            entry = metadata[section].setdefault(str(number), {"type": "x" * 1000})
            entry.update({f"\U0010ffff{field}".ljust(60, "\x1b"): "\x9b" * 100 for field in range(34)})


def _flood(forger):
    metadata = json.loads(json.dumps(forger.metadata(forger.genuine())))
    _flooded(metadata)
    return forger.with_large_json(json.dumps(metadata, ensure_ascii=False).encode())


def test_no_header_makes_a_long_report_and_what_is_left_out_is_counted(forger, expected):
    judgement = judge(Header.parse(_flood(forger)), expected)
    with pytest.raises(Refusal) as caught:
        judgement.require("/dev/sdx")
    assert len(judgement.violations) == MAX_VIOLATIONS
    assert judgement.more > 3000
    assert max(len(violation.found) for violation in judgement.violations) == 80
    assert max(len(violation.where) for violation in judgement.violations) < 150
    assert 500 < len(str(caught.value)) < 2500
    assert f" and {judgement.more + MAX_VIOLATIONS - 12} more" in str(caught.value)
    assert str(caught.value).isprintable()


def test_a_reason_is_kept_however_much_else_is_wrong(forger, expected):
    judgement = judge(Header.parse(_flood(forger)), expected)
    assert {
        *(Reason.SEGMENT_COUNT, Reason.NULL_CIPHER, Reason.KEYSLOT_COUNT, Reason.KEYSLOT_TYPE, Reason.DIGEST_COUNT),
        *(Reason.DIGEST_COVERAGE, Reason.TOKEN_TYPE, Reason.UNKNOWN_FIELD, Reason.METADATA_SIZE),
    } <= set(judgement.reasons)
    assert len(Reason) <= MAX_VIOLATIONS


def test_a_few_violations_are_named_one_by_one(forger, expected):
    judgement = judge(Header.parse(forger.edited(lambda m: _slot(m).update(key_size=0))), expected)
    assert (len(judgement.violations), judgement.more) == (1, 0)
    with pytest.raises(Refusal, match=r"\(keyslot-key-size at keyslots\.1\.key_size\)\. "):
        judgement.require("/dev/sdx")


@pytest.mark.parametrize(
    "edit",
    [
        _recovery,
        _second_tpm2,
        lambda m: m["tokens"].update({"2": dict(m["tokens"]["1"])}),
    ],
    ids=["a recovery key", "a second TPM keyslot", "the evidence of a recovery"],
)
def test_what_a_root_volume_may_have_besides_is_accepted(forger, expected, edit):
    assert judge(Header.parse(forger.edited(edit)), expected).violations == ()


def test_a_second_tpm_keyslot_may_be_bound_to_a_further_key_of_the_image_and_to_no_other(forger, public_key):
    other = public_key.replace(b"A", b"B", 1)
    header = Header.parse(forger.edited(lambda m: _second_tpm2(m, tpm2_pubkey=base64.b64encode(other).decode())))
    assert judge(header, root_volume(public_key=public_key)).reasons == (Reason.TOKEN_POLICY,)
    assert judge(header, root_volume(public_key=public_key, further_keys=[other])).accepted


def _data(forger, methods, edit=lambda metadata: None, **options):
    header = Header.parse(forger.edited(edit, forger.genuine("2.8.8-authenticated")))
    return judge(header, data_volume(methods=methods, **options)).reasons


def test_a_data_volume_has_exactly_the_unlock_methods_that_are_wanted(forger):
    assert _data(forger, None) == ()
    assert _data(forger, [Passphrase()]) == ()
    assert _data(forger, []) == (Reason.KEYSLOT_COUNT,)
    assert _data(forger, [Passphrase(), Recovery()]) == (Reason.TOKEN_COUNT,)
    assert _data(forger, [Tpm2()]) == (Reason.TOKEN_COUNT, Reason.KEYSLOT_COUNT)


def _methods(forger, public_key, changes, *methods):
    """Judge the root's header as that of a data volume whose TPM token was changed."""

    def edit(metadata):
        metadata["tokens"].pop("1")
        for name, value in changes.items():
            _tpm2(metadata).update({name: value}) if value is not None else _tpm2(metadata).pop(name)

    return judge(Header.parse(forger.edited(edit)), data_volume(methods=methods)).reasons


def test_the_tpm_keyslot_of_a_data_volume_is_bound_as_it_is_wanted(forger, public_key):
    signed = Tpm2(pcrs=(7, 12), public_key=public_key)
    assert _methods(forger, public_key, {}, signed) == ()
    for other in (Tpm2(pcrs=(7,), public_key=public_key), Tpm2(pcrs=(7, 12)), replace(signed, pcrlock=True)):
        assert _methods(forger, public_key, {}, other) == (Reason.TOKEN_POLICY,)
    unsigned = {"tpm2_pubkey": None, "tpm2_pubkey_pcrs": None}
    assert _methods(forger, public_key, unsigned, Tpm2(pcrs=(7, 12))) == ()
    assert _methods(forger, public_key, {"tpm2_pcrlock": True}, replace(signed, pcrlock=True)) == ()


def test_a_keyslot_that_asks_for_a_pin_is_never_accepted(forger):
    def edit(metadata):
        metadata["tokens"].pop("1")
        _tpm2(metadata).update({"tpm2-pin": True})

    assert judge(Header.parse(forger.edited(edit)), data_volume()).reasons == (Reason.TOKEN_POLICY,)


_PRIVATE = base64.b64encode(
    b"-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIAABAgMEBQYHCAkKCwwNDg8=\n-----END PRIVATE KEY-----\n"
).decode()
_GARBAGE = base64.b64encode(b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n").decode()
_LONG = base64.b64encode(b"-----BEGIN PUBLIC KEY-----\n" + b"MIIB" * 1024 + b"\n-----END PUBLIC KEY-----\n").decode()
#: What is done to a TPM token whose policy is signed; None takes a field away.
_TPM2_ATTACKS = {
    "a key without the PCRs that it signs": ({"tpm2_pubkey_pcrs": None}, Reason.TOKEN_POLICY),
    "a key with an empty list of PCRs": ({"tpm2_pubkey_pcrs": []}, Reason.TOKEN_POLICY),
    "signed PCRs without a key": ({"tpm2_pubkey": None}, Reason.TOKEN_POLICY),
    "an empty key": ({"tpm2_pubkey": ""}, Reason.MALFORMED_FIELD),
    "a key that is no PEM": ({"tpm2_pubkey": "AAAA"}, Reason.TOKEN_POLICY),
    "a key that is none": ({"tpm2_pubkey": _GARBAGE}, Reason.TOKEN_POLICY),
    "a private key": ({"tpm2_pubkey": _PRIVATE}, Reason.TOKEN_POLICY),
    "a key of four thousand bytes": ({"tpm2_pubkey": _LONG}, Reason.TOKEN_POLICY),
    "a key in base64 that is not canonical": ({"tpm2_pubkey": "AB=="}, Reason.MALFORMED_FIELD),
    "no condition": (
        {"tpm2_pubkey": None, "tpm2_pubkey_pcrs": None, "tpm2-pcrs": []},
        Reason.TOKEN_UNBOUND,
    ),
    "no condition, and no bank either": (
        {"tpm2_pubkey": None, "tpm2_pubkey_pcrs": None, "tpm2-pcrs": [], "tpm2-pcr-bank": None},
        Reason.TOKEN_UNBOUND,
    ),
    "resettable PCRs": (
        {"tpm2_pubkey": None, "tpm2_pubkey_pcrs": None, "tpm2-pcrs": [16, 23]},
        Reason.TOKEN_UNBOUND,
    ),
    "the digest of no condition": ({"tpm2-policy-hash": "0" * 64}, Reason.TOKEN_UNBOUND),
    "a weak bank": ({"tpm2-pcr-bank": "sha1"}, Reason.TOKEN_POLICY),
    "no bank": ({"tpm2-pcr-bank": None}, Reason.TOKEN_POLICY),
    "a PIN": ({"tpm2-pin": True}, Reason.TOKEN_POLICY),
    "a salt, which only a PIN needs": ({"tpm2_salt": "AAAA"}, Reason.UNKNOWN_FIELD),
}


@pytest.mark.parametrize("fixture", ["2.7.5-data", "2.8.8-data"])
@pytest.mark.parametrize("name", _TPM2_ATTACKS)
def test_a_tpm_keyslot_that_makes_no_sense_is_refused_whatever_was_wanted(forger, fixture, name):
    changes, reason = _TPM2_ATTACKS[name]

    def edit(metadata):
        token = metadata["tokens"]["1"]
        for field, value in changes.items():
            token.update({field: value}) if value is not None else token.pop(field, None)

    header = Header.parse(forger.edited(edit, forger.genuine(fixture)))
    assert judge(header, data_volume()).reasons == (reason,)


@pytest.mark.parametrize("fixture", ["2.7.5-data", "2.8.8-data"])
def test_the_tokens_of_systemd_257_and_262_are_what_they_say(forger, fixture):
    header = Header.parse(forger.genuine(fixture))
    literal, passphrase, signed, recovery = (slot.method for slot in enrolled(header))
    assert (literal, passphrase, recovery) == (Tpm2(pcrs=(7,)), Passphrase(), Recovery())
    assert (signed.pcrs, signed.public_key_pcrs, signed.pcrlock) == ((7, 12), (11,), False)
    assert judge(header, data_volume(methods=[literal, passphrase, signed, recovery])).accepted
    for others in ([literal, passphrase, recovery], [literal, literal, passphrase, recovery]):
        assert not judge(header, data_volume(methods=others)).accepted


def test_a_flag_twice_is_refused(forger):
    assert _data(forger, None, lambda m: m["config"].update(flags=["no-journal"] * 2)) == (Reason.CONFIG_FLAGS,)


def test_a_volume_without_a_journal_says_so_in_its_header(forger):
    def edit(metadata):
        metadata["config"]["flags"] = ["no-journal"]

    assert _data(forger, None, edit) == _data(forger, None, edit, journal=False) == ()
    assert _data(forger, None, edit, journal=True) == (Reason.CONFIG_FLAGS,)
    assert _data(forger, None, journal=False) == (Reason.CONFIG_FLAGS,)


_PATHS = st.lists(st.integers(0, 30), min_size=1, max_size=5)
_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63) + 1, 2**63 - 1) | st.text(max_size=10),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=5), children, max_size=3),
    max_leaves=5,
)


@settings(max_examples=500)
@given(path=_PATHS, value=_VALUES)
def test_any_value_at_any_place_is_judged_without_a_crash(forger, expected, path, value):
    def edit(metadata):
        place = metadata
        for step in path:
            keys = sorted(place) if isinstance(place, dict) else range(len(place))
            key = list(keys)[step % len(keys)] if keys else None
            if key is None or not isinstance(place[key], (dict, list)) or step is path[-1]:
                break
            place = place[key]
        if key is not None:
            place[key] = value

    try:
        header = Header.parse(forger.edited(edit))
    except HeaderError:
        return
    changed = header.metadata != forger.metadata(forger.genuine())
    if changed:
        judgement = judge(header, expected)
        assert all(violation.found.isprintable() for violation in judgement.violations)


_TOKEN_FIELDS = st.sampled_from(
    [
        *("tpm2-pcrs", "tpm2_pubkey_pcrs", "tpm2_pubkey", "tpm2-pcr-bank", "tpm2-policy-hash", "tpm2_pcrlock"),
        *("tpm2-pin", "tpm2_srk", "tpm2-blob", "tpm2-primary-alg", "keyslots", "type"),
    ]
)
_TOKEN_VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.lists(st.integers(-1, 25), max_size=4),
    st.lists(st.sampled_from(["0", "1", "2", "3", "4", "00"]), max_size=2),
    st.sampled_from(["", "AAAA", "sha256", "sha1", "ecc", "0" * 64, "f" * 64, _GARBAGE, _PRIVATE]),
    st.sampled_from(["systemd-tpm2", "systemd-recovery"]),
    st.text(alphabet="aA0=+/ \x1b", max_size=10),
)


@settings(max_examples=500)
@given(changes=st.dictionaries(_TOKEN_FIELDS, _TOKEN_VALUES, max_size=4), token=st.sampled_from(["0", "1", "2"]))
def test_whatever_is_accepted_of_a_token_can_be_read_and_binds(forger, changes, token):
    def edit(metadata):
        for field, value in changes.items():
            metadata["tokens"][token].pop(field, None)
            if value is not None:
                metadata["tokens"][token][field] = value

    try:
        header = Header.parse(forger.edited(edit, forger.genuine("2.8.8-data")))
    except HeaderError:
        # A token without a type is none.
        assert "type" in changes
        return
    if judge(header, data_volume()).accepted:
        methods = [slot.method for slot in enrolled(header)]
        assert len(methods) == 4
        assert all(method.bound for method in methods if isinstance(method, Tpm2))
