# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whatever a machine sends, a road ends in trust or in the one error type."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime

import pytest
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.errors import AppraisalError
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.hardware import der
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.hardware.hcl import parse_hcl
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.hardware.nitrotpm import parse_document
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.hardware.snp import parse_report
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.hardware.tdx import parse_quote, parse_td_report
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.roads.aws import AwsNitroTpm
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.roads.azure import AzureSnp, AzureTdx
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.roads.gcp import GcpAkCertificate
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

SETTINGS = settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
PARSERS = [parse_hcl, parse_report, parse_document, parse_quote, parse_td_report]


@st.composite
def damage(draw) -> list[tuple[str, int, bytes]]:
    """A few edits: a place (modulo the length) and what replaces, enters or leaves there."""
    edit = st.tuples(st.sampled_from(["set", "insert", "cut"]), st.integers(0, 1 << 16), st.binary(max_size=8))
    return draw(st.lists(edit, min_size=1, max_size=4))


def damaged(data: bytes, edits: list[tuple[str, int, bytes]]) -> bytes:
    for kind, place, piece in edits:
        place %= len(data) + 1
        behind = place + (0 if kind == "insert" else len(piece))
        data = data[:place] + (b"" if kind == "cut" else piece) + data[behind:]
    return data


@pytest.mark.parametrize("parse", PARSERS)
@given(raw=st.binary(max_size=2000))
@settings(max_examples=100)
def test_any_bytes_end_in_the_one_error(parse, raw) -> None:
    with contextlib.suppress(AppraisalError):
        parse(raw)


@given(raw=st.binary(max_size=60))
def test_any_bytes_are_der_or_the_one_error(raw) -> None:
    for read in ("integer", "boolean", "text"):
        with contextlib.suppress(AppraisalError):
            getattr(der.Values(raw, "value"), read)()


@pytest.fixture(scope="module")
def roads(snp_machine, tdx_machine, nitro_machine, hcl, attester, authority, extension, encode_cbor):
    """One good road of each kind with the machine that it is of, and the name of the field that a guest sends."""
    bound = parse_hcl(hcl.report(bytes(1184), hcl.claims())).digest
    azure, chip, platform = attester(hcl.attestation_area()), snp_machine(), tdx_machine()
    snp_report = hcl.report(chip.report(bound), hcl.claims())
    snp = AzureSnp(snp_report, chip.vcek.der, [chip.ark.certificate], [chip.ask.der])
    tdx_report = hcl.report(platform.td_report(bound), hcl.claims(), kind=4)
    tdx = AzureTdx(tdx_report, platform.quote(bound), [platform.root.certificate])
    values = {"sha384": {pcr: bytes([pcr]) * 48 for pcr in range(24)}}
    shown, nitro, root = attester(nonce=bytes(32), values=values), nitro_machine(), authority.root()
    document = nitro.document(encode_cbor(nitro.payload(shown.ak.raw, bytes(32)), True))
    aws = AwsNitroTpm(document, [nitro.root.certificate])
    named = bytes.fromhex("30180c017a0201050c01700201070c016ea0073005a1030101ff")
    leaf = root.issue(
        "instance", public=shown.ak.key, extensions=[(extension("1.3.6.1.4.1.11129.2.1.21", named), False)]
    )
    gcp = GcpAkCertificate(leaf.der, [], [root.certificate])
    return {
        "hcl report over SNP": (snp, azure, "hcl_report"),
        "vcek": (snp, azure, "vcek"),
        "hcl report over TDX": (tdx, azure, "hcl_report"),
        "td quote": (tdx, azure, "td_quote"),
        "attestation document": (aws, shown, "document"),
        "certificate": (gcp, shown, "certificate"),
    }


KINDS = ["hcl report over SNP", "vcek", "hcl report over TDX", "td quote", "attestation document", "certificate"]


@pytest.mark.parametrize("kind", KINDS)
def test_each_is_good_before_it_is_damaged(roads, now, kind) -> None:
    road, shown, _field = roads[kind]
    assert road.establish(shown, now).ak_name == shown.ak.name


@pytest.mark.parametrize("kind", KINDS)
@SETTINGS
@given(edits=damage())
def test_a_damaged_piece_of_evidence_is_refused_or_says_the_same(roads, kind, edits) -> None:
    road, shown, field = roads[kind]
    good = getattr(road, field)
    bad = damaged(good, edits)
    now = datetime.datetime(2026, 6, 1, 12, 0, tzinfo=datetime.timezone.utc)
    try:
        trust = dataclasses.replace(road, **{field: bad}).establish(shown, now)
    except AppraisalError:
        return
    # Zeros behind a report, and what of a TD report is not in its quote, are read by nobody. A certificate's own
    # signature has bits that are not part of the number.
    without = {"certificates": ()}
    assert dataclasses.replace(trust, **without) == dataclasses.replace(road.establish(shown, now), **without)
