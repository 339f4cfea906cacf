# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every machine that was captured with a reason to trust its key, and each reason damaged in turn."""

from __future__ import annotations

import dataclasses
import datetime
from typing import Any, Callable, NamedTuple

import pytest
from ansible_collections.cvm.fde.plugins.module_utils.tpm import templates as tpm
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.hardware import tdx
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.hardware.nitrotpm import parse_document
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.roads.aws import AwsNitroTpm
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.roads.azure import AzureSnp, AzureTdx
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.roads.endorsement_key import Activation, EkCertificate
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.roads.gcp import GcpAkCertificate
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.roads.trust import Attester
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.structures import PublicArea, parse_public
from ansible_collections.cvm.fde.tests.unit.plugins.plugin_utils.appraisal.captured import SAMPLES
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ObjectIdentifier

DAY = datetime.timedelta(days=1)


class Machine(NamedTuple):
    """A road with what was captured, the machine that it leads to, and when that was so."""

    road: Any
    shown: Attester
    moment: datetime.datetime


def verified(captured: Any, name: str) -> Attester:
    """Return what a machine showed, after its quote was verified."""
    sample = SAMPLES[name](captured.folder)
    found = sample.verify()
    assert found.attestation_key is not None
    return Attester(found.attestation_key, found.attest.qualified_signer, sample.nonce, found.values)


def azure_snp(captured: Any, name: str, now: datetime.datetime) -> Machine:
    parts, _shown = captured.azure(f"quotes/azure-snp/evidence-{name}.json")
    ask = captured.ask.public_bytes(Encoding.DER)
    road = AzureSnp(parts["hcl_report"], parts["vcek"], [captured.ark], [ask])
    return Machine(road, verified(captured, f"azure-snp-{name}"), now)


def azure_tdx(captured: Any, now: datetime.datetime) -> Machine:
    parts, _shown = captured.azure("quotes/azure-tdx/evidence-v1.json")
    root = tdx.parse_quote(parts["td_quote"]).certificates[-1]
    return Machine(AzureTdx(parts["hcl_report"], parts["td_quote"], [root]), verified(captured, "azure-tdx-v1"), now)


def gcp(captured: Any, now: datetime.datetime) -> Machine:
    attestation, _shown = captured.vaportpm("quotes/gcp-sev.json")
    chain = x509.load_pem_x509_certificates(attestation["gcp"]["ak_cert_chain"].encode())
    leaf, *between = (certificate.public_bytes(Encoding.DER) for certificate in chain)
    road = GcpAkCertificate(leaf, between, captured.authorities("quotes/gcp-ekak-root.pem"))
    return Machine(road, verified(captured, "gcp-sev"), now)


def aws(captured: Any) -> Machine:
    attestation, _shown = captured.vaportpm("quotes/aws-nitrotpm.json")
    document = bytes.fromhex(attestation["nitro"]["document"])
    road = AwsNitroTpm(document, captured.authorities("quotes/aws-nitro-root.pem"))
    return Machine(road, verified(captured, "aws-nitrotpm"), parse_document(document).timestamp)


def keylime(captured: Any, authority: Any, now: datetime.datetime) -> Machine:
    """The agent's keys are real; the certificate of its endorsement key is one of our own."""
    shown, endorsement = verified(captured, "keylime"), SAMPLES["keylime"](captured.folder).endorsement
    assert endorsement is not None
    root = authority.root("a TPM's maker")
    purpose = x509.ExtendedKeyUsage([ObjectIdentifier("2.23.133.8.1")])
    named = [x509.NameAttribute(ObjectIdentifier(f"2.23.133.2.{number}"), "x") for number in (1, 2, 3)]
    names = x509.SubjectAlternativeName([x509.DirectoryName(x509.Name(named))])
    leaf = root.issue("EK", public=endorsement.key, extensions=[(purpose, False), (names, True)])
    return Machine(EkCertificate(activated(endorsement, shown), leaf.der, [root.certificate]), shown, now)


def activated(endorsement: PublicArea, shown: Attester) -> Activation:
    activation, _credential = Activation.begin(endorsement, shown.ak)
    return activation.answered(activation.secret)


MACHINES: dict[str, Callable[..., Machine]] = {
    "keylime": keylime,
    "azure-snp-v1": lambda captured, _authority, now: azure_snp(captured, "v1", now),
    "azure-snp-v2": lambda captured, _authority, now: azure_snp(captured, "v2", now),
    "azure-tdx-v1": lambda captured, _authority, now: azure_tdx(captured, now),
    "aws-nitrotpm": lambda captured, _authority, _now: aws(captured),
    "gcp-sev": lambda captured, _authority, now: gcp(captured, now),
}


@pytest.fixture(params=MACHINES)
def machine(request: Any, captured: Any, authority: Any, now: datetime.datetime) -> Machine:
    return MACHINES[request.param](captured, authority, now)


def test_the_quoting_key_of_the_machine_is_believed(machine: Machine) -> None:
    trust = machine.road.establish(machine.shown, machine.moment)
    assert trust.ak_name == machine.shown.ak.name


def test_its_certificate_is_not_believed_once_it_has_expired(machine: Machine, refused: Any) -> None:
    """AWS's live three hours: at any later time the document is one of the past."""
    road = machine.road
    if isinstance(road, AwsNitroTpm):
        road = dataclasses.replace(road, maximum_age=1000 * DAY)
    for later in (machine.moment.replace(year=2060), machine.moment + 40 * 365 * DAY):
        with refused("expired"):
            road.establish(machine.shown, later)


def test_nor_before_it_is_valid(machine: Machine, refused: Any) -> None:
    with refused("from-the-future" if isinstance(machine.road, AwsNitroTpm) else "not-yet-valid"):
        machine.road.establish(machine.shown, machine.moment.replace(year=2015))


def test_no_other_root_leads_to_it(machine: Machine, authority: Any, refused: Any) -> None:
    other = authority.root("another root").certificate
    with refused("no-chain"):
        dataclasses.replace(machine.road, authorities=[other]).establish(machine.shown, machine.moment)


def test_no_other_key_of_its_kind_is_believed(machine: Machine, attester: Any, refused: Any) -> None:
    other = attester(nonce=machine.shown.nonce, values=machine.shown.values)
    code = "other-attestation-key" if isinstance(machine.road, EkCertificate) else "other-key"
    with refused(code):
        machine.road.establish(other, machine.moment)


@pytest.mark.parametrize(("clear", "add"), [(tpm.RESTRICTED, 0), (0, tpm.DECRYPT)], ids=["unrestricted", "decrypts"])
def test_a_key_that_does_more_is_refused_on_every_road(machine: Machine, refused: Any, clear: int, add: int) -> None:
    raw = machine.shown.ak.raw
    attributes = machine.shown.ak.attributes & ~clear | add
    changed = parse_public(raw[:4] + attributes.to_bytes(4, "big") + raw[8:])
    with refused("bad-attestation-key"):
        machine.road.establish(dataclasses.replace(machine.shown, ak=changed), machine.moment)


def test_another_endorsement_key_is_refused_where_there_is_one(machine: Machine, attester: Any, refused: Any) -> None:
    """The key of another TPM, which answered a credential for it; the platforms of Google and AWS name no such key."""
    modulus = rsa.generate_private_key(65537, 2048).public_key().public_numbers().n
    other = parse_public(tpm.EK_RSA_2048.fixed + b"\1\0" + modulus.to_bytes(256, "big"))
    if isinstance(machine.road, EkCertificate):
        with refused("other-signer"):
            road = dataclasses.replace(machine.road, activation=activated(other, machine.shown))
            road.establish(machine.shown, machine.moment)
    elif isinstance(machine.road, (AzureSnp, AzureTdx)):
        stranger = attester()
        with refused("other-endorsement-key"):
            road = dataclasses.replace(machine.road, activation=activated(other, stranger))
            road.establish(stranger, machine.moment)
    else:
        assert machine.road.establish(machine.shown, machine.moment).ek is None
