# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Azure: the processor's report vouches for the virtual TPM's keys, link by link."""

from __future__ import annotations

import dataclasses
import datetime
import json
import struct
from pathlib import Path

import pytest
from ansible_collections.cvm.fde.plugins.module_utils.tpm.templates import EK_RSA_2048
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.errors import AppraisalError, Undecided
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.hardware import tdx
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.hardware.hcl import HardwareReport, parse_hcl
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.platform import ParavisorReport, Platform
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.policy import HardwareTerms
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.roads.azure import AzureSnp, AzureTdx
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.roads.choice import Allowed, Shown, walk
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.roads.endorsement_key import Activation
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.roads.trust import RoadName
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.rules.demands import judge_hardware
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.structures import parse_public
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding

SNP = ["quotes/azure-snp/evidence-v1.json", "quotes/azure-snp/evidence-v2.json"]
TDX = "quotes/azure-tdx/evidence-v1.json"
#: As Intel publishes it.
INTEL_ROOT = "44a0196b2b99f889b8e149e95b807a350e7424964399e885a7cbb8ccfab674d3"
HARDWARE, CLAIMS = 32, 1236
#: Who signed the paravisors of the captured machines over SEV-SNP.
SIGNER = "942fd93ebde6ea7a96efadeafc60f1c6b3d10e703b1dafd7555b92f7f3d32d0e006767648cba5b102af3d65756af4177"


def codes(remarks) -> set[str]:
    return {remark.code for remark in remarks}


def snp_road(captured, path):
    parts, attester = captured.azure(path)
    ask = captured.ask.public_bytes(Encoding.DER)
    return AzureSnp(parts["hcl_report"], parts["vcek"], [captured.ark], [ask]), attester


def tdx_road(captured):
    parts, attester = captured.azure(TDX)
    root = tdx.parse_quote(parts["td_quote"]).certificates[-1]
    assert root.fingerprint(hashes.SHA256()).hex() == INTEL_ROOT
    return AzureTdx(parts["hcl_report"], parts["td_quote"], [root]), attester


# --- captured on SEV-SNP


@pytest.mark.parametrize("path", SNP)
def test_the_captured_snp_machines_are_good(captured, now, path) -> None:
    road, attester = snp_road(captured, path)
    trust = road.establish(attester, now)
    assert trust.road is RoadName.AZURE_SNP
    assert trust.ak_name == attester.ak.name
    assert trust.ek is not None
    assert trust.host is not None and trust.host.platform == "azure"
    assert trust.host.details["secure_boot"] is True
    assert trust.hardware is not None and trust.hardware.product == "Milan"
    assert trust.hardware.tcb == {"bootloader": 4, "tee": 0, "snp": 24, "microcode": 219}
    assert [binding.to for binding in trust.bindings] == ["claims of the paravisor", "hardware report", "authority"]
    assert len(trust.certificates) == 3
    assert trust.warnings == ()
    assert codes(trust.not_checked) == {"revocation", "report-age", "tpm-persistence"}
    json.dumps(trust.document())


def test_the_paravisors_of_azure_are_signed_by_one_key(captured, snp_machine, hcl, attester, now) -> None:
    """Two machines, of different paravisors, of one signer; a machine of anybody's own has another signer or none."""
    machines = [snp_road(captured, path) for path in SNP]
    launched = [road.establish(shown, now).hardware for road, shown in machines]
    assert len({hardware.measurement for hardware in launched}) == 2
    (signer,) = {hardware.id_key for hardware in launched}
    assert signer == SIGNER
    page = Path(__file__).resolve().parents[6] / "docs/roads-to-trust.md"
    assert f"`{signer}`" in page.read_text()
    own = made_snp(snp_machine, hcl).establish(attester(hcl.attestation_area()), now).hardware
    assert own is not None and own.id_key == "00" * 48
    policy = HardwareTerms(id_keys=frozenset((signer,)))
    for hardware in launched:
        judge_hardware(policy, hardware)
    with pytest.raises(AppraisalError, match="other-launch"):
        judge_hardware(policy, own)


def walked(captured, path, road, root, now, **named):
    """Walk to a captured machine's key as an operator's policy allows it."""
    parts, shown = captured.azure(path)
    azure = ParavisorReport(
        parts["hcl_report"], parts.get("vcek"), (captured.ask.public_bytes(Encoding.DER),), parts.get("td_quote")
    )
    numbers = parse_hcl(parts["hcl_report"]).claims.endorsement_key.public_numbers()
    endorsement = parse_public(EK_RSA_2048.fixed + b"\1\0" + numbers.n.to_bytes(256, "big"))
    activation, _credential = Activation.begin(endorsement, shown.ak)
    allowed = Allowed((road,), "web1", authorities={road: (root,)})
    return walk(allowed, Shown(shown, activation, None, Platform(azure=azure)), (), now, HardwareTerms(**named))


@pytest.mark.parametrize("path", SNP)
def test_a_captured_machine_is_known_by_the_signer_or_the_measurement_that_a_policy_names(captured, now, path) -> None:
    road = RoadName.AZURE_SNP
    with pytest.raises(Undecided) as undecided:
        walked(captured, path, road, captured.ark, now)
    assert f"signed by the key {SIGNER}" in undecided.value.reason
    trust = walked(captured, path, road, captured.ark, now, id_keys=frozenset((SIGNER,)))
    measurement = trust.hardware.measurement
    assert measurement in undecided.value.reason
    assert walked(captured, path, road, captured.ark, now, measurements=frozenset((measurement,))) == trust


def test_a_captured_trust_domain_is_known_by_its_measurement_only(captured, now) -> None:
    road, (parts, _shown) = RoadName.AZURE_TDX, captured.azure(TDX)
    quote = tdx.parse_quote(parts["td_quote"])
    root, measurement = quote.certificates[-1], quote.report.measurement.hex()
    for named in ({}, {"id_keys": frozenset((SIGNER,))}):
        with pytest.raises(Undecided, match=f"here the measurement {measurement}$"):
            walked(captured, TDX, road, root, now, **named)
    trust = walked(captured, TDX, road, root, now, measurements=frozenset((measurement,)))
    assert trust.hardware.measurement == measurement


def test_the_instance_is_the_one_in_the_claims(captured, now) -> None:
    road, attester = snp_road(captured, SNP[1])
    trust = road.establish(attester, now)
    assert trust.host is not None and trust.host.instance == "7df7b373-b947-4aaa-96e5-c358f2a03d20"


def test_user_data_that_was_asked_for_makes_the_report_fresh(captured, now, refused) -> None:
    road, attester = snp_road(captured, SNP[1])
    fresh = dataclasses.replace(road, user_data=attester.nonce)
    assert "report-age" not in codes(fresh.establish(attester, now).not_checked)
    for wrong in (attester.nonce[:-1], attester.nonce + b"x", b"another", bytes(65)):
        with refused("other-user-data"):
            dataclasses.replace(road, user_data=wrong).establish(attester, now)


@pytest.mark.parametrize(
    ("code", "place"),
    [
        ("bad-report-signature", HARDWARE + 0x90),
        ("bad-report-signature", HARDWARE + 0x2A0),
        ("bad-report-signature", HARDWARE + 0x2A0 + 72),
        ("claims-not-bound", HARDWARE + 0x50),
        ("claims-not-bound", HARDWARE + 0x70),
        ("other-tcb", HARDWARE + 0x180),
        ("other-chip", HARDWARE + 0x1A0),
        # Offset 48 of r is beyond the 384 bits of the curve; such a number signs nothing.
        ("bad-report-signature", HARDWARE + 0x2A0 + 48),
        ("malformed", HARDWARE + 0x2A0 + 144),
        ("malformed", 0),
        ("malformed", 8),
        ("malformed", 16),
        ("malformed", 1216),
        ("unsupported", 1220),
        ("unsupported", 1224),
        ("unsupported", 1228),
        ("malformed", 1232),
        ("malformed", 2599),
    ],
)
def test_a_changed_byte_of_the_captured_report_is_refused_for_what_it_breaks(
    captured, now, refused, flip, code, place
) -> None:
    road, attester = snp_road(captured, SNP[1])
    with refused(code):
        dataclasses.replace(road, hcl_report=flip(road.hcl_report, place, 4)).establish(attester, now)


def test_changed_claims_are_refused(captured, now, refused) -> None:
    road, attester = snp_road(captured, SNP[0])
    for before, after in (
        (b'"console-enabled":true', b'"console-enabled":null'),
        (b"26F8BC30", b"26F8BC31"),
        (b'"user-data":"00', b'"user-data":"01'),
    ):
        assert before in road.hcl_report
        with refused("claims-not-bound"):
            changed = road.hcl_report.replace(before, after)
            dataclasses.replace(road, hcl_report=changed).establish(attester, now)


def test_the_report_of_another_machine_is_refused(captured, now, refused) -> None:
    road, attester = snp_road(captured, SNP[0])
    other, other_attester = snp_road(captured, SNP[1])
    with refused("other-key"):
        road.establish(other_attester, now)
    with refused("other-chip"):
        dataclasses.replace(road, vcek=other.vcek).establish(attester, now)


def test_hardware_report_and_claims_of_two_machines_are_refused(captured, now, refused) -> None:
    road, attester = snp_road(captured, SNP[0])
    other, _attester = snp_road(captured, SNP[1])
    spliced = other.hcl_report[:CLAIMS] + road.hcl_report[CLAIMS:]
    with refused("claims-not-bound"):
        dataclasses.replace(road, hcl_report=spliced).establish(attester, now)


def test_time_and_chain_of_the_captured_machine(captured, authority, now, refused) -> None:
    road, attester = snp_road(captured, SNP[0])
    with refused("expired"):
        road.establish(attester, now.replace(year=2033))
    with refused("not-yet-valid"):
        road.establish(attester, now.replace(year=2024))
    with refused("no-chain"):
        dataclasses.replace(road, intermediates=[]).establish(attester, now)
    with refused("no-chain"):
        dataclasses.replace(road, authorities=[authority.root().certificate]).establish(attester, now)
    with refused("no-chain"):
        dataclasses.replace(road, authorities=[]).establish(attester, now)
    with refused("malformed"):
        dataclasses.replace(road, intermediates=list(road.intermediates) * 7).establish(attester, now)


@pytest.mark.parametrize("size", [0, 3, 31, 32, 1215, 1216, 1235, 1236, 2000, 2345])
def test_a_cut_report_is_malformed(captured, now, refused, size) -> None:
    road, attester = snp_road(captured, SNP[0])
    with refused("malformed"):
        dataclasses.replace(road, hcl_report=road.hcl_report[:size]).establish(attester, now)


def test_bytes_behind_the_report_are_refused(captured, now, refused) -> None:
    road, attester = snp_road(captured, SNP[0])
    with refused("malformed"):
        dataclasses.replace(road, hcl_report=road.hcl_report + b"\1").establish(attester, now)
    with refused("malformed"):
        dataclasses.replace(road, hcl_report=road.hcl_report.ljust(20000, b"\0")).establish(attester, now)


def test_a_report_over_one_processor_does_not_pass_for_one_over_the_other(captured, now, refused) -> None:
    snp, attester = snp_road(captured, SNP[0])
    trust_domain, domain_attester = tdx_road(captured)
    with refused("other-hardware"):
        dataclasses.replace(snp, hcl_report=trust_domain.hcl_report).establish(domain_attester, now)
    with refused("other-hardware"):
        dataclasses.replace(trust_domain, hcl_report=snp.hcl_report).establish(attester, now)


# --- captured on TDX


def test_the_captured_trust_domain_is_good_with_a_warning(captured, now) -> None:
    road, attester = tdx_road(captured)
    trust = road.establish(attester, now)
    assert trust.road is RoadName.AZURE_TDX
    assert codes(trust.warnings) == {"tpm-not-persisted"}
    assert codes(trust.not_checked) == {"revocation", "quote-collateral", "report-age"}
    assert trust.host is not None and trust.host.instance == "6332533d-5649-4d02-8aa7-8f64b7c3ee21"
    assert trust.certificates[-1] == INTEL_ROOT
    json.dumps(trust.document())


@pytest.mark.parametrize(
    ("code", "place"),
    [
        ("unsupported", 0),
        ("unsupported", 2),
        ("unsupported", 4),
        ("unsupported", 12),
        ("bad-report-signature", 30),
        ("bad-report-signature", 48),
        ("bad-report-signature", 48 + 120 - 60),
        ("other-quote", 48 + 120),
        ("other-quote", 48 + 136),
        ("other-quote", 48 + 520),
        ("malformed", 632),
        ("bad-report-signature", 636),
        ("other-enclave", 700),
        ("unsupported", 764),
        ("malformed", 766),
        ("bad-report-signature", 770),
        ("bad-report-signature", 770 + 128),
        ("bad-report-signature", 770 + 384),
        ("other-enclave", 770 + 450),
        ("malformed", 5005),
    ],
)
def test_a_changed_byte_of_the_captured_quote_is_refused_for_what_it_breaks(
    captured, now, refused, flip, code, place
) -> None:
    road, attester = tdx_road(captured)
    with refused(code):
        dataclasses.replace(road, td_quote=flip(road.td_quote, place)).establish(attester, now)


def test_a_changed_td_report_is_refused(captured, now, refused, flip) -> None:
    road, attester = tdx_road(captured)
    for code, place in (("unsupported", 0), ("claims-not-bound", 128), ("malformed", 192), ("other-quote", 520)):
        with refused(code):
            changed = flip(road.hcl_report, HARDWARE + place)
            dataclasses.replace(road, hcl_report=changed).establish(attester, now)


def test_time_and_chain_of_the_captured_trust_domain(captured, authority, now, refused) -> None:
    road, attester = tdx_road(captured)
    with refused("expired"):
        road.establish(attester, now.replace(year=2031))
    with refused("not-yet-valid"):
        road.establish(attester, now.replace(year=2023))
    with refused("no-chain"):
        dataclasses.replace(road, authorities=[authority.root().certificate]).establish(attester, now)


def test_a_cut_quote_is_refused_wherever_it_is_cut(captured, now) -> None:
    road, attester = tdx_road(captured)
    for size in (*range(1300), *range(1300, 4936, 37)):
        with pytest.raises(AppraisalError):
            dataclasses.replace(road, td_quote=road.td_quote[:size]).establish(attester, now)


# --- made here


def made_snp(snp_machine, hcl, claims=None, **changes):
    machine = snp_machine()
    claims = claims or hcl.claims()
    probe = parse_hcl(hcl.report(bytes(1184), claims))
    report = hcl.report(machine.report(probe.digest, **changes), claims)
    return AzureSnp(report, machine.vcek.der, [machine.ark.certificate], [machine.ask.der])


def made_tdx(machine, hcl, claims=None, attributes=0, **changes):
    claims = claims or hcl.claims()
    bound = parse_hcl(hcl.report(bytes(1184), claims)).digest
    report = hcl.report(machine.td_report(bound, attributes), claims, kind=4)
    return AzureTdx(report, machine.quote(bound, attributes, **changes), [machine.root.certificate])


def test_another_key_is_believed_over_the_endorsement_key(snp_machine, hcl, attester, now, refused) -> None:
    """This collection's own attestation key is not the one that the paravisor names."""
    road, machine = made_snp(snp_machine, hcl), attester()
    with refused("other-key"):
        road.establish(machine, now)
    activation, _credential = Activation.begin(hcl.endorsement_area(), machine.ak)
    with refused("not-activated"):
        dataclasses.replace(road, activation=activation).establish(machine, now)
    answered = activation.answered(activation.secret)
    trust = dataclasses.replace(road, activation=answered).establish(machine, now)
    assert [binding.what for binding in trust.bindings][:2] == ["attestation key", "endorsement key"]
    with refused("other-attestation-key"):
        dataclasses.replace(road, activation=answered).establish(attester(), now)


def test_the_endorsement_key_of_another_machine_is_refused(snp_machine, hcl, attester, now, refused) -> None:
    machine, other = attester(), type(hcl)()
    activation, _credential = Activation.begin(other.endorsement_area(), machine.ak)
    road = dataclasses.replace(made_snp(snp_machine, hcl), activation=activation.answered(activation.secret))
    with refused("other-endorsement-key"):
        road.establish(machine, now)


@pytest.mark.parametrize(
    ("code", "changes"),
    [("debug-guest", {"policy": 0xB001F}), ("wrong-vmpl", {"vmpl": 1}), ("migration-agent", {"policy": 0x7001F})],
)
def test_a_guest_that_is_open_to_its_host_is_refused(snp_machine, hcl, attester, now, refused, code, changes) -> None:
    with refused(code):
        made_snp(snp_machine, hcl, **changes).establish(attester(hcl.attestation_area()), now)


def test_what_the_paravisor_warns_of_is_passed_on(snp_machine, hcl, attester, now) -> None:
    claims = hcl.claims(**{"secure-boot": False, "tpm-persisted": False})
    trust = made_snp(snp_machine, hcl, claims).establish(attester(hcl.attestation_area()), now)
    assert codes(trust.warnings) == {"secure-boot-off", "tpm-not-persisted"}
    claims = hcl.claims(**{"tpm-persisted": True})
    trust = made_snp(snp_machine, hcl, claims).establish(attester(hcl.attestation_area()), now)
    assert trust.warnings == () and "tpm-persistence" not in codes(trust.not_checked)


@pytest.mark.parametrize("version", [4, 5])
def test_a_quote_of_either_version_is_good(tdx_machine, hcl, attester, now, version) -> None:
    road = made_tdx(tdx_machine(), hcl, version=version)
    assert road.establish(attester(hcl.attestation_area()), now).road is RoadName.AZURE_TDX


@pytest.mark.parametrize(
    ("code", "changes"),
    [
        ("debug-guest", {"attributes": 1}),
        ("other-tdx-module", {"module_signer": b"\1" * 48}),
        ("other-enclave", {"enclave_signer": b"\1" * 32}),
        ("other-enclave", {"enclave_attributes": 2}),
        ("other-enclave", {"vouched": b"\1" * 32}),
        ("unsupported", {"version": 3}),
    ],
)
def test_a_quote_that_says_too_little_is_refused(tdx_machine, hcl, attester, now, refused, code, changes) -> None:
    with refused(code):
        made_tdx(tdx_machine(), hcl, **changes).establish(attester(hcl.attestation_area()), now)


def test_a_certificate_that_is_not_a_platforms_is_refused(tdx_machine, hcl, attester, now, refused) -> None:
    with refused("not-a-pck"):
        made_tdx(tdx_machine(pck_extension=False), hcl).establish(attester(hcl.attestation_area()), now)


def test_time_of_what_is_made_here(tdx_machine, hcl, attester, now, refused) -> None:
    road, machine = made_tdx(tdx_machine(), hcl), attester(hcl.attestation_area())
    with refused("expired"):
        road.establish(machine, now + datetime.timedelta(days=2))


# --- the claims


def edited(hcl, change) -> bytes:
    document = json.loads(hcl.claims())
    change(document)
    return json.dumps(document).encode()


CLAIM_EDITS = {
    "no keys": lambda found: found.pop("keys"),
    "keys of another type": lambda found: found.update(keys={"HCLAkPub": 1}),
    "no attestation key": lambda found: found["keys"].pop(0),
    "the attestation key twice": lambda found: found["keys"].append(found["keys"][0]),
    "nine keys": lambda found: found["keys"].extend([{**found["keys"][0], "kid": str(n)} for n in range(7)]),
    "a key that is no object": lambda found: found["keys"].append("HCLAkPub"),
    "a key without a name": lambda found: found["keys"][1].pop("kid"),
    "an ECC key": lambda found: found["keys"][1].update(kty="EC"),
    "a modulus that is no text": lambda found: found["keys"][0].update(n=5),
    "a modulus in other base64": lambda found: found["keys"][0].update(n="++//"),
    "a modulus of one character": lambda found: found["keys"][0].update(n="A"),
    "no configuration": lambda found: found.pop("vm-configuration"),
    "no id": lambda found: found["vm-configuration"].pop("vmUniqueId"),
    "an id that is none": lambda found: found["vm-configuration"].update(vmUniqueId="../../x"),
    "a flag that is a number": lambda found: found["vm-configuration"].update({"secure-boot": 1}),
    "user data that is short": lambda found: found.update({"user-data": "00"}),
    "user data that is a list": lambda found: found.update({"user-data": []}),
}


@pytest.mark.parametrize("edit", CLAIM_EDITS.values(), ids=CLAIM_EDITS.keys())
def test_claims_of_another_shape_are_malformed(hcl, refused, edit) -> None:
    with refused("malformed"):
        parse_hcl(hcl.report(bytes(1184), edited(hcl, edit)))


@pytest.mark.parametrize("change", [{"n": "AQAB"}, {"e": "AQ"}, {"e": "AgAB"}])
def test_a_weak_key_in_the_claims_is_refused(hcl, refused, change) -> None:
    with refused("bad-key"):
        parse_hcl(hcl.report(bytes(1184), edited(hcl, lambda found: found["keys"][0].update(change))))


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"[]",
        b"{",
        b"[" * 1000 + b"]" * 1000,
        b'{"keys":[],"keys":[]}',
        b'{"keys":NaN}',
        b"{}\0",
        b" " * 13000 + b"{}",
    ],
    ids=["empty", "list", "cut", "deep", "twice", "nan", "nul", "long"],
)
def test_claims_that_are_not_one_honest_object_are_malformed(hcl, refused, raw) -> None:
    with refused("malformed"):
        parse_hcl(hcl.report(bytes(1184), raw))


def test_the_digest_of_the_claims_is_by_the_hash_that_the_report_names(hcl) -> None:
    raw = bytearray(hcl.report(bytes(1184), hcl.claims()))
    for number, size in ((1, 32), (2, 48), (3, 64)):
        struct.pack_into("<I", raw, 1228, number)
        report = parse_hcl(bytes(raw))
        assert len(report.digest) == size and report.kind is HardwareReport.SNP


@pytest.mark.parametrize("version", [1, 2])
def test_a_report_of_either_version_is_read(snp_machine, hcl, attester, now, version) -> None:
    machine, claims = snp_machine(), hcl.claims()
    bound = parse_hcl(hcl.report(bytes(1184), claims, version=version)).digest
    report = hcl.report(machine.report(bound), claims, version=version)
    road = AzureSnp(report, machine.vcek.der, [machine.ark.certificate], [machine.ask.der])
    assert road.establish(attester(hcl.attestation_area()), now).road is RoadName.AZURE_SNP


def test_a_report_does_not_pass_for_one_of_the_other_version(hcl, refused) -> None:
    for version, other in ((1, 2), (2, 1)):
        raw = bytearray(hcl.report(bytes(1184), hcl.claims(), version=version))
        struct.pack_into("<I", raw, 1220, other)
        with refused("malformed"):
            parse_hcl(bytes(raw))


def test_keys_of_other_names_and_kinds_are_passed_over(hcl, refused) -> None:
    """The paravisor may name keys that nobody here asks for; each has a name of its own."""

    def with_keys(*more):
        return edited(hcl, lambda found: found["keys"].extend(more))

    other = {"kid": "HCLOther", "kty": "EC", "crv": "P-384", "x": "AQ", "y": "AQ"}
    claims = parse_hcl(hcl.report(bytes(1184), with_keys(other, {"kid": "HCLTransferKey", "kty": "RSA"}))).claims
    assert claims.attestation_key.public_numbers() == hcl.ak.public_key().public_numbers()
    with refused("malformed"):
        parse_hcl(hcl.report(bytes(1184), with_keys(other, other)))
    with refused("malformed"):
        parse_hcl(hcl.report(bytes(1184), edited(hcl, lambda found: found["keys"][0].update(kty="EC"))))
