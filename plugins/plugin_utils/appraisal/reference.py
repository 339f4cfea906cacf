# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What an image promises: its manifest, believed only with the signature of whoever sealed it."""

from __future__ import annotations

import datetime
import re
from dataclasses import dataclass, field, replace
from typing import Any, Mapping, Optional, TypeVar, Union

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from ...module_utils.boot.pcr import ZERO, with_os_separator
from ...module_utils.tpm.policy import PolicyError, PolicyKey
from .documents import parse_json
from .errors import AppraisalError

MANIFEST_LIMIT = 256 * 1024
#: A PCR has a handful of legal values at most (before and after a separator, per loader path).
VALUES_LIMIT = 64

#: The PCR bank that everything is judged by.
BANK = "sha256"
PHASE_INITRD = "enter-initrd"
PHASE_READY = "enter-initrd:leave-initrd:sysinit:ready"

_HEX = re.compile(r"[0-9a-f]+")
_T = TypeVar("_T")


@dataclass(frozen=True)
class Reference:
    """The values that machines of one sealed image may show.

    ``pcr_7`` is None where the sealer did not know the variables. Where the manifest lists none, ``pcr_13`` and
    ``pcr_14`` are the values without any system extension and without a shim.
    """

    name: str
    strategy: str
    root_hash: str
    signer: Optional[str]
    policy_key: PolicyKey
    pcr_4: frozenset[bytes]
    pcr_7: Optional[frozenset[bytes]]
    pcr_11: Mapping[str, bytes]
    pcr_12: frozenset[bytes]
    pcr_13: frozenset[bytes]
    pcr_14: frozenset[bytes]
    #: Legal values of the SHA-384 bank, for platforms that vouch for that one only: PCR → values, 11 as of `ready`.
    sha384: Mapping[int, frozenset[bytes]] = field(default_factory=dict)
    not_before: Optional[datetime.datetime] = None
    not_after: Optional[datetime.datetime] = None
    #: The signed bytes that all of this was read from.
    manifest: bytes = field(repr=False, default=b"")
    signature: bytes = field(repr=False, default=b"")


def load_reference(manifest: bytes, signature: bytes, key: bytes) -> Reference:
    """Read a manifest after checking its signature by the PEM public key or certificate ``key``. Raises
    ``AppraisalError``.
    """
    verify_manifest(manifest, signature, key)
    return replace(parse_manifest(manifest), signature=signature)


def verify_manifest(manifest: bytes, signature: bytes, key: bytes) -> None:
    """Check an ``openssl dgst -sha256 -sign`` signature over the exact bytes of a manifest. Raises
    ``AppraisalError``.
    """
    signer = _public_key(key)
    try:
        if isinstance(signer, rsa.RSAPublicKey):
            signer.verify(signature, manifest, padding.PKCS1v15(), hashes.SHA256())
        else:
            signer.verify(signature, manifest, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature as error:
        raise AppraisalError("bad-signature", "the manifest was not signed by the given key") from error


def parse_manifest(manifest: bytes) -> Reference:
    """Read the reference values of a manifest whose signature was checked. Raises ``AppraisalError``."""
    found = _Object(parse_json(manifest, "manifest", MANIFEST_LIMIT), "")
    if found.take("version", int) != 1:
        raise AppraisalError("unsupported", "the manifest is not of version 1")
    root, policy, banks = found.inner("root"), found.inner("pcr_policy"), found.inner("pcrs")
    pcrs = banks.inner("sha256")
    phases = pcrs.inner("11")
    try:
        key = PolicyKey.from_pem(policy.take("public_key", str).encode(), "the manifest's pcr_policy")
    except PolicyError as error:
        raise AppraisalError("malformed", "the manifest's PCR policy key is not an RSA public key") from error
    if policy.digest("fingerprint") != key.fingerprint:
        raise AppraisalError("malformed", "the manifest's PCR policy key does not have the fingerprint it states")
    validity = found.inner("validity") if found.has("validity") else _Object({}, "validity.")
    signer = found.inner("secure_boot").digest("signer_sha256") if found.has("secure_boot") else None
    return Reference(
        name=found.take("name", str),
        strategy=found.take("strategy", str),
        root_hash=root.digest("hash"),
        signer=signer,
        policy_key=key,
        pcr_4=pcrs.digests("4"),
        pcr_7=pcrs.digests("7") if pcrs.has("7") else None,
        pcr_11={phase: bytes.fromhex(phases.digest(phase)) for phase in (PHASE_INITRD, PHASE_READY)},
        pcr_12=pcrs.digests("12"),
        pcr_13=pcrs.digests("13") if pcrs.has("13") else frozenset(with_os_separator(ZERO)),
        pcr_14=pcrs.digests("14") if pcrs.has("14") else frozenset(with_os_separator(ZERO)),
        sha384=_sha384(banks.inner("sha384")) if banks.has("sha384") else {},
        not_before=validity.moment("not_before"),
        not_after=validity.moment("not_after"),
        manifest=manifest,
    )


def _sha384(pcrs: _Object) -> dict[int, frozenset[bytes]]:
    found = {pcr: pcrs.digests(str(pcr), 48) for pcr in (4, 7, 12) if pcrs.has(str(pcr))}
    if pcrs.has("11"):
        found[11] = frozenset((bytes.fromhex(pcrs.inner("11").digest(PHASE_READY, 48)),))
    return found


class _Object:
    """A JSON object from which fields are taken by name and type."""

    def __init__(self, found: Any, path: str) -> None:
        if not isinstance(found, dict):
            raise AppraisalError("malformed", f"the manifest has no object {path or 'at its top'}")
        self._found = found
        self._path = path

    def has(self, name: str) -> bool:
        return self._found.get(name) is not None

    def take(self, name: str, kind: type[_T]) -> _T:
        value = self._found.get(name)
        if type(value) is not kind:
            raise AppraisalError("malformed", f"the manifest has no {self._path}{name} of the right type")
        return value

    def inner(self, name: str) -> _Object:
        return _Object(self._found.get(name), f"{self._path}{name}.")

    def digest(self, name: str, size: int = 32) -> str:
        text = self.take(name, str)
        if not _is_digest(text, size):
            raise AppraisalError("malformed", f"the manifest's {self._path}{name} is not a digest of {size} bytes")
        return text

    def moment(self, name: str) -> Optional[datetime.datetime]:
        if not self.has(name):
            return None
        try:
            return datetime.datetime.strptime(self.take(name, str), "%Y-%m-%dT%H:%M:%S%z")
        except ValueError as error:
            raise AppraisalError(
                "malformed", f"the manifest's {self._path}{name} is not a time with its zone"
            ) from error

    def digests(self, name: str, size: int = 32) -> frozenset[bytes]:
        listed = self.take(name, list)
        if not 0 < len(listed) <= VALUES_LIMIT:
            raise AppraisalError("malformed", f"the manifest's {self._path}{name} has no values, or too many")
        if not all(_is_digest(text, size) for text in listed):
            raise AppraisalError("malformed", f"the manifest's {self._path}{name} is not a list of digests")
        return frozenset(bytes.fromhex(text) for text in listed)


def _is_digest(text: object, size: int) -> bool:
    return isinstance(text, str) and len(text) == 2 * size and _HEX.fullmatch(text) is not None


def _public_key(pem: bytes) -> Union[rsa.RSAPublicKey, ec.EllipticCurvePublicKey]:
    """Read a PEM public key, or the key of a PEM certificate."""
    key: object
    try:
        if b"-----BEGIN CERTIFICATE-----" in pem:
            key = x509.load_pem_x509_certificate(pem).public_key()
        else:
            key = load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise AppraisalError(
            "bad-key", "the manifest's key is neither a PEM public key nor a PEM certificate"
        ) from error
    if not isinstance(key, (rsa.RSAPublicKey, ec.EllipticCurvePublicKey)):
        raise AppraisalError("bad-key", "the manifest's key is neither RSA nor ECC")
    return key
