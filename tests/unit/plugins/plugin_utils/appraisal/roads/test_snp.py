# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A report of SEV-SNP is believed from the chip that its certificate names, and from no other."""

from __future__ import annotations

import datetime

import pytest
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.errors import AppraisalError
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.hardware.certificates import read_certificate
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.hardware.snp import (
    parse_report,
    require_production,
    verify_report,
)

AMD = "1.3.6.1.4.1.3704.1."


def judge(machine, report, moment, **changes):
    known = {"vcek": machine.vcek.certificate, "roots": [machine.ark.certificate], "between": [machine.ask.certificate]}
    known.update(changes)
    return verify_report(parse_report(report), known["vcek"], known["roots"], known["between"], moment)


@pytest.fixture(scope="module")
def real(captured):
    vcek = read_certificate(captured.read("hardware/sev-snp-milan-vcek.testcer"))
    return captured.read("hardware/sev-snp-milan-attestation.bin"), vcek, [captured.ark], [captured.ask]


def test_the_captured_report_is_good(real, now) -> None:
    report, *known = real
    endorsed = verify_report(parse_report(report), *known, now)
    assert endorsed.product == "Milan"
    assert endorsed.tcb == {"bootloader": 2, "tee": 0, "snp": 5, "microcode": 68}
    assert [certificate.subject.rfc4514_string()[:13] for certificate in endorsed.chain] == [
        "CN=SEV-VCEK,O",
        "CN=SEV-Milan,",
        "CN=ARK-Milan,",
    ]


def test_the_captured_guest_may_be_debugged_and_is_refused_for_that(real, refused) -> None:
    with refused("debug-guest"):
        require_production(parse_report(real[0]))


def test_any_changed_byte_of_the_captured_report_is_refused(real, now, flip) -> None:
    report, *known = real
    for place in range(len(report)):
        with pytest.raises(AppraisalError):
            verify_report(parse_report(flip(report, place)), *known, now)


def test_the_captured_report_is_refused_when_its_certificate_is_not_valid(real, now, refused) -> None:
    report, *known = real
    with refused("expired"):
        verify_report(parse_report(report), *known, now.replace(year=2030))
    with refused("not-yet-valid"):
        verify_report(parse_report(report), *known, now.replace(year=2021))


@pytest.mark.parametrize("version", [2, 3, 4, 5])
@pytest.mark.parametrize(
    ("product", "family", "model"), [("Milan", 0x19, 1), ("Genoa", 0x19, 0x11), ("Turin", 0x1A, 2)]
)
def test_every_version_and_product_is_read(snp_machine, now, version, product, family, model) -> None:
    machine = snp_machine(product)
    report = machine.report(version=version, family=family, model=model)
    endorsed = judge(machine, report, now)
    assert endorsed.product == product
    assert endorsed.tcb.get("fmc") == (1 if product == "Turin" else None)
    require_production(parse_report(report))


@pytest.mark.parametrize(
    ("code", "changes"),
    [
        ("unsupported", {"version": 1}),
        ("unsupported", {"version": 6}),
        ("unsupported", {"algorithm": 2}),
        ("unsupported", {"flags": 1 << 2}),
        ("unsupported", {"flags": 7 << 2}),
        ("unsupported", {"flags": 2}),
        ("malformed", {"policy": 0x1F}),
        ("malformed", {"vmpl": 4}),
        ("other-chip", {"version": 3, "family": 0x1A, "model": 2}),
        ("other-chip", {"version": 3, "family": 0x19, "model": 0x11}),
    ],
)
def test_a_report_that_contradicts_itself_or_its_certificate_is_refused(
    snp_machine, now, refused, code, changes
) -> None:
    machine = snp_machine()
    with refused(code):
        judge(machine, machine.report(**changes), now)


@pytest.mark.parametrize(
    ("code", "changes"),
    [
        ("debug-guest", {"policy": 0x3001F & ~(1 << 18) | 1 << 19}),
        ("migration-agent", {"policy": 0x3001F | 1 << 18}),
        ("wrong-vmpl", {"vmpl": 2}),
    ],
)
def test_a_guest_that_is_open_to_its_host_is_refused(snp_machine, refused, code, changes) -> None:
    with refused(code):
        require_production(parse_report(snp_machine().report(**changes)))


def test_another_chips_certificate_is_refused(snp_machine, now, refused) -> None:
    machine, other = snp_machine(), snp_machine(chip=bytes(64))
    with refused("other-chip"):
        judge(machine, machine.report(), now, vcek=other.vcek.certificate, roots=[other.ark.certificate],
              between=[other.ask.certificate])  # fmt: skip


@pytest.mark.parametrize("component", ["bootloader", "tee", "snp", "microcode"])
def test_a_certificate_for_other_firmware_is_refused(snp_machine, now, refused, component) -> None:
    machine, other = snp_machine(), snp_machine(**{component: 99})
    with refused("other-tcb"):
        judge(machine, machine.report(), now, vcek=other.vcek.certificate, roots=[other.ark.certificate],
              between=[other.ask.certificate])  # fmt: skip


def test_a_signature_by_another_key_of_the_same_chip_is_refused(snp_machine, now, refused) -> None:
    machine, other = snp_machine(), snp_machine()
    with refused("bad-report-signature"):
        judge(machine, other.report(), now)


@pytest.mark.parametrize("name", ["2", "4", "3.1", "3.2", "3.3", "3.8"])
def test_a_certificate_that_lacks_what_makes_it_a_vcek_is_refused(snp_machine, now, refused, name) -> None:
    machine = snp_machine(drop=AMD + name)
    with refused("not-a-vcek"):
        judge(machine, machine.report(), now)


def test_a_cut_chain_another_root_and_another_time_are_refused(snp_machine, now, refused) -> None:
    machine, other = snp_machine(), snp_machine()
    with refused("no-chain"):
        judge(machine, machine.report(), now, between=[])
    with refused("no-chain"):
        judge(machine, machine.report(), now, roots=[other.ark.certificate])
    with refused("no-chain"):
        judge(machine, machine.report(), now, roots=[])
    with refused("expired"):
        judge(machine, machine.report(), now + datetime.timedelta(days=2))
    with refused("not-yet-valid"):
        judge(machine, machine.report(), now - datetime.timedelta(days=2))


@pytest.mark.parametrize("size", [0, 1, 0x2A0, 1183, 1185])
def test_a_report_of_another_length_is_malformed(snp_machine, refused, size) -> None:
    with refused("malformed"):
        parse_report(snp_machine().report().ljust(1185, b"\0")[:size])


def test_bytes_behind_the_signature_are_refused(snp_machine, now, refused) -> None:
    machine = snp_machine()
    with refused("malformed"):
        judge(machine, machine.report()[:-1] + b"\1", now)
