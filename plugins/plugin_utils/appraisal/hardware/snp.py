# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""AMD SEV-SNP attestation reports, and the chip's key that signs them (VCEK).

Source: AMD 56860, SEV-SNP firmware ABI, tables 22 (report), 9 (guest policy) and 4 (TCB version), chapter 10
(signature); AMD 57230, VCEK certificate and KDS interface, table 8 (extensions of the certificate).
"""

from __future__ import annotations

import datetime
import hmac
from dataclasses import dataclass
from typing import Mapping, Optional, Sequence

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from ..endorsement import verify_chain
from ..errors import AppraisalError
from . import der
from .fields import Fields, ecdsa_signature

REPORT_SIZE = 1184
_SIGNED_SIZE = 0x2A0
_ECDSA_P384_SHA384 = 1
_VCEK = 0
_POLICY_RESERVED_ONE = 1 << 17
_POLICY_MIGRATION_AGENT = 1 << 18
_POLICY_DEBUG = 1 << 19

_AMD = "1.3.6.1.4.1.3704.1."
_PRODUCT_NAME, _HARDWARE_ID = _AMD + "2", _AMD + "4"
#: The place of each component in a TCB version, and the last number of its extension's name below ``_AMD`` 3.
_TCB_BEFORE_TURIN = {"bootloader": (0, 1), "tee": (1, 2), "snp": (6, 3), "microcode": (7, 8)}
_TCB_TURIN = {"fmc": (0, 9), "bootloader": (1, 1), "tee": (2, 2), "snp": (3, 3), "microcode": (7, 8)}
#: Product line → (family, models). Source: AMD 57230, table 5; Bergamo and Siena are of the Genoa line.
_MODELS = {
    "Milan": (0x19, range(0x10)),
    "Genoa": (0x19, range(0x10, 0xB0)),
    "Turin": (0x1A, range(0x12)),
}


@dataclass(frozen=True)
class SnpReport:
    """An attestation report. ``raw`` is what was read; ``processor`` is (family, model) from version 3 on."""

    raw: bytes
    version: int
    guest_svn: int
    policy: int
    vmpl: int
    signing_key: int
    chip_key_masked: bool
    report_data: bytes
    measurement: bytes
    host_data: bytes
    id_key_digest: bytes
    reported_tcb: bytes
    committed_tcb: bytes
    processor: Optional[tuple[int, int]]
    chip_id: bytes
    signature: bytes

    @property
    def debug(self) -> bool:
        """Whether the host may read and write the guest's memory."""
        return bool(self.policy & _POLICY_DEBUG)

    @property
    def migration_agent(self) -> bool:
        """Whether another guest, the migration agent, may move this one to another machine."""
        return bool(self.policy & _POLICY_MIGRATION_AGENT)


@dataclass(frozen=True)
class SnpEndorsement:
    """What the chip's certificate adds to a report that it verifies: product line, TCB and the chain, leaf first."""

    product: str
    tcb: Mapping[str, int]
    chain: tuple[x509.Certificate, ...]


def parse_report(data: bytes) -> SnpReport:
    """Read a report of version 2 to 5. Raises ``AppraisalError``."""
    reader = Fields(data, "SNP report")
    version, guest_svn, policy = reader.u32(), reader.u32(), reader.u64()
    reader.take(32)  # family and image id: the guest owner's own words
    vmpl, algorithm = reader.u32(), reader.u32()
    reader.take(16)  # current TCB and platform information
    flags = reader.u32()
    reader.zeros(4)
    report_data, measurement, host_data = reader.take(64), reader.take(48), reader.take(32)
    id_key_digest = reader.take(48)
    reader.take(48 + 32 + 32)  # author key digest, ids of this report and of the migration agent's
    reported_tcb = reader.take(8)
    family, model, _stepping = reader.u8(), reader.u8(), reader.u8()
    reader.zeros(21)
    chip_id, committed_tcb = reader.take(64), reader.take(8)
    reader.take(_SIGNED_SIZE - reader.position)  # firmware versions, launch TCB, mitigations (version 5)
    signature = reader.take(512)
    reader.end()
    if not 2 <= version <= 5:
        raise AppraisalError("unsupported", "the SNP report does not have a version from 2 to 5")
    if algorithm != _ECDSA_P384_SHA384:
        raise AppraisalError("unsupported", "the SNP report is not signed by ECDSA on P-384")
    if not policy & _POLICY_RESERVED_ONE or vmpl > 3:
        raise AppraisalError("malformed", "the SNP report has a policy or a privilege level that does not exist")
    return SnpReport(
        data, version, guest_svn, policy, vmpl, flags >> 2 & 7, bool(flags & 2), report_data, measurement, host_data,
        id_key_digest, reported_tcb, committed_tcb, (family, model) if version >= 3 else None, chip_id, signature,
    )  # fmt: skip


def require_production(report: SnpReport) -> None:
    """Refuse a report whose guest the host may debug, or that was not asked for at the highest privilege level."""
    if report.debug:
        raise AppraisalError("debug-guest", "the guest's policy lets the host read and write its memory")
    if report.migration_agent:
        raise AppraisalError("migration-agent", "the guest's policy lets a migration agent move its memory")
    if report.vmpl != 0:
        raise AppraisalError("wrong-vmpl", "the SNP report was not asked for at VMPL 0, where the virtual TPM runs")


def verify_report(
    report: SnpReport,
    vcek: x509.Certificate,
    authorities: Sequence[x509.Certificate],
    intermediates: Sequence[x509.Certificate],
    now: datetime.datetime,
) -> SnpEndorsement:
    """Check that the chip which ``vcek`` names signed the report with the firmware that ``vcek`` names.

    ``authorities`` are AMD's root keys (ARK) that the caller trusts, ``intermediates`` their signing keys (ASK).
    Raises ``AppraisalError``.
    """
    if report.signing_key != _VCEK or report.chip_key_masked:
        raise AppraisalError("unsupported", "the SNP report is not signed by the key of its chip (VCEK)")
    extensions = {extension.oid.dotted_string: extension for extension in vcek.extensions}
    if any(extension.critical and not name.startswith("2.5.29.") for name, extension in extensions.items()):
        raise AppraisalError("unsupported", "the chip's certificate has a critical extension that is not understood")
    chain = verify_chain(vcek, authorities, intermediates, now)
    endorsement = SnpEndorsement(*_firmware(report, extensions), chain)
    _signed_by(report, vcek)
    return endorsement


def _firmware(
    report: SnpReport, extensions: Mapping[str, x509.Extension[x509.ExtensionType]]
) -> tuple[str, dict[str, int]]:
    """Compare chip, product and TCB of report and certificate; return product line and TCB."""
    name = der.Values(_value(extensions, _PRODUCT_NAME), "product name in the chip's certificate")
    product = name.text(der.IA5_STRING).partition("-")[0]
    name.end()
    if product not in _MODELS:
        raise AppraisalError("unsupported", "the chip's certificate names a product line that is not known here")
    family, models = _MODELS[product]
    if report.processor is not None and (report.processor[0] != family or report.processor[1] not in models):
        raise AppraisalError("other-chip", "report and certificate are of different product lines")
    identifier = _value(extensions, _HARDWARE_ID)
    if identifier[:1] == bytes([der.OCTET_STRING]) and len(identifier) in (10, 66):
        identifier = der.Values(identifier, "chip id in the certificate").take(der.OCTET_STRING)
    if len(identifier) != (8 if product == "Turin" else 64):
        raise AppraisalError("malformed", "the chip id in the certificate does not have its product's length")
    if not hmac.compare_digest(identifier.ljust(64, b"\0"), report.chip_id):
        raise AppraisalError("other-chip", "report and certificate are of different chips")
    tcb = {}
    for component, (place, number) in (_TCB_TURIN if product == "Turin" else _TCB_BEFORE_TURIN).items():
        value = der.Values(_value(extensions, f"{_AMD}3.{number}"), "firmware version in the chip's certificate")
        tcb[component] = value.integer()
        value.end()
        if tcb[component] != report.reported_tcb[place]:
            raise AppraisalError("other-tcb", "report and certificate are of different firmware versions")
    return product, tcb


def _value(extensions: Mapping[str, x509.Extension[x509.ExtensionType]], name: str) -> bytes:
    extension = extensions.get(name)
    if extension is None or not isinstance(extension.value, x509.UnrecognizedExtension):
        raise AppraisalError("not-a-vcek", "the certificate lacks an extension that a chip's certificate (VCEK) has")
    return extension.value.value


def _signed_by(report: SnpReport, vcek: x509.Certificate) -> None:
    key = vcek.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name != "secp384r1":
        raise AppraisalError("not-a-vcek", "the key in the chip's certificate is not on the curve P-384")
    # r and s take 72 bytes each, little endian; the rest of the 512 is reserved.
    r, s, rest = report.signature[:72][::-1], report.signature[72:144][::-1], report.signature[144:]
    if any(rest):
        raise AppraisalError("malformed", "bytes follow the signature of the SNP report")
    try:
        key.verify(ecdsa_signature(r + s), report.raw[:_SIGNED_SIZE], ec.ECDSA(hashes.SHA384()))
    except InvalidSignature as error:
        raise AppraisalError("bad-report-signature", "the chip did not sign this SNP report") from error
