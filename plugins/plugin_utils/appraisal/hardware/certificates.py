# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Certificates from strangers, read so that no later question to them can fail."""

from __future__ import annotations

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm

from ..endorsement import parse_certificate
from ..errors import AppraisalError


def read_certificate(der: bytes) -> x509.Certificate:
    """Read one DER certificate whose signature is of a kind that can be checked. Raises ``AppraisalError``.

    The library decides that only when the signature is asked for, in the middle of a search for a chain; and its
    error for a version that does not exist is of a kind of its own.
    """
    try:
        certificate = parse_certificate(der)
        _tried = (certificate.signature_hash_algorithm, certificate.signature_algorithm_parameters)
    except (ValueError, TypeError, UnsupportedAlgorithm, x509.InvalidVersion) as error:
        raise AppraisalError(
            "unsupported", "the certificate has a version or a signature that cannot be checked"
        ) from error
    return certificate
