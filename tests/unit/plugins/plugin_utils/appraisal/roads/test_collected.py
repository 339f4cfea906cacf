# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a machine collects of its platform leads to its attestation key, over the real code of both sides.

The TPM is a real software one, with indexes as the clouds fill them. Doubles are: the authorities (our own), the
paravisor's index (larger than a software TPM's largest, so it is answered for), the metadata service (a server of our
own) and AWS's program (it signs what it reads from the TPM, as the hypervisor does).
"""

from __future__ import annotations

import base64
import datetime
import json
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Callable, Iterator, Optional

import pytest
from ansible_collections.cvm.fde.plugins.module_utils.runner import Completed
from ansible_collections.cvm.fde.plugins.module_utils.tpm import platform, rounds
from ansible_collections.cvm.fde.plugins.module_utils.tpm.esys import opened
from ansible_collections.cvm.fde.plugins.module_utils.tpm.keys import attestation_key, endorsement_key, primary
from ansible_collections.cvm.fde.plugins.module_utils.tpm.metadata import MetadataService
from ansible_collections.cvm.fde.plugins.module_utils.tpm.quote import read_pcrs
from ansible_collections.cvm.fde.plugins.module_utils.tpm.templates import AK_ECC_P256, NO_DA, Template
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.case import Grounds
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.hardware.hcl import parse_hcl
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.hardware.tdx import parse_quote as parse_td_quote
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.judgement import Result, Verdict
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.policy import HardwareTerms, Policy
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.reference import PHASE_READY, parse_manifest
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.roads.choice import Allowed
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.roads.trust import RoadName
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.rules.table import DEFAULT_PCRS
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.structures import parse_public
from ansible_collections.cvm.fde.plugins.plugin_utils.attestation import Attestation
from ansible_collections.cvm.fde.plugins.plugin_utils.case_file import Today, judge_again
from ansible_collections.cvm.fde.tests.unit.plugins.conftest import write_index
from ansible_collections.cvm.fde.tests.unit.plugins.plugin_utils.appraisal.encoding import der
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

OID = "1.3.6.1.4.1.11129.2.1.21"


#: Zone, project number, project, instance 7, name, and that it is one of production.
INSTANCE = der(
    0x30,
    der(0x0C, b"zone")
    + der(2, b"\5")
    + der(0x0C, b"project")
    + der(2, b"\7")
    + der(0x0C, b"name")
    + der(0xA0, der(0x30, der(0xA1, der(1, b"\xff")))),
)
#: Google's template: that of the collection's key, without noDA.
GOOGLE = bytearray(AK_ECC_P256.public)
GOOGLE[4:8] = (int.from_bytes(GOOGLE[4:8], "big") & ~NO_DA).to_bytes(4, "big")


class NitroProgram:
    """Stands for ``nitro-tpm-attest`` and the hypervisor behind it; no other program is there."""

    def __init__(self, tcti: str, maker: Any, encode: Callable[..., bytes], **changes: Any) -> None:
        self.tcti, self.maker, self.encode, self.changes = tcti, maker, encode, changes
        self.esys: Any = None

    def find(self, name: str) -> Optional[str]:
        return name if name == "nitro-tpm-attest" else None

    def run(self, argv: list[str], **_options: Any) -> Completed:
        given = dict(zip(argv[1::2], argv[2::2]))
        read = {name: Path(path).read_bytes() for name, path in given.items()}
        pcrs = read_pcrs(self.esys, {"sha384": range(24)})["sha384"]
        payload = {**self.maker.payload(read["--public-key"], read["--nonce"], nitrotpm_pcrs=pcrs), **self.changes}
        document = self.maker.document(self.encode(payload))
        return Completed(tuple(argv), 0, document, b"")


def hold(machine: Any, grounds: Grounds, runner: Any = None, metadata: Optional[str] = None) -> Result:
    """Hold both rounds with a machine and return the result."""
    return held(machine, grounds, runner, metadata).result


def held(machine: Any, grounds: Grounds, runner: Any = None, metadata: Optional[str] = None) -> Attestation:
    """Hold both rounds with a machine."""
    runner = runner or SimpleNamespace(find=lambda _name: None)
    attestation = Attestation(grounds, DEFAULT_PCRS, clock=lambda: grounds.now)
    asked = attestation.evidence_request(rounds.identity(machine.sources))
    request = rounds.Request(
        base64.b64decode(asked["nonce"]),
        dict.fromkeys(asked["banks"], tuple(asked["pcrs"])),
        base64.b64decode(asked["credential"]),
        base64.b64decode(asked["encrypted_seed"]),
        tuple(asked["platform"]),
    )
    sources = replace(machine.sources, metadata=MetadataService(metadata))
    answer = rounds.evidence(sources, request, machine.token, runner)
    attestation.judge(json.loads(json.dumps(answer)))
    return attestation


@pytest.fixture
def grounds(image: Any, now: datetime.datetime) -> Callable[..., Grounds]:
    def make(road: RoadName, *authorities: x509.Certificate, **changes: Any) -> Grounds:
        manifest = image.manifest()
        manifest["pcrs"].update(changes)
        reference = parse_manifest(json.dumps(manifest).encode())
        return Grounds((reference,), (), now, allowed=Allowed((road,), "web1", authorities={road: authorities}))

    return make


def reason(result: Result, name: str = "road") -> str:
    return next(f"{check.status.value}: {check.reason}" for check in result.checks if check.name == name)


@pytest.mark.parametrize("road", [RoadName.GCP_AK_CERTIFICATE, RoadName.AZURE_SNP, RoadName.AZURE_TDX])
def test_a_machine_of_no_cloud_is_unknown_on_the_road_of_one(machine: Any, grounds: Any, road: RoadName) -> None:
    result = hold(machine, grounds(road))
    assert (result.verdict, result.road) == (Verdict.UNKNOWN, "none")


# --- Google


@pytest.fixture(scope="module")
def google(make_machine: Callable[..., Any], authority: Any, extension: Any) -> tuple[Any, x509.Certificate]:
    """A machine with Google's indexes, and the root that its certificate leads to."""
    machine = make_machine("google")
    root = authority.root()
    with opened(machine.tcti) as esys:
        with primary(esys, Template(bytes(GOOGLE), b"")) as key:
            public = parse_public(key.public)
        leaf = root.issue("instance", public=public.key, extensions=[(extension(OID, INSTANCE), False)])
        write_index(esys, 0x01C10002, leaf.der)
        write_index(esys, 0x01C10003, bytes(GOOGLE))
    return machine, root.certificate


def test_googles_key_leads_to_ours(google: Any, grounds: Any) -> None:
    machine, root = google
    result = hold(machine, grounds(RoadName.GCP_AK_CERTIFICATE, root))
    assert result.verdict is Verdict.TRUSTED, [check for check in result.checks if check.status.value != "passed"]
    assert result.road == "gcp-ak-certificate"
    assert result.trust is not None and result.trust.host is not None
    assert result.trust.host.instance == "7"
    assert result.trust.bindings[0].to == "platform's key"
    assert result.keys is not None and result.trust.ak == result.keys.ak


def test_a_platforms_road_is_judged_again_by_the_authorities_of_then_or_of_today(
    google: Any, grounds: Any, authority: Any
) -> None:
    machine, root = google
    documents = held(machine, grounds(RoadName.GCP_AK_CERTIFICATE, root)).documents()
    assert judge_again(documents, Today()).verdict is Verdict.TRUSTED
    # The authorities of endorsement keys, of today or of then, are none of this road.
    assert judge_again(documents, Today(authorities=())).verdict is Verdict.TRUSTED
    given = Today(authorities=(root,), platforms={RoadName.AZURE_SNP: (root,)})
    assert judge_again(documents, given).verdict is Verdict.UNKNOWN
    other = authority.root().certificate
    given = Today(platforms={RoadName.GCP_AK_CERTIFICATE: (other,)})
    assert judge_again(documents, given).verdict is Verdict.UNTRUSTED


def test_googles_key_under_another_root_leads_nowhere(google: Any, grounds: Any, authority: Any) -> None:
    result = hold(google[0], grounds(RoadName.GCP_AK_CERTIFICATE, authority.root().certificate))
    assert result.verdict is Verdict.UNTRUSTED
    assert reason(result).startswith("failed: no chain leads")


def test_a_captured_certificate_of_google_is_not_this_machines(
    make_machine: Callable[..., Any], captured: Any, grounds: Any
) -> None:
    machine = make_machine("borrowed")
    chain = captured.json("quotes/gcp-sev.json")["attestation"]["gcp"]["ak_cert_chain"].encode()
    leaf = x509.load_pem_x509_certificates(chain)[0].public_bytes(Encoding.DER)
    with opened(machine.tcti) as esys:
        write_index(esys, 0x01C10002, leaf)
        write_index(esys, 0x01C10003, bytes(GOOGLE))
    roots = captured.authorities("quotes/gcp-ekak-root.pem")
    result = hold(machine, grounds(RoadName.GCP_AK_CERTIFICATE, *roots))
    assert reason(result) == "failed: the certificate is for another key than the attestation key"


# --- Azure


class Paravisor:
    """A TPM that also has the paravisor's index; everything else is the software TPM's own."""

    def __init__(self, esys: Any, report: bytes) -> None:
        self._esys, self._report = esys, report

    def __getattr__(self, name: str) -> Any:
        return getattr(self._esys, name)

    def get_capability(self, kind: Any, handle: int, count: int) -> Any:
        if handle == platform.AZURE_REPORT:
            return False, SimpleNamespace(data=SimpleNamespace(handles=[handle]))
        return self._esys.get_capability(kind, handle, count)

    def tr_from_tpmpublic(self, handle: int) -> Any:
        return "report" if handle == platform.AZURE_REPORT else self._esys.tr_from_tpmpublic(handle)

    def nv_read_public(self, nv: Any) -> Any:
        if nv != "report":
            return self._esys.nv_read_public(nv)
        public = SimpleNamespace(dataSize=len(self._report), attributes=1 << 29 | 1 << 18)
        return SimpleNamespace(nvPublic=public), b""

    def nv_read(self, nv: Any, size: int, offset: int, *more: Any) -> Any:
        if nv != "report":
            return self._esys.nv_read(nv, size, offset, *more)
        return self._report[offset : offset + size]


@pytest.fixture
def metadata() -> Iterator[Callable[[dict[str, Any]], str]]:
    """A metadata service with these answers by path; returns its address."""
    servers = []

    def serve(answers: dict[str, Any]) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = answers.get(self.path, {})
                self.send_response(200 if self.headers["Metadata"] == "true" else 403)
                self.end_headers()
                self.wfile.write(body if isinstance(body, bytes) else json.dumps(body).encode())

            do_POST = do_GET

            def log_message(self, *_words: Any) -> None:
                """Say nothing."""

        servers.append(HTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}"

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


def paravisor(monkeypatch: pytest.MonkeyPatch, report: bytes) -> None:
    collect = rounds.collect
    monkeypatch.setattr(rounds, "collect", lambda esys, *more: collect(Paravisor(esys, report), *more))


def claims_of(machine: Any, hcl: Any) -> bytes:
    """Return a paravisor's claims that name the machine's endorsement key."""
    with opened(machine.tcti) as esys, endorsement_key(esys) as key:
        numbers = parse_public(key.public).key.public_numbers()
    text = base64.urlsafe_b64encode(numbers.n.to_bytes(256, "big")).decode().rstrip("=")
    claims = json.loads(hcl.claims())
    claims["keys"][1]["n"] = text
    return json.dumps(claims).encode()


@pytest.fixture
def on_azure(
    machine: Any, hcl: Any, snp_machine: Any, metadata: Any, monkeypatch: pytest.MonkeyPatch
) -> tuple[x509.Certificate, str]:
    """The machine on a chip under an authority of our own: that authority, and its metadata service's address."""
    chip, claims = snp_machine(), claims_of(machine, hcl)
    bound = parse_hcl(hcl.report(bytes(1184), claims)).digest
    paravisor(monkeypatch, hcl.report(chip.report(bound), claims))
    pem = {
        name: one.certificate.public_bytes(Encoding.PEM).decode()
        for name, one in vars(chip).items()
        if name in ("vcek", "ask", "ark")
    }
    answer = {"vcekCert": pem["vcek"], "certificateChain": pem["ask"] + pem["ark"]}
    return chip.ark.certificate, metadata({"/metadata/THIM/amd/certification": answer})


def launched(grounds: Grounds, **named: frozenset[str]) -> Grounds:
    """Name what may have been launched."""
    return replace(grounds, policy=Policy(hardware=HardwareTerms(**named)))


#: What the paravisor of `on_azure` is: nobody signed it.
LAUNCH = "00" * 48


def test_the_paravisors_report_leads_to_our_key_over_the_endorsement_key(
    machine: Any, grounds: Any, on_azure: Any, metadata: Any
) -> None:
    root, address = on_azure
    named = launched(grounds(RoadName.AZURE_SNP, root), measurements=frozenset((LAUNCH,)))
    result = hold(machine, named, metadata=address)
    assert result.verdict is Verdict.TRUSTED, [check for check in result.checks if check.status.value != "passed"]
    assert result.trust is not None and result.trust.hardware is not None
    assert (result.road, result.trust.hardware.product) == ("azure-snp", "Milan")
    silent = hold(machine, named, metadata=None)
    assert reason(silent) == (
        "unknown: azure-snp: no certificate of the chip came with the report of Azure's paravisor"
    )
    for nonsense in (b"", b"null", b"[]", b'{"vcekCert": 1}', b"[" * 100_000, b"\0" * 100_000):
        address = metadata({"/metadata/THIM/amd/certification": nonsense})
        assert MetadataService(address).chip_certificates() is None


def test_a_paravisor_that_no_policy_names_is_not_trusted(machine: Any, grounds: Any, on_azure: Any) -> None:
    """The chip vouches for whatever its owner launches: a paravisor of their own says of any key that it is its own."""
    root, address = on_azure
    result = hold(machine, grounds(RoadName.AZURE_SNP, root), metadata=address)
    assert (result.verdict, result.road, result.trust) == (Verdict.UNKNOWN, "none", None)
    assert reason(result) == (
        "unknown: azure-snp: the policy names neither measurements nor signers of what may have been launched: "
        f"here the measurement {LAUNCH}, signed by nobody"
    )
    # Other demands on the processor say nothing of what runs on it.
    milan = launched(grounds(RoadName.AZURE_SNP, root), products=frozenset(("Milan",)))
    assert hold(machine, milan, metadata=address).verdict is Verdict.UNKNOWN
    for other in ({"measurements": frozenset(("ab" * 48,))}, {"id_keys": frozenset(("ab" * 48,))}):
        result = hold(machine, launched(grounds(RoadName.AZURE_SNP, root), **other), metadata=address)
        assert (result.verdict, reason(result, "hardware").split(":")[0]) == (Verdict.UNTRUSTED, "failed")


def test_a_captured_report_is_not_this_machines(
    machine: Any, grounds: Any, captured: Any, metadata: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts, _attester = captured.azure("quotes/azure-snp/evidence-v2.json")
    paravisor(monkeypatch, parts["hcl_report"])
    vcek = x509.load_der_x509_certificate(parts["vcek"]).public_bytes(Encoding.PEM).decode()
    chain = captured.ask.public_bytes(Encoding.PEM).decode()
    address = metadata({"/metadata/THIM/amd/certification": {"vcekCert": vcek, "certificateChain": chain}})
    result = hold(machine, grounds(RoadName.AZURE_SNP, captured.ark), metadata=address)
    assert reason(result) == "failed: the hardware report does not vouch for this endorsement key"


def test_a_quote_of_the_trust_domain_comes_from_the_metadata_service(
    machine: Any, grounds: Any, captured: Any, metadata: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts, _attester = captured.azure("quotes/azure-tdx/evidence-v1.json")
    paravisor(monkeypatch, parts["hcl_report"])
    quote = base64.urlsafe_b64encode(parts["td_quote"]).decode().rstrip("=")
    address = metadata({"/acc/tdquote": {"quote": quote}})
    root = parse_td_quote(parts["td_quote"]).certificates[-1]
    result = hold(machine, grounds(RoadName.AZURE_TDX, root), metadata=address)
    assert reason(result) == "failed: the hardware report does not vouch for this endorsement key"
    assert MetadataService(address).td_quote(bytes(1024)) == parts["td_quote"]


# --- AWS


@pytest.fixture
def nitro(machine: Any, nitro_machine: Any, encode_cbor: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    collect = rounds.collect

    def make(**changes: Any) -> NitroProgram:
        program = NitroProgram(machine.tcti, nitro_machine(), encode_cbor, **changes)

        def collecting(esys: Any, *more: Any) -> Any:
            program.esys = esys
            return collect(esys, *more)

        monkeypatch.setattr(rounds, "collect", collecting)
        return program

    return make


@pytest.fixture
def sha384(machine: Any) -> dict[str, Any]:
    """The image's values of the bank that AWS vouches for."""
    with opened(machine.tcti) as esys:
        values = read_pcrs(esys, {"sha384": (4, 11, 12)})["sha384"]
    return {"4": [values[4].hex()], "11": {PHASE_READY: values[11].hex()}, "12": [values[12].hex()]}


def test_a_nitrotpms_document_leads_to_the_key_that_the_image_names(
    machine: Any, grounds: Any, nitro: Any, sha384: dict[str, Any]
) -> None:
    program = nitro()
    judged = grounds(RoadName.AWS_NITROTPM, program.maker.root.certificate, sha384=sha384)
    result = hold(machine, judged, program)
    assert result.verdict is Verdict.TRUSTED, [check for check in result.checks if check.status.value != "passed"]
    assert result.trust is not None and result.trust.host is not None
    assert result.trust.host.instance == "i-0123456789abcdef0"


def test_a_document_of_another_image_or_key_leads_nowhere(
    machine: Any, grounds: Any, nitro: Any, sha384: dict[str, Any]
) -> None:
    program = nitro()
    other = {**sha384, "11": {PHASE_READY: "ab" * 48}}
    result = hold(machine, grounds(RoadName.AWS_NITROTPM, program.maker.root.certificate, sha384=other), program)
    assert reason(result) == "failed: PCR 11 of the attestation document is not the image's"
    program = nitro(public_key=b"\4" + bytes(64))
    judged = grounds(RoadName.AWS_NITROTPM, program.maker.root.certificate, sha384=sha384)
    assert reason(hold(machine, judged, program)).startswith("failed: the attestation document is for another key")


def test_aws_is_unknown_for_an_image_without_values_of_its_bank(machine: Any, grounds: Any, nitro: Any) -> None:
    program = nitro()
    result = hold(machine, grounds(RoadName.AWS_NITROTPM, program.maker.root.certificate), program)
    assert reason(result).startswith("unknown: aws-nitrotpm: the manifest lists no SHA-384 values")


def test_the_key_is_named_as_an_uncompressed_point(machine: Any) -> None:
    with opened(machine.tcti) as esys, attestation_key(esys) as key:
        numbers = parse_public(key.public).key.public_numbers()
        assert platform.point(key.public) == b"\4" + numbers.x.to_bytes(32, "big") + numbers.y.to_bytes(32, "big")
