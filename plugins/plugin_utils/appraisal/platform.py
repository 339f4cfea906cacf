# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a cloud's platform gives its machines to prove themselves by, as a machine passes it on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Optional

from .fields import Fields, Signed
from .hardware.hcl import REPORT_LIMIT
from .hardware.nitrotpm import DOCUMENT_LIMIT
from .hardware.tdx import QUOTE_LIMIT
from .structures import STRUCTURE_LIMIT

CERTIFICATE_LIMIT = 16384
#: Certificates that come with the one of a chip.
CHAIN_LIMIT = 4


@dataclass(frozen=True)
class PlatformKey:
    """A key that the platform certified (DER), as TPMT_PUBLIC, and its statement (TPM2_Certify) on the attestation
    key.
    """

    certificate: bytes
    key: bytes
    statement: Signed


@dataclass(frozen=True)
class ParavisorReport:
    """Azure's HCL report, and what the host's metadata service adds: the chip's certificate (DER) with others of its
    chain, or the quote of the trust domain.
    """

    report: bytes
    vcek: Optional[bytes] = None
    chain: tuple[bytes, ...] = ()
    td_quote: Optional[bytes] = None


@dataclass(frozen=True)
class Platform:
    """Each part is None where the machine has none."""

    google: Optional[PlatformKey] = None
    azure: Optional[ParavisorReport] = None
    nitrotpm: Optional[bytes] = None


def parse_platform(found: Any) -> Platform:
    """Read the field ``platform`` of the second round; None is a machine without any of it."""
    if found is None:
        return Platform()
    fields = Fields(found, "platform's evidence")
    fields.only("google", "azure", "nitrotpm")
    return Platform(
        None if fields.absent("google") else _key(fields.inner("google")),
        None if fields.absent("azure") else _report(fields.inner("azure")),
        None if fields.absent("nitrotpm") else fields.binary("nitrotpm", DOCUMENT_LIMIT),
    )


def _key(fields: Fields) -> PlatformKey:
    fields.only("certificate", "key", "statement")
    return PlatformKey(
        fields.binary("certificate", CERTIFICATE_LIMIT),
        fields.binary("key", STRUCTURE_LIMIT),
        fields.signed("statement"),
    )


def _report(fields: Fields) -> ParavisorReport:
    fields.only("report", "vcek", "chain", "td_quote")
    return ParavisorReport(
        fields.binary("report", REPORT_LIMIT),
        None if fields.absent("vcek") else fields.binary("vcek", CERTIFICATE_LIMIT),
        _chain(fields),
        None if fields.absent("td_quote") else fields.binary("td_quote", QUOTE_LIMIT),
    )


def _chain(fields: Fields) -> tuple[bytes, ...]:
    return () if fields.absent("chain") else fields.binaries("chain", CHAIN_LIMIT, CERTIFICATE_LIMIT)
