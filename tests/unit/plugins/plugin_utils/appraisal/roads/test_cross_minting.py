# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Each road has its own authorities: who vouches for TPMs may not mint the certificate of a chip, or the reverse.

What is shown here is good, but signed under an authority of our own; the question is whose authority that is.
"""

from __future__ import annotations

import struct
from typing import Any, Callable

import pytest
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.errors import AppraisalError, Undecided
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.fields import Signed
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.hardware.hcl import parse_hcl
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.platform import ParavisorReport, Platform, PlatformKey
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.policy import HardwareTerms
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.roads.choice import PLATFORMS, Allowed, Shown, walk
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.roads.endorsement_key import Activation
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.roads.trust import RoadName
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.structures import qualified_name
from ansible_collections.cvm.fde.tests.unit.plugins.plugin_utils.appraisal.encoding import (
    AK_ATTRIBUTES,
    ecc_area,
    sized,
)
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ObjectIdentifier

ROADS = [RoadName.EK_CERTIFICATE, *PLATFORMS]
#: What may have been launched; a road asks only that something is named.
LAUNCHED = HardwareTerms(measurements=frozenset(("ab" * 48,)))
#: A root, and what a machine shows under it.
Minted = tuple[x509.Certificate, Shown]


@pytest.fixture(scope="module")
def show(hcl: Any, attester: Callable[..., Any]) -> Callable[..., Shown]:
    """Make what a machine shows that has answered the credential for its keys."""

    def make(shown: Any = None, certificate: Any = None, image: Any = None, **platform: Any) -> Shown:
        shown = shown or attester()
        activation, _credential = Activation.begin(hcl.endorsement_area(), shown.ak)
        return Shown(shown, activation.answered(activation.secret), certificate, Platform(**platform), image or {})

    return make


@pytest.fixture(scope="module")
def ek_certificate(authority: Any, hcl: Any, show: Any) -> Minted:
    root = authority.root("a vTPM's authority")
    purpose = x509.ExtendedKeyUsage([ObjectIdentifier("2.23.133.8.1")])
    named = [x509.NameAttribute(ObjectIdentifier(f"2.23.133.2.{number}"), "x") for number in (1, 2, 3)]
    names = x509.SubjectAlternativeName([x509.DirectoryName(x509.Name(named))])
    leaf = root.issue("EK", public=hcl.ek.public_key(), extensions=[(purpose, False), (names, True)])
    return root.certificate, show(certificate=leaf.der)


@pytest.fixture(scope="module")
def gcp_ak_certificate(authority: Any, extension: Any, attester: Any, show: Any) -> Minted:
    root, shown, private = authority.root("EK/AK CA Root"), attester(), ec.generate_private_key(ec.SECP256R1())
    numbers = private.public_key().public_numbers()
    key = ecc_area(AK_ATTRIBUTES, numbers.x, numbers.y)
    # Zone, project number, project, instance, name, and that it is one of production.
    instance = bytes.fromhex("3018 0c017a 020105 0c0170 020107 0c016e a007 3005 a103 0101ff")
    leaf = root.issue("7", public=key.key, extensions=[(extension("1.3.6.1.4.1.11129.2.1.21", instance), False)])
    head = struct.pack(">IH", 0xFF544347, 0x8017) + sized(qualified_name(key)) + sized(shown.nonce) + bytes(16) + b"\1"
    statement = head + bytes(8) + sized(shown.ak.name) + sized(qualified_name(shown.ak))
    r, s = decode_dss_signature(private.sign(statement, ec.ECDSA(hashes.SHA256())))
    signature = struct.pack(">HH", 0x18, 0xB) + sized(r.to_bytes(32, "big")) + sized(s.to_bytes(32, "big"))
    google = PlatformKey(leaf.der, key.raw, Signed(statement, signature))
    return root.certificate, show(shown, google=google)


@pytest.fixture(scope="module")
def azure_snp(snp_machine: Any, hcl: Any, show: Any) -> Minted:
    machine, claims = snp_machine(), hcl.claims()
    bound = parse_hcl(hcl.report(bytes(1184), claims)).digest
    azure = ParavisorReport(hcl.report(machine.report(bound), claims), machine.vcek.der, (machine.ask.der,))
    return machine.ark.certificate, show(azure=azure)


@pytest.fixture(scope="module")
def azure_tdx(tdx_machine: Any, hcl: Any, show: Any) -> Minted:
    machine, claims = tdx_machine(), hcl.claims()
    bound = parse_hcl(hcl.report(bytes(1184), claims)).digest
    report = hcl.report(machine.td_report(bound), claims, kind=4)
    return machine.root.certificate, show(azure=ParavisorReport(report, td_quote=machine.quote(bound)))


@pytest.fixture(scope="module")
def aws_nitrotpm(nitro_machine: Any, encode_cbor: Any, attester: Any, show: Any) -> Minted:
    machine, values = nitro_machine(), {pcr: bytes([pcr]) * 48 for pcr in range(24)}
    shown = attester(values={"sha384": values})
    point = shown.ak.key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    document = machine.document(encode_cbor(machine.payload(point, shown.nonce)))
    image = {pcr: frozenset((values[pcr],)) for pcr in (4, 11, 12)}
    return machine.root.certificate, show(shown, image=image, nitrotpm=document)


@pytest.fixture(params=ROADS, ids=[road.value for road in ROADS])
def minted(request: Any) -> tuple[RoadName, x509.Certificate, Shown]:
    root, shown = request.getfixturevalue(request.param.name.lower())
    return request.param, root, shown


def walked(road: RoadName, shown: Shown, authorities: Any, now: Any) -> RoadName:
    """Walk one road, with the authorities that an operator gave for each."""
    allowed = Allowed((road,), "web1", authorities=authorities)
    return walk(allowed, shown, authorities.get(RoadName.EK_CERTIFICATE, ()), now, LAUNCHED).road


def test_the_authority_of_its_own_road_leads_to_the_key(minted: Any, now: Any) -> None:
    road, root, shown = minted
    assert walked(road, shown, {road: (root,)}, now) is road


@pytest.mark.parametrize("other", ROADS, ids=[f"trusted for {road.value}" for road in ROADS])
def test_the_authority_of_another_road_leads_nowhere(minted: Any, authority: Any, now: Any, other: RoadName) -> None:
    road, root, shown = minted
    own = authority.root("the road's own").certificate
    with pytest.raises(AppraisalError, match="no-chain"):
        walked(road, shown, {other: (root,), road: (own,)}, now)


def test_all_other_roads_together_lend_a_road_no_authority(minted: Any, now: Any) -> None:
    road, root, shown = minted
    others = {other: (root,) for other in ROADS if other is not road}
    with pytest.raises(Undecided) as undecided:
        walked(road, shown, others, now)
    assert "no authority" in undecided.value.reason
