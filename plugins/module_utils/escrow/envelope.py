# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The envelope: a recovery key and what it belongs to, encrypted on the machine to the fleet's certificates.

A CMS EnvelopedData (RFC 5652), made by the ``openssl`` program; any of the recipients opens it with::

    openssl cms -decrypt -inform DER -in HOST-VOLUME-UUID.cms -inkey escrow.key
"""

from __future__ import annotations

import json
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Sequence

from ..errors import FdeError
from ..luks2.secret import descriptor_path, memory_file
from ..runner import Runner
from .certificate import Certificate, Kind, read_certificate

VERSION = 1
#: How the content key is encrypted to each kind of certificate.
_KEY_OPTIONS = {
    Kind.RSA: ("rsa_padding_mode:oaep", "rsa_oaep_md:sha256", "rsa_mgf1_md:sha256"),
    Kind.EC: ("ecdh_kdf_md:sha256",),
}
_ENVELOPED_DATA = bytes.fromhex("06092a864886f70d010703")


@dataclass(frozen=True)
class Belonging:
    """What an escrowed key opens: the host as the inventory names it, the volume's name, and the UUID of its header."""

    host: str
    volume: str
    luks_uuid: str


def document(recovery_key: bytearray, belonging: Belonging) -> bytearray:
    """Return the content of an envelope, JSON with the text of a recovery key; the caller wipes it."""
    fields = json.dumps({"version": VERSION, **asdict(belonging)}).encode()
    # Not through the JSON encoder, whose strings cannot be overwritten. The letters of the key need no escaping.
    return bytearray(fields[:-1] + b', "recovery_key": "') + recovery_key + b'"}\n'


def seal(runner: Runner, secret: bytearray, certificates: Sequence[bytes]) -> bytes:
    """Encrypt a secret to certificates in PEM and return the envelope (DER), which any of their keys opens.

    Raises ``CertificateError`` for one that is expired, weak or only for signatures, ``MissingProgram`` without
    openssl, ``CommandError`` when it fails.
    """
    if not certificates:
        raise FdeError("escrow certificate", "there is none", "Name at least one certificate to encrypt to")
    recipients = [read_certificate(pem) for pem in certificates]
    with ExitStack() as files:
        content = files.enter_context(memory_file(secret))
        places = [files.enter_context(memory_file(bytearray(recipient.pem))) for recipient in recipients]
        done = runner.run(
            [
                *("openssl", "cms", "-encrypt", "-binary", "-aes-256-cbc", "-aes256-wrap", "-outform", "DER"),
                *("-in", descriptor_path(content)),
                *(word for pair in zip(recipients, places) for word in _recipient(*pair)),
            ],
            pass_fds=(content, *places),
        )
    if done.stdout[:1] != b"\x30" or _ENVELOPED_DATA not in done.stdout[:32] or secret in done.stdout:
        raise FdeError("openssl", "it did not make an EnvelopedData", "Check the version of openssl; 3.0 is needed")
    return done.stdout


def _recipient(certificate: Certificate, place: int) -> Sequence[str]:
    options = [word for option in _KEY_OPTIONS[certificate.kind] for word in ("-keyopt", option)]
    return ["-recip", descriptor_path(place), *options]
