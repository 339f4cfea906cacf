# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Azure confidential VMs: the processor's report vouches for the keys of the virtual TPM, which runs in the guest.

The paravisor's report (NV 0x01400001) names the attestation key at 0x81000003 and the endorsement key. A quote is
believed from that attestation key, or from any other that activation binds to that endorsement key. Whose paravisor it
is nobody judges here: a policy must name it, see `choice.walk`.
Source: see ``hardware.hcl``, ``hardware.snp`` and ``hardware.tdx``.
"""

from __future__ import annotations

import datetime
import hmac
from dataclasses import dataclass
from typing import Optional, Sequence

from cryptography import x509

from ..errors import AppraisalError
from ..hardware import snp, tdx
from ..hardware.certificates import read_certificate
from ..hardware.hcl import HardwareReport, HclReport, RuntimeClaims, parse_hcl
from ..hardware.tdx_collateral import UP_TO_DATE, TdxCollateral, firmware_status
from .endorsement_key import Activation
from .trust import (
    NO_REVOCATION,
    AkTrust,
    Attester,
    Binding,
    Detail,
    Hardware,
    HostIdentity,
    Remark,
    RoadName,
    digest,
    few,
    fingerprints,
    same_key,
)


@dataclass(frozen=True)
class AzureSnp:
    """The paravisor's report over SEV-SNP, the chip's certificate (VCEK, DER) and AMD's keys that the caller trusts.

    ``authorities`` are AMD's roots (ARK), ``intermediates`` (DER) its signing keys (ASK). ``user_data``, where
    given, must be what the report carries, so that the report is as fresh as that.
    """

    hcl_report: bytes
    vcek: bytes
    authorities: Sequence[x509.Certificate]
    intermediates: Sequence[bytes]
    activation: Optional[Activation] = None
    user_data: Optional[bytes] = None

    def establish(self, attester: Attester, now: datetime.datetime) -> AkTrust:
        """See `trust.Road`."""
        attester.require_attestation_key(self.activation.endorsement if self.activation else None)
        hcl = _report(self.hcl_report, HardwareReport.SNP)
        report = snp.parse_report(hcl.hardware)
        hcl.require_bound(report.report_data)
        bindings = _bind(hcl.claims, attester, self.activation)
        snp.require_production(report)
        between = [read_certificate(raw) for raw in few(self.intermediates)]
        endorsed = snp.verify_report(report, read_certificate(self.vcek), self.authorities, between, now)
        signer = report.id_key_digest.hex()
        hardware = Hardware("snp", endorsed.product, report.measurement.hex(), endorsed.tcb, id_key=signer)
        return _trust(
            RoadName.AZURE_SNP,
            attester,
            hcl.claims,
            self.user_data,
            hardware,
            bindings,
            endorsed.chain,
            (NO_REVOCATION,),
            now,
        )


@dataclass(frozen=True)
class AzureTdx:
    """The paravisor's report over TDX, the quote of the same trust domain, and Intel's roots that the caller trusts.

    ``collateral``, where given, tells whether the firmware is up to date.
    """

    hcl_report: bytes
    td_quote: bytes
    authorities: Sequence[x509.Certificate]
    activation: Optional[Activation] = None
    user_data: Optional[bytes] = None
    collateral: Optional[TdxCollateral] = None

    def establish(self, attester: Attester, now: datetime.datetime) -> AkTrust:
        """See `trust.Road`."""
        attester.require_attestation_key(self.activation.endorsement if self.activation else None)
        hcl = _report(self.hcl_report, HardwareReport.TDX)
        report = tdx.parse_td_report(hcl.hardware)
        hcl.require_bound(report.report_data)
        bindings = _bind(hcl.claims, attester, self.activation)
        quote = tdx.parse_quote(self.td_quote)
        if not hmac.compare_digest(quote.report.report_data, report.report_data):
            raise AppraisalError("other-quote", "the TD quote was not made for the paravisor's claims")
        if not hmac.compare_digest(quote.report.identity, report.identity):
            raise AppraisalError("other-quote", "TD quote and TD report are of different trust domains")
        if report.debug:
            raise AppraisalError("debug-guest", "the trust domain's attributes let the host read its memory")
        chain = tdx.verify_quote(quote, self.authorities, now)
        # The components of TDX's own version; what they mean for security is in the collateral.
        tcb = {"tdx_module": quote.tcb_svn[0], "tdx_module_major": quote.tcb_svn[1], "microcode": quote.tcb_svn[2]}
        status = None
        if self.collateral is not None:
            status = firmware_status(self.collateral, quote, self.authorities, now)
        hardware = Hardware("tdx", "TDX", report.measurement.hex(), tcb, status)
        not_checked: tuple[Remark, ...] = (NO_REVOCATION,)
        if status is None:
            not_checked += (Remark("quote-collateral", "whether firmware and quoting enclave are up to date"),)
        return _trust(
            RoadName.AZURE_TDX, attester, hcl.claims, self.user_data, hardware, bindings, chain, not_checked, now
        )


def _report(data: bytes, kind: HardwareReport) -> HclReport:
    report = parse_hcl(data)
    if report.kind is not kind:
        raise AppraisalError("other-hardware", f"the HCL report is not one over {kind.value.upper()}")
    return report


def _bind(claims: RuntimeClaims, attester: Attester, activation: Optional[Activation]) -> tuple[Binding, ...]:
    """Find the attester's key in the claims, or the endorsement key that it is bound to."""
    last = Binding("claims of the paravisor", "hardware report", "the report's data is their digest")
    if same_key(claims.attestation_key, attester.ak.key):
        return Binding("attestation key", "claims of the paravisor", "it is their HCLAkPub"), last
    if activation is None:
        raise AppraisalError("other-key", "the hardware report vouches for another key than the attestation key")
    if claims.endorsement_key is None or not same_key(claims.endorsement_key, activation.endorsement.key):
        raise AppraisalError("other-endorsement-key", "the hardware report does not vouch for this endorsement key")
    first = activation.require_answer(attester)
    return first, Binding("endorsement key", "claims of the paravisor", "it is their HCLEkPub"), last


def _trust(
    road: RoadName,
    attester: Attester,
    claims: RuntimeClaims,
    user_data: Optional[bytes],
    hardware: Hardware,
    bindings: tuple[Binding, ...],
    chain: Sequence[x509.Certificate],
    not_checked: tuple[Remark, ...],
    now: datetime.datetime,
) -> AkTrust:
    bindings += (Binding("hardware report", "authority", "signatures lead to an authority that was given"),)
    if user_data is None:
        not_checked += (Remark("report-age", "when the hardware report was made: no user data was asked for"),)
    elif claims.user_data is None or not hmac.compare_digest(user_data.ljust(64, b"\0"), claims.user_data):
        raise AppraisalError("other-user-data", "the hardware report does not carry the user data that was asked for")
    if claims.tpm_persisted is None:
        not_checked += (
            Remark("tpm-persistence", "whether the virtual TPM's state is kept: the paravisor does not say"),
        )
    ek = None if claims.endorsement_key is None else digest(claims.endorsement_key)
    host = HostIdentity("azure", claims.machine, _details(claims))
    return AkTrust(
        road, attester.ak.name, digest(attester.ak.key), ek, host, hardware, bindings, fingerprints(chain),
        _warnings(claims, hardware), not_checked, now,
    )  # fmt: skip


def _details(claims: RuntimeClaims) -> dict[str, Detail]:
    stated = {
        "secure_boot": claims.secure_boot,
        "tpm_enabled": claims.tpm_enabled,
        "tpm_persisted": claims.tpm_persisted,
        "console_enabled": claims.console_enabled,
    }
    return {name: flag for name, flag in stated.items() if flag is not None}


def _warnings(claims: RuntimeClaims, hardware: Hardware) -> tuple[Remark, ...]:
    found = []
    if claims.tpm_persisted is False:
        found.append(
            Remark("tpm-not-persisted", "the virtual TPM forgets: what is sealed to it does not survive a stop")
        )
    if claims.secure_boot is False:
        found.append(Remark("secure-boot-off", "the paravisor says that the machine was made without Secure Boot"))
    if hardware.status not in (None, UP_TO_DATE):
        found.append(Remark("firmware-status", f"the maker says of the machine's firmware: {hardware.status}"))
    return tuple(found)
