# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Intel's word on a platform's firmware is taken when it is signed, current and about that platform."""

from __future__ import annotations

import dataclasses
import datetime
import json

import pytest
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.case import Grounds
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.errors import AppraisalError
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.hardware.hcl import parse_hcl
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.hardware.tdx import parse_quote
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.hardware.tdx_collateral import (
    TdxCollateral,
    firmware_status,
    parse_platform,
)
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.platform import ParavisorReport, Platform
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.policy import HardwareTerms
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.roads.azure import AzureTdx
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.roads.choice import Allowed, Shown, walk
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.roads.endorsement_key import Activation
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.roads.trust import RoadName
from ansible_collections.cvm.fde.plugins.plugin_utils.kept_policy import policy_document
from ansible_collections.cvm.fde.tests.unit.plugins.plugin_utils.appraisal.encoding import der
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from hypothesis import given, settings
from hypothesis import strategies as st

PCK = bytes.fromhex("2a864886f84d010d01")
FMSPC, PCE_ID = "00806f050000", "0000"


def named(suffix: bytes, value: bytes) -> bytes:
    return der(0x30, der(6, PCK + suffix) + value)


def pck_extension(components=(5,) * 16, pce_svn=13, fmspc=FMSPC) -> bytes:
    versions = [*components, pce_svn]
    tcb = b"".join(named(bytes([2, number]), der(2, bytes([value]))) for number, value in enumerate(versions, 1))
    tcb += named(b"\2\x12", der(4, bytes(16)))
    parts = named(b"\1", der(4, bytes(16))) + named(b"\2", der(0x30, tcb)) + named(b"\3", der(4, bytes(2)))
    return der(0x30, parts + named(b"\4", der(4, bytes.fromhex(fmspc))) + named(b"\5", der(10, b"\0")))


def level(status="UpToDate", sgx=5, pce=13, tdx=(9, 9, 6), **_rest):
    return {
        "tcb": {
            "sgxtcbcomponents": [{"svn": sgx}] * 16,
            "pcesvn": pce,
            "tdxtcbcomponents": [{"svn": svn} for svn in [*tdx, *[0] * 13]],
        },
        "tcbStatus": status,
    }


def dated(body, **changes):
    return {"issueDate": "2026-05-20T00:00:00Z", "nextUpdate": "2026-06-19T00:00:00Z", **body, **changes}


def tcb_info(**changes):
    module = {"id": "TDX_01", "tcbLevels": [{"tcb": {"isvsvn": 2}, "tcbStatus": "UpToDate"}]}
    body = {"id": "TDX", "version": 3, "fmspc": FMSPC.upper(), "pceId": PCE_ID}
    return dated({**body, "tdxModuleIdentities": [module], "tcbLevels": [level()]}, **changes)


def identity(**changes):
    masks = {"miscselect": "00000000", "miscselectMask": "FFFFFFFF", "attributes": "00" * 16}
    masks["attributesMask"] = "FBFFFFFFFFFFFFFF0000000000000000"
    signer = "DC9E2A7C6F948F17474E34A7FC43ED030F7C1563F1BABDDF6340C82E0E54A8C5"
    levels = [{"tcb": {"isvsvn": 0}, "tcbStatus": "UpToDate"}]
    return dated({"id": "TD_QE", "version": 2, "mrsigner": signer, **masks, "tcbLevels": levels}, **changes)


class Intel:
    """A service that signs such documents below the root of a platform of our own."""

    def __init__(self, machine, name="Intel SGX TCB Signing", curve=None) -> None:
        self.machine = machine
        self.signer = machine.root.issue(name, curve=curve or ec.SECP256R1())

    def signed(self, name: str, body: object) -> bytes:
        raw = json.dumps(body, separators=(",", ":")).encode()
        r, s = decode_dss_signature(self.signer.key.sign(raw, ec.ECDSA(hashes.SHA256())))
        signature = (r.to_bytes(48, "big")[-32:] + s.to_bytes(48, "big")[-32:]).hex().encode()
        return b'{"' + name.encode() + b'":' + raw + b',"signature":"' + signature + b'"}'

    def collateral(self, tcb=None, enclave=None) -> TdxCollateral:
        info, enclaves = (
            self.signed("tcbInfo", tcb or tcb_info()),
            self.signed("enclaveIdentity", enclave or identity()),
        )
        return TdxCollateral([info], enclaves, [self.signer.der, self.machine.root.der])


@pytest.fixture(scope="module")
def machine(tdx_machine, extension):
    made = tdx_machine()
    listed = [(extension("1.2.840.113741.1.13.1", pck_extension()), False)]
    made.pck = made.root.issue("PCK", extensions=listed, curve=ec.SECP256R1())
    return made


@pytest.fixture(scope="module")
def intel(machine):
    return Intel(machine)


@pytest.fixture
def status(machine, now):
    quote = parse_quote(machine.quote(bytes(64)))
    return lambda collateral, moment=now: firmware_status(collateral, quote, [machine.root.certificate], moment)


def test_the_captured_platform_is_read(captured) -> None:
    parts, _attester = captured.azure("quotes/azure-tdx/evidence-v1.json")
    platform = parse_platform(parse_quote(parts["td_quote"]).certificates[0])
    assert len(platform.components) == 16
    assert platform.fmspc == "00806f050000"
    assert platform.pce_id == "0000"
    assert platform.pce_svn > 0


def test_the_road_tells_the_status_and_warns_unless_it_is_good(machine, intel, hcl, attester, now) -> None:
    bound = parse_hcl(hcl.report(bytes(1184), hcl.claims())).digest
    report = hcl.report(machine.td_report(bound), hcl.claims(), kind=4)
    road = AzureTdx(report, machine.quote(bound), [machine.root.certificate], collateral=intel.collateral())
    trust = road.establish(attester(hcl.attestation_area()), now)
    assert trust.hardware is not None and trust.hardware.status == "UpToDate"
    assert "quote-collateral" not in {remark.code for remark in trust.not_checked}
    assert trust.warnings == ()
    old = intel.collateral(tcb_info(tcbLevels=[level("OutOfDate")]))
    trust = dataclasses.replace(road, collateral=old).establish(attester(hcl.attestation_area()), now)
    assert [remark.code for remark in trust.warnings] == ["firmware-status"]


def test_the_operators_collateral_reaches_the_road_and_is_kept(machine, intel, hcl, attester, now, refused) -> None:
    bound = parse_hcl(hcl.report(bytes(1184), hcl.claims())).digest
    report = hcl.report(machine.td_report(bound), hcl.claims(), kind=4)
    shown = Shown(
        attester(hcl.attestation_area()),
        Activation(attester().ak, b"", b"secret"),
        None,
        Platform(azure=ParavisorReport(report, td_quote=machine.quote(bound))),
    )
    authorities = {RoadName.AZURE_TDX: [machine.root.certificate]}
    allowed = Allowed((RoadName.AZURE_TDX,), "web1", collateral=intel.collateral(), authorities=authorities)
    kept = policy_document(Grounds((), (), now, allowed=allowed))["tdx_collateral"]
    again = dataclasses.replace(allowed, collateral=TdxCollateral.from_document(json.loads(json.dumps(kept))))
    launched = HardwareTerms(measurements=frozenset(("ab" * 48,)))
    for choice in (allowed, again):
        trust = walk(choice, shown, (), now, launched)
        assert trust.hardware is not None and trust.hardware.status == "UpToDate"
    foreign = dataclasses.replace(allowed, collateral=intel.collateral(tcb_info(fmspc="00906f050000")))
    with refused("other-collateral"):
        walk(foreign, shown, (), now)


@pytest.mark.parametrize(
    ("expected", "levels"),
    [
        ("UpToDate", [level()]),
        ("OutOfDate", [level(sgx=6), level("OutOfDate")]),
        ("OutOfDate", [level(pce=14), level("OutOfDate")]),
        ("OutOfDate", [level(tdx=(0, 0, 7)), level("OutOfDate", tdx=(0, 0, 6))]),
        ("SWHardeningNeeded", [level("SWHardeningNeeded"), level("OutOfDate")]),
    ],
)
def test_the_first_level_that_the_platform_reaches_counts(intel, status, expected, levels) -> None:
    assert status(intel.collateral(tcb_info(tcbLevels=levels))) == expected


def test_of_several_documents_the_one_of_the_platform_counts_whatever_became_of_the_others(intel, status, refused):
    other = intel.signed("tcbInfo", tcb_info(fmspc="00906F050000", nextUpdate="2020-01-01T00:00:00Z"))
    good = intel.collateral()
    assert status(dataclasses.replace(good, tcb_infos=[other, *good.tcb_infos])) == "UpToDate"
    with refused("other-collateral"):
        status(dataclasses.replace(good, tcb_infos=[other]))
    with refused("other-collateral"):
        status(dataclasses.replace(good, tcb_infos=[]))


def test_the_worst_of_platform_module_and_enclave_counts(intel, status) -> None:
    old = [{"tcb": {"isvsvn": 0}, "tcbStatus": "OutOfDate"}]
    newer = [{"tcb": {"isvsvn": 3}, "tcbStatus": "UpToDate"}, *old]
    assert status(intel.collateral(enclave=identity(tcbLevels=old))) == "OutOfDate"
    assert status(intel.collateral(tcb_info(tdxModuleIdentities=[{"id": "TDX_01", "tcbLevels": newer}]))) == "OutOfDate"


@pytest.mark.parametrize(
    ("code", "tcb", "enclave"),
    [
        ("firmware-revoked", {"tcbLevels": [level("Revoked")]}, {}),
        ("firmware-unknown", {"tcbLevels": [level(sgx=6)]}, {}),
        ("firmware-unknown", {"tcbLevels": []}, {}),
        ("firmware-unknown", {"tdxModuleIdentities": []}, {}),
        ("firmware-unknown", {}, {"tcbLevels": [{"tcb": {"isvsvn": 1}, "tcbStatus": "UpToDate"}]}),
        ("other-collateral", {"fmspc": "00906f050000"}, {}),
        ("other-collateral", {"pceId": "0001"}, {}),
        ("other-enclave", {}, {"mrsigner": "00" * 32}),
        ("other-enclave", {}, {"attributes": "01" + "00" * 15}),
        ("other-enclave", {}, {"miscselect": "00000001"}),
        ("collateral-expired", {"nextUpdate": "2026-05-31T00:00:00Z"}, {}),
        ("collateral-expired", {}, {"issueDate": "2026-06-02T00:00:00Z"}),
        ("unsupported", {"version": 2}, {}),
        ("unsupported", {"id": "SGX"}, {}),
        ("unsupported", {}, {"id": "QE"}),
        ("malformed", {"nextUpdate": "soon"}, {}),
        ("malformed", {"tcbLevels": [level("Splendid")]}, {}),
        ("malformed", {"tcbLevels": 5}, {}),
        ("malformed", {"tcbLevels": [{}]}, {}),
        ("other-collateral", {"fmspc": 5}, {}),
        ("malformed", {}, {"attributesMask": "xx"}),
    ],
)
def test_documents_that_say_otherwise_or_nothing_are_refused(intel, status, refused, code, tcb, enclave) -> None:
    with refused(code):
        status(intel.collateral(tcb_info(**tcb), identity(**enclave)))


def test_only_intels_key_for_it_below_the_same_root_signs_collateral(machine, intel, tdx_machine, status, refused, now):
    with refused("bad-collateral"):
        status(Intel(machine, "Intel SGX PCK Certificate").collateral())
    with refused("bad-collateral"):
        status(Intel(machine, curve=ec.SECP384R1()).collateral())
    with refused("no-chain"):
        status(Intel(tdx_machine()).collateral())
    good = intel.collateral()
    with refused("bad-collateral"):
        status(dataclasses.replace(good, tcb_infos=[good.tcb_infos[0].replace(b'"svn":5', b'"svn":4')]))
    with refused("malformed"):
        status(dataclasses.replace(good, tcb_infos=[good.enclave_identity]))
    with refused("malformed"):
        status(dataclasses.replace(good, tcb_infos=[good.tcb_infos[0] + b"{}"]))
    with refused("malformed"):
        status(dataclasses.replace(good, signers=[]))
    with refused("expired"):
        status(good, now + datetime.timedelta(days=2))


def test_collateral_for_a_platform_that_says_nothing_of_itself_is_refused(tdx_machine, intel, now, refused) -> None:
    silent = tdx_machine()
    made = Intel(silent).collateral()
    with refused("not-a-pck"):
        firmware_status(made, parse_quote(silent.quote(bytes(64))), [silent.root.certificate], now)


@settings(max_examples=150)
@given(place=st.integers(0, 1 << 12), piece=st.binary(min_size=1, max_size=4))
def test_a_damaged_extension_of_a_platform_ends_in_the_one_error(machine, extension, place, piece) -> None:
    good = pck_extension()
    place %= len(good)
    raw = good[:place] + piece + good[place + len(piece) :]
    listed = [(extension("1.2.840.113741.1.13.1", raw), False)]
    certificate = machine.root.issue("PCK", extensions=listed, curve=ec.SECP256R1()).certificate
    try:
        parse_platform(certificate)
    except AppraisalError as error:
        assert error.code in ("malformed", "not-a-pck")
