# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One quote, whole: which key signed it, which nonce it answers, which PCRs it covers, and what they hold.

`verify_quote` is all of that at once; the checks of an appraisal are its steps, one by one, so that a result names the
one that failed. That a quote is good says nothing about who holds its key: that is what a road establishes (``roads``).
Source: TPM 2.0 Library part 3, TPM2_Quote; part 1, section 16 (qualified names) and 31.3 (restricted signing keys).
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from typing import Optional, Union

from cryptography.hazmat.primitives.asymmetric import ec, rsa

from ...module_utils.tpm import templates as tpm
from .errors import AppraisalError
from .structures import (
    CURVES,
    Attest,
    PublicArea,
    QuoteAttest,
    Scheme,
    Selection,
    Signature,
    Values,
    VerifyingKey,
    parse_quote,
    parse_signature,
    pcr_digest,
    qualified_name,
    same_selection,
    verify_by,
    verify_signature,
)

_CURVES = frozenset(curve.name for curve in CURVES.values())


@dataclass(frozen=True)
class VerifiedQuote:
    """A quote that is good. ``values`` are those of just the PCRs that were asked for.

    ``attestation_key`` is None where only a bare key was given. Then nothing says that the key signs only what a TPM
    made: such a quote is evidence of nothing, whatever its signature, and no road accepts it.
    """

    attest: QuoteAttest
    scheme: Scheme
    values: Values
    attestation_key: Optional[PublicArea]


def verify_quote(
    key: Union[PublicArea, VerifyingKey],
    attest: bytes,
    signature: Union[bytes, Signature],
    nonce: bytes,
    selection: Selection,
    values: Values,
    endorsement: Optional[PublicArea] = None,
) -> VerifiedQuote:
    """Verify a quote against what was asked, and return it.

    ``key`` is the attestation key's TPMT_PUBLIC, whose attributes, scheme and qualified name are then judged too, or
    the bare key. ``attest`` is a TPMS_ATTEST, ``signature`` a TPMT_SIGNATURE, or its parts where a platform gives no
    more. ``nonce`` and ``selection`` are the caller's own and not empty. ``endorsement`` is the endorsement key whose
    child the attestation key may be, see `require_signer`. Raises ``AppraisalError``.
    """
    if not nonce or not any(selection.values()):
        raise ValueError("a quote is verified against a nonce and a selection that the caller chose")
    quote = parse_quote(attest)
    parsed = parse_signature(signature) if isinstance(signature, bytes) else signature
    if isinstance(key, PublicArea):
        require_attestation_key(key)
        require_signature(key, parsed, quote, "quote", endorsement)
    else:
        _require_strength(key)
        verify_signature(key, parsed, quote.raw)
    require_nonce(quote, nonce, "quote")
    require_selection(quote, selection, "quote")
    require_values(quote, values, parsed.scheme.hash_name)
    return VerifiedQuote(quote, parsed.scheme, values, key if isinstance(key, PublicArea) else None)


def require_attestation_key(key: PublicArea) -> None:
    """Check that a key signs only what its TPM made, never left that TPM, and does nothing else."""
    if not key.has(tpm.RESTRICTED | tpm.SIGN | tpm.FIXED_TPM | tpm.FIXED_PARENT):
        raise AppraisalError("bad-attestation-key", "the attestation key may sign what the TPM did not make")
    if key.has(tpm.DECRYPT):
        raise AppraisalError("bad-attestation-key", "the attestation key can decrypt")
    if not key.has(tpm.SENSITIVE_DATA_ORIGIN):
        raise AppraisalError("bad-attestation-key", "the attestation key was not made in the TPM")
    if key.scheme is None or key.scheme.hash_name == "sha1":
        raise AppraisalError("bad-attestation-key", "the attestation key does not fix a scheme with a good hash")


def require_signature(
    key: PublicArea,
    signature: Union[bytes, Signature],
    statement: Attest,
    what: str,
    endorsement: Optional[PublicArea] = None,
) -> None:
    """Check that a key signed a statement, by its own scheme, and that the statement names it as its signer."""
    verify_by(key, signature, statement.raw)
    require_signer(key, statement.qualified_signer, what, endorsement)


def require_signer(key: PublicArea, signer: bytes, what: str, endorsement: Optional[PublicArea] = None) -> None:
    """Check that a statement's qualified signer is this key.

    The name tells which key is above the signer: either none, in the endorsement hierarchy, or ``endorsement``, as for
    keys by tpm2_createak. A key elsewhere in the TPM is refused, since nobody says what is above it.
    """
    legal = [qualified_name(key)]
    if endorsement is not None:
        legal.append(qualified_name(key, endorsement))
    if not any(hmac.compare_digest(signer, name) for name in legal):
        raise AppraisalError("other-signer", f"the {what} names another signer than the attestation key")


def require_nonce(statement: Attest, nonce: bytes, what: str) -> None:
    """Check that a statement was made for just this nonce."""
    if not hmac.compare_digest(statement.extra_data, nonce):
        raise AppraisalError("other-nonce", f"the {what} answers another nonce: it is old, or another machine's")


def require_selection(quote: QuoteAttest, selection: Selection, what: str) -> None:
    """Check that a quote covers exactly the banks and PCRs that were asked for: a digest alone does not say which."""
    if not same_selection(quote.selection, selection):
        raise AppraisalError("other-selection", f"the {what} covers other PCRs than were asked for")


def require_values(quote: QuoteAttest, values: Values, hash_name: str) -> None:
    """Check that these are the values of the PCRs that a quote covers.

    ``hash_name`` is the hash of the signature's scheme, by which the TPM makes the digest whatever the banks are.
    """
    if not hmac.compare_digest(pcr_digest(quote, values, hash_name), quote.pcr_digest):
        raise AppraisalError("pcr-values", "the PCR values are not those that were quoted")


def _require_strength(key: VerifyingKey) -> None:
    """Refuse a bare key that no TPMT_PUBLIC could hold here."""
    if isinstance(key, rsa.RSAPublicKey):
        weak = key.key_size not in (2048, 3072, 4096) or key.public_numbers().e != 65537
    else:
        weak = not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name not in _CURVES
    if weak:
        raise AppraisalError("bad-key", "the key is neither RSA of 2048 bits or more nor on a NIST curve")
