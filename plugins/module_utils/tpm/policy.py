# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Signed PCR policies: who may use a TPM object is decided by the image's key, at each boot phase it has signed.

The image carries a public key and signatures over PCR 11 policies (the UKI's sections ``.pcrpkey`` and ``.pcrsig``);
an object whose policy is PolicyAuthorize(that key) opens while PCR 11 has one of the signed values.
What PCR 11 is extended by is public, so any system that runs on the TPM can bring it to a signed value. Only firmware
decides about PCR 7 (what may boot) and PCR 12 (configuration from outside the image); what must be out of reach of
other systems is therefore bound to the values of these two as well.
Sources: TPM 2.0 Library part 1, section 19.7 (policy digests), part 3, TPM2_PolicyAuthorize; systemd
``src/shared/tpm2-util.c`` (``tpm2_tpm2b_public_from_openssl_pkey``, ``tpm2_policy_authorize``).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import struct
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Callable, Iterator, Mapping, Optional, Sequence, TypeVar

from ..errors import FdeError
from .esys import flushed, tss
from .quote import ATTEMPTS, PcrsChanged, read_pcrs, selection_text
from .templates import ALG_NULL, ALG_RSA, ALG_SHA256, DECRYPT, SIGN, USER_WITH_AUTH

#: Where systemd's tmpfiles put the two sections of the UKI.
PUBLIC_KEY_FILE = "/run/systemd/tpm2-pcr-public-key.pem"
SIGNATURE_FILE = "/run/systemd/tpm2-pcr-signature.json"
#: The PCR that the stub and systemd's boot phases extend, and the only one that signed policies name.
PHASE_PCR = 11
#: PCRs that must keep the values of the first boot: which keys decide what may boot, and that nothing but the image
#: configured the boot.
BOUND_PCRS = (7, 12)

_T = TypeVar("_T")
#: TPM_RC_PCR_CHANGED: some PCR was extended since the session's first PolicyPCR (part 2, section 6.6).
_PCR_CHANGED = 0x128
_CC_POLICY_PCR = 0x0000017F
_CC_POLICY_AUTHORIZE = 0x0000016A
_RSA_ENCRYPTION = bytes.fromhex("06092a864886f70d0101010500")
_SIGNATURES_LIMIT = 256 * 1024


class PolicyError(FdeError):
    """A signed policy, or its key, cannot be used; ``subject`` says which file."""


@dataclass(frozen=True)
class PolicyKey:
    """The RSA public key whose holder signs PCR policies.

    ``der`` is its SubjectPublicKeyInfo, ``pkcs1`` the RSAPublicKey inside of it.
    """

    der: bytes
    pkcs1: bytes
    modulus: bytes
    exponent: int

    @classmethod
    def from_pem(cls, pem: bytes, source: str = PUBLIC_KEY_FILE) -> PolicyKey:
        """Read a PEM "PUBLIC KEY". Raises ``PolicyError`` when it is not one RSA key of 2048 to 4096 bits."""
        try:
            der = _pem_body(pem)
            pkcs1, modulus, exponent = _rsa_key(der)
        except (ValueError, IndexError) as error:
            raise PolicyError(source, f"it is not an RSA public key in PEM: {error}", "Seal the image again") from error
        if not 256 <= len(modulus) <= 512 or not 0x10001 <= exponent < 1 << 32:
            raise PolicyError(source, f"an RSA key of {8 * len(modulus)} bits is not accepted", "Use RSA-2048")
        return cls(der, pkcs1, modulus, exponent)

    @property
    def public(self) -> bytes:
        """The TPMT_PUBLIC that systemd makes of this key; every policy that names the key depends on each bit of it."""
        attributes = DECRYPT | SIGN | USER_WITH_AUTH
        return (
            struct.pack(">HHIH", ALG_RSA, ALG_SHA256, attributes, 0)
            + struct.pack(">HHHI", ALG_NULL, ALG_NULL, 8 * len(self.modulus), self.exponent)
            + struct.pack(">H", len(self.modulus))
            + self.modulus
        )

    @property
    def name(self) -> bytes:
        """The Name that TPM2_LoadExternal gives the key."""
        return object_name(self.public)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the SubjectPublicKeyInfo in hex, as the rest of the world names keys."""
        return hashlib.sha256(self.der).hexdigest()

    @property
    def pkfp(self) -> str:
        """SHA-256 of the PKCS #1 RSAPublicKey in hex, as ``.pcrsig`` names the key (systemd ``pubkey_fingerprint``)."""
        return hashlib.sha256(self.pkcs1).hexdigest()

    @property
    def policy(self) -> bytes:
        """The digest of PolicyAuthorize(this key) without a policy reference."""
        start = hashlib.sha256(bytes(32) + struct.pack(">I", _CC_POLICY_AUTHORIZE) + self.name).digest()
        return hashlib.sha256(start).digest()


@dataclass(frozen=True)
class SignedPolicy:
    """One entry of ``.pcrsig``: the policy digest of a boot phase, and the signature over it."""

    pkfp: str
    digest: bytes
    signature: bytes


def object_name(area: bytes) -> bytes:
    """Return the Name of a public area whose name algorithm is SHA-256."""
    return struct.pack(">H", ALG_SHA256) + hashlib.sha256(area).digest()


def pcr_policy(pcr: int, value: bytes) -> bytes:
    """Return the digest of PolicyPCR over one PCR of the SHA-256 bank, from an empty policy."""
    return _and_pcrs(bytes(32), {pcr: value})


def bound_policy(key: PolicyKey, values: Mapping[int, bytes]) -> bytes:
    """Return the digest of PolicyAuthorize(``key``) and then PolicyPCR over ``BOUND_PCRS`` with these values."""
    return _and_pcrs(key.policy, {pcr: values[pcr] for pcr in BOUND_PCRS})


def bound_values(esys: Any) -> dict[int, bytes]:
    """Return the present values of ``BOUND_PCRS`` in the SHA-256 bank."""
    return read_pcrs(esys, {"sha256": BOUND_PCRS})["sha256"]


def _and_pcrs(policy: bytes, values: Mapping[int, bytes]) -> bytes:
    selected = bytearray(3)
    for pcr in values:
        selected[pcr // 8] |= 1 << pcr % 8
    selection = struct.pack(">IHB", 1, ALG_SHA256, 3) + bytes(selected)
    digest = hashlib.sha256(b"".join(values[pcr] for pcr in sorted(values))).digest()
    return hashlib.sha256(policy + struct.pack(">I", _CC_POLICY_PCR) + selection + digest).digest()


def signed_policies(content: bytes, source: str = SIGNATURE_FILE) -> tuple[SignedPolicy, ...]:
    """Read the entries of ``.pcrsig`` that are over PCR 11 of the SHA-256 bank and without a policy reference.

    Raises ``PolicyError`` when it is not such a file.
    """
    try:
        if len(content) > _SIGNATURES_LIMIT:
            raise ValueError("it is too large")
        entries = json.loads(content)["sha256"]
        return tuple(policy for policy in map(_entry, entries) if policy is not None)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise PolicyError(source, f"it is not a PCR signature file: {error!r}", "Seal the image again") from error


def use(esys: Any, key: PolicyKey, policies: Sequence[SignedPolicy], command: Callable[[Any], _T]) -> _T:
    """Return what ``command`` does with a session of ``authorized``.

    Whatever extends a PCR in between, one that no policy names as well, makes the TPM refuse the session: IMA does at
    every program that is new. Then a new one is tried. Raises ``PcrsChanged`` when that happens ``ATTEMPTS`` times.
    """
    for _attempt in range(ATTEMPTS):
        try:
            with authorized(esys, key, policies) as session:
                return command(session)
        except tss.TSS2_Exception as error:
            if int(error.rc) != _PCR_CHANGED:
                raise
    raise PcrsChanged(f"{ATTEMPTS} uses of a policy")


@contextmanager
def authorized(esys: Any, key: PolicyKey, policies: Sequence[SignedPolicy]) -> Iterator[Any]:
    """Yield a policy session for one use of an object whose policy is ``bound_policy`` of the key and present values.

    Raises ``PolicyError`` when no signature of the key covers the current PCR 11: a phase that was not signed.
    """
    session = esys.start_auth_session(
        tss.ESYS_TR.NONE,
        tss.ESYS_TR.NONE,
        tss.TPM2_SE.POLICY,
        tss.TPMT_SYM_DEF(algorithm=tss.TPM2_ALG.NULL),
        tss.TPM2_ALG.SHA256,
    )
    with flushed(esys, session):
        # Without this the TPM would flush the session by itself after its use.
        esys.trsess_set_attributes(session, tss.TPMA_SESSION.CONTINUESESSION)
        esys.policy_pcr(session, tss.TPM2B_DIGEST(), f"sha256:{PHASE_PCR}")
        current = bytes(esys.policy_get_digest(session))
        policy = next((one for one in policies if one.pkfp == key.pkfp and one.digest == current), None)
        if policy is None:
            raise PolicyError(
                f"PCR {PHASE_PCR}",
                "the image's key has signed no policy for its present value",
                "This works only in the boot phases that the image was signed for",
            )
        # By name: the order of these differs between versions 2 and 3 of tpm2-pytss.
        esys.policy_authorize(
            session,
            approved_policy=tss.TPM2B_DIGEST(current),
            policy_ref=tss.TPM2B_NONCE(),
            key_sign=tss.TPM2B_NAME(key.name),
            check_ticket=_ticket(esys, key, policy),
        )
        esys.policy_pcr(session, tss.TPM2B_DIGEST(), selection_text({"sha256": BOUND_PCRS}))
        yield session


def _ticket(esys: Any, key: PolicyKey, policy: SignedPolicy) -> Any:
    """Have the TPM check the signature over the policy, and return its ticket that it did."""
    area, _size = tss.TPMT_PUBLIC.unmarshal(key.public)
    # In the null hierarchy the ticket would be empty, and PolicyAuthorize would refuse it.
    loaded = esys.load_external(tss.TPM2B_PUBLIC(publicArea=area), hierarchy=tss.ESYS_TR.OWNER)
    with flushed(esys, loaded):
        signature = tss.TPMT_SIGNATURE(sigAlg=tss.TPM2_ALG.RSASSA)
        signature.signature.rsassa.hash = tss.TPM2_ALG.SHA256
        signature.signature.rsassa.sig = tss.TPM2B_PUBLIC_KEY_RSA(policy.signature)
        return esys.verify_signature(loaded, tss.TPM2B_DIGEST(hashlib.sha256(policy.digest).digest()), signature)


def _entry(entry: Any) -> Optional[SignedPolicy]:
    """Return an entry that we can use; others belong to other PCRs, or need a policy reference."""
    if entry["pcrs"] != [PHASE_PCR] or set(entry) - {"pcrs", "pkfp", "pol", "sig"}:
        return None
    digest = bytes.fromhex(entry["pol"])
    if len(digest) != 32:
        raise ValueError("a policy digest is not of SHA-256")
    return SignedPolicy(str(entry["pkfp"]).lower(), digest, base64.b64decode(entry["sig"], validate=True))


def _pem_body(pem: bytes) -> bytes:
    lines = [line.strip() for line in pem.strip().splitlines()]
    if len(lines) < 3 or lines[0] != b"-----BEGIN PUBLIC KEY-----" or lines[-1] != b"-----END PUBLIC KEY-----":
        raise ValueError("no single PUBLIC KEY block")
    try:
        return base64.b64decode(b"".join(lines[1:-1]), validate=True)
    except binascii.Error as error:
        raise ValueError(str(error)) from error


def _rsa_key(der: bytes) -> tuple[bytes, bytes, int]:
    """Return the RSAPublicKey in a SubjectPublicKeyInfo, its modulus and exponent (RFC 3279, section 2.3.1)."""
    info = _element(der, 0x30)
    algorithm = _element(info[0], 0x30, whole=False)
    if algorithm[0] != _RSA_ENCRYPTION:
        raise ValueError("the key is not RSA")
    bits = _element(algorithm[1], 0x03)[0]
    numbers = _element(bits[1:], 0x30)[0]
    modulus, rest = _element(numbers, 0x02, whole=False)
    exponent = _element(rest, 0x02)[0]
    return bits[1:], modulus.lstrip(b"\0"), int.from_bytes(exponent, "big")


def _element(data: bytes, tag: int, whole: bool = True) -> tuple[bytes, bytes]:
    """Split off one DER element: its content and what follows, which must be nothing when ``whole``."""
    if len(data) < 2 or data[0] != tag:
        raise ValueError(f"no DER element of type {tag:#04x} where one belongs")
    start, length = 2, data[1]
    if length >= 0x80:
        start = 2 + (length & 0x7F)
        length = int.from_bytes(data[2:start], "big")
    content, rest = data[start : start + length], data[start + length :]
    if len(content) != length or (whole and rest):
        raise ValueError("a DER element has the wrong length")
    return content, rest
