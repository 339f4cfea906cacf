# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Secure Boot variables: certificates as the signature lists that firmware keeps and measures.

Source: UEFI specification 2.10, section 32.4.1 (EFI_SIGNATURE_LIST), 3.3 and 32.3 (variable GUIDs).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import struct
import uuid
from dataclasses import dataclass
from enum import Enum
from typing import Mapping, Optional, Sequence

from ..errors import FdeError

X509 = uuid.UUID("a5c059a1-94e4-4aa7-87b5-ab155c2bf072")
SHA256 = uuid.UUID("c1c41626-504c-4092-aca9-41f936934328")
GLOBAL = uuid.UUID("8be4df61-93ca-11d2-aa0d-00e098032b8c")
IMAGE_SECURITY = uuid.UUID("d719b2cb-3d3a-4596-a3bc-dad00e67656f")


class Variable(str, Enum):
    """The variables that decide what may boot, in the order in which firmware measures them."""

    SECURE_BOOT = "SecureBoot"
    PK = "PK"
    KEK = "KEK"
    DB = "db"
    DBX = "dbx"

    @property
    def guid(self) -> uuid.UUID:
        """The name space of the variable."""
        return IMAGE_SECURITY if self in (Variable.DB, Variable.DBX) else GLOBAL


@dataclass(frozen=True)
class Signature:
    """One entry of a list: type of the list, owner, and certificate (DER) or digest."""

    type: uuid.UUID
    owner: uuid.UUID
    data: bytes

    @property
    def encoded(self) -> bytes:
        """EFI_SIGNATURE_DATA."""
        return self.owner.bytes_le + self.data


def encode_list(signature: Signature) -> bytes:
    """Return an EFI_SIGNATURE_LIST with this entry alone, which is how certificates are enrolled."""
    entry = signature.encoded
    return signature.type.bytes_le + struct.pack("<III", 28 + len(entry), 0, len(entry)) + entry


def parse_lists(content: bytes, subject: str) -> tuple[Signature, ...]:
    """Parse a variable's content: signature lists one after the other. Raises ``FdeError`` when it is not that."""
    found = []
    position = 0
    while position < len(content):
        rest = content[position:]
        if len(rest) < 28:
            raise _not_lists(subject)
        kind = uuid.UUID(bytes_le=rest[:16])
        size, header, entry = struct.unpack_from("<III", rest, 16)
        body = size - 28 - header
        if size > len(rest) or header > size or entry <= 16 or body < 0 or body % entry:
            raise _not_lists(subject)
        for start in range(28 + header, size, entry):
            found.append(
                Signature(kind, uuid.UUID(bytes_le=rest[start : start + 16]), rest[start + 16 : start + entry])
            )
        position += size
    return tuple(found)


def read_variables(parts: Sequence[tuple[Variable, Optional[str], str, bytes]]) -> dict[Variable, bytes]:
    """Return the contents of variables from their parts in the order of enrolment.

    A part is (variable, owner GUID, name for errors, content of a file): a certificate in PEM or DER form when there
    is an owner, else signature lists. Raises ``FdeError`` for a part that is neither.
    """
    contents: dict[Variable, bytes] = {}
    for variable, owner, subject, content in parts:
        if owner is None:
            parse_lists(content, subject)
            added = content
        else:
            try:
                added = encode_list(Signature(X509, uuid.UUID(owner), read_der(content, "CERTIFICATE", subject)))
            except ValueError as error:
                raise FdeError(
                    owner, "this is not an owner GUID", "Give the one that the certificate is enrolled with"
                ) from error
        contents[variable] = contents.get(variable, b"") + added
    return contents


def authority(variables: Mapping[Variable, bytes], certificate: bytes) -> Signature:
    """Return the entry of db that is this certificate (DER); firmware measures it as what vouches for an image.

    Raises ``FdeError`` when db does not hold it exactly once.
    """
    entries = parse_lists(variables.get(Variable.DB, b""), "db")
    found = [entry for entry in entries if entry.type == X509 and entry.data == certificate]
    if len(found) != 1:
        cause = "db does not hold the signing certificate exactly once"
        raise FdeError("secure_boot_variables", cause, "Give the variables of the machines that will run the image")
    return found[0]


def read_der(content: bytes, label: str, subject: str) -> bytes:
    """Return the DER bytes of a PEM or DER file whose PEM label is ``label``. Raises ``FdeError`` for another file."""
    if content[:1] == b"\x30":
        return content
    begin, end = f"-----BEGIN {label}-----".encode(), f"-----END {label}-----".encode()
    head, found, rest = content.partition(begin)
    body, closed, _after = rest.partition(end)
    if not found or not closed:
        raise FdeError(subject, f"this is not a {label.lower()} in PEM or DER form", "Name the right file")
    try:
        return base64.b64decode(b"".join(body.split()), validate=True)
    except binascii.Error as error:
        raise FdeError(subject, f"its {label.lower()} is damaged", "Make the file again") from error


def fingerprint(der: bytes) -> str:
    """Return the SHA-256 of a DER certificate or public key in hexadecimal."""
    return hashlib.sha256(der).hexdigest()


def _not_lists(subject: str) -> FdeError:
    return FdeError(
        subject, "it does not hold EFI signature lists", "Give the variable's content without its attributes"
    )
