# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A certificate with a date of no calendar, in each place where a machine sends one: refused, as any other nonsense."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.hardware.hcl import parse_hcl
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.roads.aws import AwsNitroTpm
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.roads.azure import AzureSnp, AzureTdx
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.roads.endorsement_key import Activation, EkCertificate
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.roads.gcp import GcpAkCertificate
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.roads.trust import Attester, Road
from ansible_collections.cvm.fde.tests.unit.plugins.conftest import timeless
from cryptography import x509

from .conftest import Authority, HclMaker, NitroMachine, SnpMachine, TdxMachine, cbor

PLACES = ("leaf", "authority")


def endorsed(place: str, shown: Attester, hcl: HclMaker) -> Road:
    activation, _credential = Activation.begin(hcl.endorsement_area(), shown.ak)
    answered, root = activation.answered(activation.secret), Authority.root()
    if place == "leaf":
        return EkCertificate(answered, timeless(hcl.ek.public_key()), [root.certificate])
    return EkCertificate(answered, root.der, [root.certificate], [timeless()])


def google(place: str, shown: Attester, _hcl: HclMaker) -> Road:
    root = Authority.root()
    if place == "leaf":
        return GcpAkCertificate(timeless(shown.ak.key), [], [root.certificate])
    leaf = root.issue("instance", public=shown.ak.key)
    return GcpAkCertificate(leaf.der, [timeless()], [root.certificate])


def snp(place: str, _shown: Attester, hcl: HclMaker) -> Road:
    chip, bound = SnpMachine(), parse_hcl(hcl.report(bytes(1184), hcl.claims())).digest
    report = hcl.report(chip.report(bound), hcl.claims())
    road = AzureSnp(report, chip.vcek.der, [chip.ark.certificate], [chip.ask.der])
    if place == "leaf":
        return dataclasses.replace(road, vcek=timeless())
    return dataclasses.replace(road, intermediates=[timeless()])


def tdx(place: str, _shown: Attester, hcl: HclMaker) -> Road:
    platform, bound = TdxMachine(), parse_hcl(hcl.report(bytes(1184), hcl.claims())).digest
    roots, name = [platform.root.certificate], "pck" if place == "leaf" else "root"
    bad = x509.load_der_x509_certificate(timeless())
    setattr(platform, name, Authority(bad, getattr(platform, name).key))
    return AzureTdx(hcl.report(platform.td_report(bound), hcl.claims(), kind=4), platform.quote(bound), roots)


def aws(place: str, shown: Attester, _hcl: HclMaker) -> Road:
    nitro = NitroMachine()
    changes = {"certificate": timeless()} if place == "leaf" else {"cabundle": [timeless()]}
    payload = nitro.payload(shown.ak.raw, shown.nonce, **changes)
    return AwsNitroTpm(nitro.document(cbor(payload, True)), [nitro.root.certificate])


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("make", [endorsed, google, snp, tdx, aws])
def test_a_certificate_with_a_date_of_no_calendar_is_refused(
    attester: Any, hcl: HclMaker, now: Any, refused: Any, make: Any, place: str
) -> None:
    shown = attester(hcl.attestation_area() if make in (snp, tdx) else None)
    road = make(place, shown, hcl)
    with refused("malformed"):
        road.establish(shown, now)
