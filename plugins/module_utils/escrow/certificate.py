# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What must hold of a certificate before anything is encrypted to it.

Nobody asks for the private key again until the day it is needed, so an envelope that nobody can open, or that many can,
must fail when it is made. Read with the standard library alone, because a target may have nothing else.
Sources: RFC 5280, section 4.1 and 4.2.1.3 (certificate, key usage); RFC 3279, section 2.3 (keys); X.690 (DER).
"""

from __future__ import annotations

import base64
import binascii
import datetime
import re
from dataclasses import dataclass
from enum import Enum
from typing import Iterator, Optional

from ..errors import FdeError

LEAST_RSA_BITS = 2048
_LIMIT = 64 * 1024
_RSA = "1.2.840.113549.1.1.1"
_EC = "1.2.840.10045.2.1"
_CURVES = {"1.2.840.10045.3.1.7": "P-256", "1.3.132.0.34": "P-384", "1.3.132.0.35": "P-521"}
_KEY_USAGE = "2.5.29.15"
#: Bits of a key usage: what RSA and what ECDH recipients need.
_KEY_ENCIPHERMENT, _KEY_AGREEMENT = 2, 4


class Kind(str, Enum):
    """How a content key is encrypted to the owner of a certificate."""

    RSA = "rsa"
    EC = "ec"


@dataclass(frozen=True)
class Certificate:
    """A certificate that may receive an escrowed key; ``pem`` is one block. Times are in UTC."""

    pem: bytes
    kind: Kind
    not_before: datetime.datetime
    not_after: datetime.datetime


class CertificateError(FdeError):
    """A certificate cannot receive an escrowed key."""

    def __init__(self, cause: str) -> None:
        super().__init__(
            "escrow certificate",
            cause,
            f"Use a valid certificate for encryption: RSA of {LEAST_RSA_BITS} bits or more, or EC on P-256 to P-521",
        )


def read_certificate(pem: bytes, now: Optional[datetime.datetime] = None) -> Certificate:
    """Read one certificate in PEM and check that it can receive a key. Raises ``CertificateError``."""
    now = now or datetime.datetime.now(datetime.timezone.utc)
    try:
        certificate, usage = _parse(_only_block(pem))
    except (ValueError, IndexError, StopIteration) as error:
        raise CertificateError(f"it is not one X.509 certificate in PEM ({error})") from error
    if not certificate.not_before <= now <= certificate.not_after:
        raise CertificateError(
            f"it is valid from {certificate.not_before:%Y-%m-%d} to {certificate.not_after:%Y-%m-%d}, and the clock of "
            f"this machine says {now:%Y-%m-%d}"
        )
    needed = _KEY_ENCIPHERMENT if certificate.kind is Kind.RSA else _KEY_AGREEMENT
    if usage is not None and needed not in usage:
        name = "keyEncipherment" if certificate.kind is Kind.RSA else "keyAgreement"
        raise CertificateError(f"its key usage does not include {name}, so its key may only sign")
    return certificate


def _only_block(pem: bytes) -> bytes:
    """Return the DER of the only block; a private key beside the certificate does not belong on a target."""
    if len(pem) > _LIMIT:
        raise ValueError("it is too large")
    text = r"\s*-----BEGIN CERTIFICATE-----([A-Za-z0-9+/=\s]+)-----END CERTIFICATE-----\s*"
    match = re.fullmatch(text.encode(), pem)
    if match is None:
        raise ValueError("no single CERTIFICATE block")
    try:
        return base64.b64decode(b"".join(match[1].split()), validate=True)
    except binascii.Error as error:
        raise ValueError(str(error)) from error


def _parse(der: bytes) -> tuple[Certificate, Optional[frozenset[int]]]:
    """Return the certificate, and the bits of its key usage where it has one."""
    parts = iter(list(_elements(_only(_only(der, 0x30), 0x30, whole=False))))
    tag, _content = next(parts)
    if tag == 0xA0:  # [0] version, before the serial number
        next(parts)
    for expected in (0x30, 0x30):  # signature algorithm, issuer
        _expect(next(parts)[0], expected)
    tag, validity = next(parts)
    _expect(tag, 0x30)
    times = [_time(kind, content) for kind, content in _elements(validity)]
    _expect(next(parts)[0], 0x30)  # subject
    tag, info = next(parts)
    _expect(tag, 0x30)
    kind = _key(info)
    usage = None
    for tag, content in parts:
        if tag == 0xA3:
            usage = _key_usage(content)
    block = b"-----BEGIN CERTIFICATE-----\n" + base64.encodebytes(der) + b"-----END CERTIFICATE-----\n"
    return Certificate(block, kind, times[0], times[1]), usage


def _key(info: bytes) -> Kind:
    """Return the kind of a SubjectPublicKeyInfo's key. Raises ``CertificateError`` when it is weak or only signs."""
    (_tag, algorithm), (_bits, key) = _elements(info)
    words = list(_elements(algorithm))
    _expect(words[0][0], 0x06)
    name = _oid(words[0][1])
    if name == _RSA:
        modulus = next(_elements(_only(key[1:], 0x30)))[1]
        bits = int.from_bytes(modulus, "big").bit_length()
        if bits < LEAST_RSA_BITS:
            raise CertificateError(f"its RSA key has {bits} bits, which is too weak")
        return Kind.RSA
    if name == _EC:
        if words[1][0] != 0x06 or _oid(words[1][1]) not in _CURVES:
            raise CertificateError(f"its curve is none of {', '.join(_CURVES.values())}")
        return Kind.EC
    raise CertificateError(f"nothing can be encrypted to a key of its type ({name})")


def _key_usage(extensions: bytes) -> Optional[frozenset[int]]:
    for _tag, extension in _elements(_only(extensions, 0x30)):
        fields = list(_elements(extension))
        if _oid(fields[0][1]) == _KEY_USAGE:
            bits = _only(fields[-1][1], 0x03)[1:]
            return frozenset(at for at in range(8 * len(bits)) if bits[at // 8] & 0x80 >> at % 8)
    return None


def _time(tag: int, content: bytes) -> datetime.datetime:
    """UTCTime or GeneralizedTime; both end in Z in a certificate. Years 50 to 99 of the former are of the 1900s."""
    text = content.decode("ascii")
    if tag == 0x17:
        text = ("19" if int(text[:2]) >= 50 else "20") + text
    elif tag != 0x18:
        raise ValueError("no time where one belongs")
    return datetime.datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=datetime.timezone.utc)


def _oid(content: bytes) -> str:
    numbers, value = [], 0
    for byte in content:
        value = value << 7 | byte & 0x7F
        if not byte & 0x80:
            numbers.append(value)
            value = 0
    first = min(numbers[0] // 40, 2)
    return ".".join(str(number) for number in (first, numbers[0] - 40 * first, *numbers[1:]))


def _only(der: bytes, tag: int, *, whole: bool = True) -> bytes:
    """Return the content of the first element, which must have this tag, and be all there is when ``whole``."""
    elements = list(_elements(der)) if whole else [next(_elements(der))]
    _expect(elements[0][0], tag)
    if len(elements) != 1:
        raise ValueError("more than one DER element where one belongs")
    return elements[0][1]


def _expect(found: int, tag: int) -> None:
    if found != tag:
        raise ValueError(f"a DER element of type {found:#04x} instead of {tag:#04x}")


def _elements(der: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield tag and content of every element, none of which may reach beyond the end."""
    at = 0
    while at < len(der):
        tag, length, start = der[at], der[at + 1], at + 2
        if tag & 0x1F == 0x1F or length == 0x80:
            raise ValueError("a form of DER that no certificate has")
        if length > 0x80:
            start += length & 0x7F
            length = int.from_bytes(der[at + 2 : start], "big")
        if length > len(der) - start:
            raise ValueError("a DER element reaches beyond the end")
        yield tag, der[start : start + length]
        at = start + length
