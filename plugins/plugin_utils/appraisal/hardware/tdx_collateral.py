# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What Intel says of the firmware behind a TD quote: TCB info and enclave identity, signed by Intel, with an expiry.

Source: Intel SGX and TDX provisioning certification service, API version 4 (TCB info version 3, enclave identity
version 2, and how a TCB level is chosen); Intel SGX PCK certificate specification, section 1.3.5.
"""

from __future__ import annotations

import base64
import datetime
import re
from dataclasses import dataclass
from typing import Any, Mapping, Optional, Sequence

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from ..documents import parse_json
from ..endorsement import verify_chain
from ..errors import AppraisalError
from . import der
from .certificates import read_certificate
from .fields import ecdsa_signature
from .tdx import PCK_EXTENSION, TdQuote

DOCUMENT_LIMIT = 262144
UP_TO_DATE = "UpToDate"
_REVOKED = "Revoked"
#: From good to bad. Where module or enclave are worse than the platform, theirs counts.
_STATUSES = (
    UP_TO_DATE,
    "SWHardeningNeeded",
    "ConfigurationNeeded",
    "ConfigurationAndSWHardeningNeeded",
    "OutOfDate",
    "OutOfDateConfigurationNeeded",
    _REVOKED,
)
_SIGNED = re.compile(rb'\{"([A-Za-z]+)":(\{.*\}),"signature":"([0-9A-Fa-f]{128})"\}\s*', re.DOTALL)
_SIGNER = "Intel SGX TCB Signing"
_OID = 0x06
# Below the PCK extension, 1.2.840.113741.1.13.1, in DER without tag and length.
_PCK = bytes.fromhex("2a864886f84d010d01")
_TCB, _PCE_ID, _FMSPC = _PCK + b"\x02", _PCK + b"\x03", _PCK + b"\x04"


@dataclass(frozen=True)
class TdxCollateral:
    """Intel's answers as they came: the documents, and the chain (DER, leaf first) from their header.

    ``tcb_infos`` are one for each kind of platform (FMSPC) in the fleet.
    """

    tcb_infos: Sequence[bytes]
    enclave_identity: bytes
    signers: Sequence[bytes]

    def document(self) -> dict[str, Any]:
        """Return it as JSON has it: base64."""
        return {
            "tcb_infos": [base64.b64encode(info).decode() for info in self.tcb_infos],
            "enclave_identity": base64.b64encode(self.enclave_identity).decode(),
            "signers": [base64.b64encode(signer).decode() for signer in self.signers],
        }

    @classmethod
    def from_document(cls, found: Mapping[str, Any]) -> TdxCollateral:
        """Return what ``document`` wrote. Raises ``KeyError``, ``TypeError`` or ``ValueError``."""
        infos, signers = (tuple(map(base64.b64decode, found[name])) for name in ("tcb_infos", "signers"))
        return cls(infos, base64.b64decode(found["enclave_identity"]), signers)


@dataclass(frozen=True)
class Platform:
    """What a platform's certificate says: its kind, its 16 component versions, and that of its certifying enclave."""

    fmspc: str
    pce_id: str
    components: tuple[int, ...]
    pce_svn: int


def firmware_status(
    collateral: TdxCollateral, quote: TdQuote, authorities: Sequence[x509.Certificate], now: datetime.datetime
) -> str:
    """Return Intel's status of the firmware that made a quote, the worst of platform, module and quoting enclave.

    Raises ``AppraisalError`` when the documents are not Intel's, not of this platform, past their next update, or say
    that the firmware's version was revoked.
    """
    if not 1 <= len(collateral.signers) <= 3:
        raise AppraisalError("malformed", "the collateral does not have 1 to 3 certificates of its signer")
    signer, *between = (read_certificate(raw) for raw in collateral.signers)
    names = [name.value for name in signer.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    if names != [_SIGNER]:
        raise AppraisalError("bad-collateral", "the collateral is not signed by Intel's key for it")
    verify_chain(signer, authorities, between, now)
    platform = parse_platform(quote.certificates[0])
    infos = [_Signed.read(raw, "tcbInfo") for raw in collateral.tcb_infos]
    info = next((one for one in infos if one.is_of(platform)), None)
    if info is None:
        raise AppraisalError("other-collateral", "the collateral is of another kind of platform")
    tcb = info.verified("TDX", 3, signer, now)
    identity = _Signed.read(collateral.enclave_identity, "enclaveIdentity").verified("TD_QE", 2, signer, now)
    try:
        statuses = (*_platform_statuses(tcb, platform, quote), _enclave_status(identity, quote))
        worst = max(statuses, key=_STATUSES.index)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise AppraisalError("malformed", "the collateral does not have the fields of its version") from error
    if worst == _REVOKED:
        raise AppraisalError("firmware-revoked", "Intel revoked the version of the machine's firmware")
    return worst


@dataclass(frozen=True)
class _Signed:
    """One document, whose exact bytes are signed. Its body says nothing before it is verified."""

    name: str
    signed: bytes
    signature: bytes
    body: Mapping[str, Any]

    @classmethod
    def read(cls, raw: bytes, name: str) -> _Signed:
        match = _SIGNED.fullmatch(raw) if len(raw) <= DOCUMENT_LIMIT else None
        if match is None or match.group(1).decode() != name:
            raise AppraisalError("malformed", f"the collateral is not a signed {name}")
        body = parse_json(match.group(2), name, DOCUMENT_LIMIT)
        if not isinstance(body, dict):
            raise AppraisalError("malformed", f"the {name} is not an object")
        return cls(name, match.group(2), bytes.fromhex(match.group(3).decode()), body)

    def is_of(self, platform: Platform) -> bool:
        found = (str(self.body.get(name, "")).lower() for name in ("fmspc", "pceId"))
        return tuple(found) == (platform.fmspc, platform.pce_id)

    def verified(self, kind: str, version: int, signer: x509.Certificate, now: datetime.datetime) -> Mapping[str, Any]:
        """Return the body, signed by Intel, of this kind and version, and current."""
        key = signer.public_key()
        if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name != "secp256r1":
            raise AppraisalError("bad-collateral", "the key that signed the collateral is not on the curve P-256")
        try:
            key.verify(ecdsa_signature(self.signature), self.signed, ec.ECDSA(hashes.SHA256()))
        except InvalidSignature as error:
            raise AppraisalError("bad-collateral", f"Intel did not sign this {self.name}") from error
        if (self.body.get("id"), self.body.get("version")) != (kind, version):
            raise AppraisalError("unsupported", f"the {self.name} is not version {version} of {kind}")
        if not _time(self.body.get("issueDate")) <= now <= _time(self.body.get("nextUpdate")):
            raise AppraisalError("collateral-expired", f"the {self.name} is not current")
        return self.body


def _time(text: object) -> datetime.datetime:
    try:
        parsed = datetime.datetime.strptime(str(text), "%Y-%m-%dT%H:%M:%SZ")
    except ValueError as error:
        raise AppraisalError("malformed", "the collateral has a date that is not one") from error
    return parsed.replace(tzinfo=datetime.timezone.utc)


def _platform_statuses(tcb: Mapping[str, Any], platform: Platform, quote: TdQuote) -> tuple[str, ...]:
    """Return the statuses of the platform and, where it is versioned by itself, of its TDX module."""
    # From version 1 on (its second byte) the module has levels of its own, and the first two bytes are only that.
    skipped = 2 if quote.tcb_svn[1] else 0
    for level in tcb["tcbLevels"]:
        wanted = level["tcb"]
        sgx = [component["svn"] for component in wanted["sgxtcbcomponents"]]
        tdx = [component["svn"] for component in wanted["tdxtcbcomponents"]]
        if len(sgx) != 16 or len(tdx) != 16:
            raise ValueError("not 16 components")
        if (
            all(have >= need for have, need in zip(platform.components, sgx))
            and platform.pce_svn >= wanted["pcesvn"]
            and all(have >= need for have, need in list(zip(quote.tcb_svn, tdx))[skipped:])
        ):
            return (level["tcbStatus"], *(_module_status(tcb, quote.tcb_svn) if skipped else ()))
    raise AppraisalError("firmware-unknown", "Intel lists no version that the machine's firmware reaches")


def _module_status(tcb: Mapping[str, Any], svn: bytes) -> tuple[str]:
    for module in tcb["tdxModuleIdentities"]:
        if module["id"] == f"TDX_{svn[1]:02x}":
            return (_level(module["tcbLevels"], svn[0]),)
    raise AppraisalError("firmware-unknown", "Intel does not list the version of the machine's TDX module")


def _enclave_status(identity: Mapping[str, Any], quote: TdQuote) -> str:
    report = quote.enclave_report
    for name, value in (("miscselect", report[16:20][::-1]), ("attributes", report[48:64])):
        mask, wanted = (bytes.fromhex(identity[field]) for field in (f"{name}Mask", name))
        if len(mask) != len(value) or bytes(one & two for one, two in zip(value, mask)) != wanted:
            raise AppraisalError("other-enclave", "the quoting enclave is not as Intel's identity of it says")
    if bytes.fromhex(identity["mrsigner"]) != report[128:160]:
        raise AppraisalError("other-enclave", "the quoting enclave has another signer than Intel's identity says")
    return _level(identity["tcbLevels"], int.from_bytes(report[258:260], "little"))


def _level(levels: Sequence[Mapping[str, Any]], svn: int) -> str:
    """Return the status of the first level that a version number reaches; they are listed from new to old."""
    for level in levels:
        if svn >= level["tcb"]["isvsvn"]:
            return str(level["tcbStatus"])
    raise AppraisalError("firmware-unknown", "Intel lists no version that module or quoting enclave reach")


def parse_platform(certificate: x509.Certificate) -> Platform:
    """Read the extension of a platform's certificate (PCK). Raises ``AppraisalError``."""
    extension = next((found for found in certificate.extensions if found.oid.dotted_string == PCK_EXTENSION), None)
    raw = extension.value.value if extension and isinstance(extension.value, x509.UnrecognizedExtension) else b""
    whole = der.Values(raw, "extension of the platform's certificate")
    fields = whole.inside(der.SEQUENCE)
    whole.end()
    components: Optional[list[int]] = None
    pce_svn, named = 0, {}
    while fields.tag:
        field = fields.inside(der.SEQUENCE)
        name = field.take(_OID)
        if name == _TCB:
            components, pce_svn = _components(field.inside(der.SEQUENCE))
        elif name in (_PCE_ID, _FMSPC):
            named[name] = field.take(der.OCTET_STRING).hex()
    fields.end()
    if components is None or len(named) != 2:
        raise AppraisalError("not-a-pck", "the platform's certificate does not say what the platform is")
    return Platform(named[_FMSPC], named[_PCE_ID], tuple(components), pce_svn)


def _components(values: der.Values) -> tuple[list[int], int]:
    """Return the 16 component versions and the version of the certifying enclave, which is the 17th."""
    found = []
    for number in range(1, 18):
        pair = values.inside(der.SEQUENCE)
        if pair.take(_OID) != _TCB + bytes([number]):
            raise AppraisalError("not-a-pck", "the platform's certificate does not list its components in order")
        found.append(pair.integer())
        pair.end()
    return found[:16], found[16]
