# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Deviations of single parts of a header, as the allow-list names them."""

from __future__ import annotations

import base64
from typing import Any, Iterator, Mapping

from . import fields, stretching
from .expectation import Reason, Tpm2Binding, Violation
from .fields import is_count, shown
from .method import Tpm2, is_public_key, same_key

_HASHES = ("sha256", "sha512")
_BANKS = ("sha256", "sha384", "sha512")


def shape_deviations(where: str, found: Mapping[str, Any], shape: fields.Shape) -> Iterator[Violation]:
    for flaw, place, value in fields.deviations(where, found, shape):
        yield Violation(Reason(flaw.value), place, value)


def cipher_deviation(where: str, found: Mapping[str, Any], expected: str, reason: Reason) -> Iterator[Violation]:
    encryption = found.get("encryption")
    if encryption != expected:
        null = isinstance(encryption, str) and "null" in encryption.lower()
        yield Violation(Reason.NULL_CIPHER if null else reason, where, shown(encryption))


def pbkdf2_deviations(where: str, kdf: Mapping[str, Any], least: int) -> Iterator[Violation]:
    if kdf.get("hash") not in _HASHES:
        yield Violation(Reason.KDF_TYPE, f"{where}.hash", shown(kdf.get("hash")))
    iterations = kdf.get("iterations")
    if not is_count(iterations) or not least <= int(iterations or 0) <= stretching.MAXIMUM:
        yield Violation(Reason.KDF_COST, f"{where}.iterations", shown(iterations))


def argon2_deviations(where: str, kdf: Mapping[str, Any]) -> Iterator[Violation]:
    bad = [name for name, values in stretching.ARGON2.items() if not is_count(kdf.get(name)) or kdf[name] not in values]
    for name in bad:
        yield Violation(Reason.KDF_COST, f"{where}.{name}", shown(kdf.get(name)))
    if not bad and kdf["memory"] * kdf["time"] > stretching.ARGON2_MOST:
        yield Violation(Reason.KDF_COST, where, f"{kdf['time']} rounds over {kdf['memory']} KiB")


def evidence_deviations(where: str, token: Mapping[str, Any]) -> Iterator[Violation]:
    """Only the form; what the evidence is worth is the verifier's question."""
    yield from shape_deviations(f"{where}.quote", token["quote"], fields.QUOTE)
    yield from shape_deviations(f"{where}.pcrs", token["pcrs"], fields.PCRS)
    if token["version"] != 1:
        yield Violation(Reason.MALFORMED_FIELD, f"{where}.version", str(token["version"]))


def tpm2_flaws(where: str, token: Mapping[str, Any]) -> Iterator[Violation]:
    """Yield what no binding of a TPM keyslot explains: parts that do not fit, and a policy that asks for nothing."""
    if token.get("tpm2-pin", False):
        # Nobody is there to type it, and whoever asks for it waits for ever.
        yield Violation(Reason.TOKEN_POLICY, f"{where}.tpm2-pin", "true")
    key, signed = token.get("tpm2_pubkey"), token.get("tpm2_pubkey_pcrs", [])
    if (signed or token["tpm2-pcrs"]) and token.get("tpm2-pcr-bank") not in _BANKS:
        yield Violation(Reason.TOKEN_POLICY, f"{where}.tpm2-pcr-bank", shown(token.get("tpm2-pcr-bank")))
    if key is not None and not is_public_key(base64.b64decode(key)):
        yield Violation(Reason.TOKEN_POLICY, f"{where}.tpm2_pubkey", "no public key in PEM form")
    elif (key is None) is bool(signed):
        what = "PCRs without a key that signs them" if signed else "a key without PCRs that it signs"
        yield Violation(Reason.TOKEN_POLICY, f"{where}.tpm2_pubkey_pcrs", what)
    elif not Tpm2.told(token).bound or not any(_digests(token["tpm2-policy-hash"])):
        yield Violation(Reason.TOKEN_UNBOUND, where, "any system on this TPM can open it")


def _digests(policy: Any) -> Iterator[str]:
    """Yield the digests of a policy's steps; nothing but zeros is a policy without conditions."""
    for digest in policy if isinstance(policy, list) else [policy]:
        yield digest.strip("0")


def tpm2_deviations(where: str, token: Mapping[str, Any], binding: Tpm2Binding) -> Iterator[Violation]:
    signed = bool(binding.public_key_pcrs)
    expected = {
        "tpm2-pcrs": sorted(binding.pcrs),
        "tpm2_pubkey_pcrs": sorted(binding.public_key_pcrs) if signed else None,
        "tpm2-pcr-bank": "sha256" if signed or binding.pcrs else None,
        "tpm2_pcrlock": binding.pcrlock,
    }
    for name, value in expected.items():
        default = False if isinstance(value, bool) else None
        if token.get(name, default) != value:
            yield Violation(Reason.TOKEN_POLICY, f"{where}.{name}", shown(token.get(name)))
    key = base64.b64decode(token.get("tpm2_pubkey", ""))
    if not signed:
        if key:
            yield Violation(Reason.TOKEN_POLICY, f"{where}.tpm2_pubkey", "a key")
    elif not key or (binding.public_key is not None and not same_key(key, binding.public_key)):
        yield Violation(Reason.TOKEN_POLICY, f"{where}.tpm2_pubkey", "another key" if key else "no key")
