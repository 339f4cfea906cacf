# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What operators demand: read strictly, strict by default, and weakened by nothing but what is written."""

from __future__ import annotations

import datetime
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.errors import AppraisalError, Undecided
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.policy import (
    WAIVABLE,
    Freshness,
    HardwareTerms,
    Policy,
    parse_policy,
)
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.reference import Reference, parse_manifest
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.reference_sets import require_accepted, require_valid
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.roads.trust import Hardware, RoadName
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.rules.demands import judge_freshness, judge_hardware
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.rules.table import PARTS, RULES
from ansible_collections.cvm.fde.plugins.plugin_utils.policy_file import load_policy
from hypothesis import given, settings
from hypothesis import strategies as st

DOCS = Path(__file__).resolve().parents[5] / "docs"
MOMENT = datetime.datetime(2026, 12, 1, tzinfo=datetime.timezone.utc)
DAY = datetime.timedelta(days=1)


def example() -> bytes:
    """Return the policy that the documentation shows."""
    page = (DOCS / "appraisal-policy.md").read_text()
    return page.split("```yaml\n")[1].split("```")[0].encode()


def schema() -> Any:
    return json.loads((DOCS / "schema" / "policy.schema.json").read_text())


def test_an_empty_policy_is_the_default_one() -> None:
    assert replace(load_policy(b"version: 1"), name="default") == Policy()


def test_a_demand_on_the_clock_is_read_and_kept() -> None:
    found = load_policy(b"version: 1\nevidence: {safe_clock: true}")
    assert found.safe_clock and not Policy().safe_clock
    assert parse_policy(found.document()) == found
    assert found.digest != replace(found, safe_clock=False).digest
    with pytest.raises(AppraisalError, match="neither true nor false"):
        load_policy(b"version: 1\nevidence: {safe_clock: 1}")


def test_the_default_waives_nothing_and_takes_no_road_but_certificates() -> None:
    assert Policy().waived == frozenset()
    assert Policy().roads == (RoadName.EK_CERTIFICATE,)
    assert Policy().freshness is Freshness.HEADER


def test_the_documented_example_is_read_and_fits_the_schema() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    found = load_policy(example())
    assert found.roads == (RoadName.AZURE_SNP,)
    assert found.hardware.id_keys
    assert found.hardware.minimum_tcb["Genoa"] == {"bootloader": 9, "snp": 22, "microcode": 84}
    assert [terms.revoked for terms in found.sets] == [False, False, True]
    jsonschema.Draft202012Validator.check_schema(schema())
    jsonschema.validate(json.loads(json.dumps(yaml.safe_load(example()), default=str)), schema())


def test_a_policy_is_the_same_when_it_is_written_out_and_read_again() -> None:
    found = load_policy(example())
    again = parse_policy(json.loads(json.dumps(found.document())))
    assert again == found
    assert again.digest == found.digest != Policy().digest


def test_the_schema_knows_every_key_that_is_read() -> None:
    document = Policy().document()
    assert set(schema()["properties"]) == set(document)
    for part in ("hardware", "evidence", "volume"):
        assert set(schema()["properties"][part]["properties"]) == set(document[part])


def test_the_documentation_names_every_key_and_every_check_that_can_be_waived() -> None:
    page = (DOCS / "appraisal-policy.md").read_text()
    fields = re.findall(r"^\| `([a-z_.]+)` \|", page.split("## Fields")[1].split("## Waived")[0], re.MULTILINE)
    document = Policy().document()
    nested = {f"{part}.{name}" for part in ("hardware", "evidence", "volume") for name in document[part]}
    assert set(fields) == (set(document) - {"hardware", "evidence", "volume"}) | nested
    waivable = page.split("## Waived checks")[1].split("## Reference sets")[0]
    listed = {name for row in re.findall(r"^\| \w+ \| (`.*) \|$", waivable, re.MULTILINE) for name in row.split(", ")}
    assert {name.strip("`") for name in listed} == WAIVABLE


def test_only_checks_that_exist_can_be_waived_and_every_check_belongs_to_one_part() -> None:
    every = frozenset[str]().union(*PARTS.values())
    assert every >= WAIVABLE
    assert {rule.name for rule in RULES} <= every
    assert sum(len(names) for names in PARTS.values()) == len(every)


REFUSED = {
    "no version": b"name: x",
    "another version": b"version: 2",
    "a version that is true": b"version: true",
    "an unknown key": b"version: 1\nwaved_checks: []",
    "an unknown key within": b"version: 1\nvolume: {unique: false}",
    "a check that does not exist": b"version: 1\nwaived_checks: [everything]",
    "a check that nobody may waive": b"version: 1\nwaived_checks: [quote_signature]",
    "a road that does not exist": b"version: 1\nroads: [hearsay]",
    "no road": b"version: 1\nroads: []",
    "a road twice": b"version: 1\nroads: [pinned-ek, pinned-ek]",
    "a set without a name": b"version: 1\nreference_sets: [{revoked: true}]",
    "a set twice": b"version: 1\nreference_sets: [{name: a}, {name: a}]",
    "a set that ends before it begins": (
        b"version: 1\nreference_sets: [{name: a, not_before: 2027-01-01T00:00:00Z, not_after: 2026-01-01T00:00:00Z}]"
    ),
    "a time without its zone": b"version: 1\nreference_sets: [{name: a, not_after: 2026-01-01T00:00:00}]",
    "a date": b"version: 1\nreference_sets: [{name: a, not_after: 2026-01-01}]",
    "a truth that is a number": b"version: 1\nvolume: {evidence: 0}",
    "a truth that is text": b"version: 1\nvolume: {evidence: 'no!'}",
    "a number that is text": b"version: 1\nevidence: {maximum_age: '300'}",
    "an age of nothing": b"version: 1\nevidence: {maximum_age: 0}",
    "a negative number": b"version: 1\nvolume: {maximum_recoveries: -1}",
    "a digest in upper case": b"version: 1\nhardware: {measurements: [" + b"AB" * 32 + b"]}",
    "the signature of nobody": b"version: 1\nhardware: {id_keys: ['" + b"00" * 48 + b"']}",
    "firmware that is text": b"version: 1\nhardware: {minimum_tcb: {Genoa: {snp: high}}}",
    "a level that does not exist": b"version: 1\nfreshness: fresh",
    "no strategy": b"version: 1\nvolume: {strategies: []}",
    "a key twice": b"version: 1\nvolume: {evidence: true}\nvolume: {evidence: false}",
    "an alias": b"version: 1\nwaived_checks: &a []\nroads: *a",
    "a merge": b"version: 1\nvolume: {<<: {evidence: false}}",
    "an object of Python's": b"version: 1\nname: !!python/object/apply:os.getcwd []",
    "two documents": b"version: 1\n---\nversion: 1",
    "a list": b"[]",
    "nothing": b"",
    "bytes": b"\xff\xfe\x00",
    "deep": b"[" * 5000,
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_policy_is_refused(name: str) -> None:
    with pytest.raises(AppraisalError) as refused:
        load_policy(REFUSED[name])
    assert refused.value.code == "bad-policy"


@settings(max_examples=200)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
        max_leaves=8,
    ),
    st.sampled_from(sorted(Policy().document())),
)
def test_any_value_under_any_key_is_read_or_refused(value: Any, name: str) -> None:
    try:
        parse_policy({"version": 1, name: value})
    except AppraisalError as refused:
        assert refused.code == "bad-policy"


# --- reference sets


@pytest.fixture
def reference(image: Any) -> Reference:
    return parse_manifest(json.dumps(image.manifest()).encode())


def policy(*sets: dict[str, Any]) -> Policy:
    return parse_policy({"version": 1, "reference_sets": list(sets)})


@pytest.mark.parametrize(
    ("terms", "code"),
    [
        ({"name": "another"}, "set-not-accepted"),
        ({"name": "debian-forky", "revoked": True}, "set-revoked"),
        ({"name": "debian-forky", "not_before": MOMENT + DAY}, "set-not-yet-valid"),
        ({"name": "debian-forky", "not_after": MOMENT - DAY}, "set-expired"),
    ],
)
def test_a_set_that_is_not_valid_is_refused_with_its_own_reason(
    reference: Reference, terms: dict[str, Any], code: str
) -> None:
    with pytest.raises(AppraisalError) as refused:
        require_valid(reference, policy(terms), MOMENT)
    assert refused.value.code == code


def test_a_set_is_valid_within_its_period_and_without_one(reference: Reference) -> None:
    require_valid(reference, Policy(), MOMENT)
    within = {"name": "debian-forky", "not_before": MOMENT - DAY, "not_after": MOMENT + DAY}
    require_valid(reference, policy(within, {"name": "another", "revoked": True}), MOMENT)


def test_a_period_that_the_manifest_states_holds_whatever_the_policy_says(image: Any) -> None:
    manifest = image.manifest(validity={"not_before": None, "not_after": "2026-11-01T00:00:00Z"})
    with pytest.raises(AppraisalError, match="set-expired"):
        require_valid(parse_manifest(json.dumps(manifest).encode()), policy({"name": "debian-forky"}), MOMENT)


def test_a_volume_outlives_the_period_of_its_image_but_not_its_revocation(reference: Reference) -> None:
    require_accepted(reference, policy({"name": "debian-forky", "not_after": MOMENT - DAY}))
    with pytest.raises(AppraisalError, match="set-revoked"):
        require_accepted(reference, policy({"name": "debian-forky", "revoked": True}))


# --- hardware and freshness

MILAN = Hardware("snp", "Milan", "ab" * 48, {"bootloader": 4, "tee": 0, "snp": 24, "microcode": 219})
SIGNED = replace(MILAN, id_key="ef" * 48)
TDX = Hardware("tdx", "TDX", "cd" * 48, {"tdx_module": 5}, "OutOfDate")


@pytest.mark.parametrize(
    ("terms", "hardware", "code"),
    [
        (HardwareTerms(products=frozenset(("Genoa", "Turin"))), MILAN, "other-product"),
        (HardwareTerms(minimum_tcb={"Milan": {"snp": 25}}), MILAN, "old-firmware"),
        (HardwareTerms(minimum_tcb={"Milan": {"snp": 24, "fmc": 0}}), MILAN, "old-firmware"),
        (HardwareTerms(minimum_tcb={"Genoa": {"snp": 1}}), MILAN, "old-firmware"),
        (HardwareTerms(firmware_status=frozenset(("UpToDate",))), TDX, "old-firmware"),
        (HardwareTerms(measurements=frozenset(("ab" * 48,))), TDX, "other-launch"),
        (HardwareTerms(id_keys=frozenset(("01" * 48,))), SIGNED, "other-launch"),
        (HardwareTerms(id_keys=frozenset(("ef" * 48,))), replace(SIGNED, id_key="00" * 48), "other-launch"),
    ],
)
def test_hardware_below_the_demand_is_refused(terms: HardwareTerms, hardware: Hardware, code: str) -> None:
    with pytest.raises(AppraisalError) as refused:
        judge_hardware(terms, hardware)
    assert refused.value.code == code


def test_hardware_that_meets_every_demand_passes() -> None:
    terms = HardwareTerms(
        frozenset(("Milan",)), {"Milan": {"snp": 24, "microcode": 219}}, frozenset(), frozenset(("ab" * 48,))
    )
    assert "as the policy demands" in judge_hardware(terms, MILAN)
    signed = HardwareTerms(id_keys=frozenset(("01" * 48, "ef" * 48)))
    assert signed.demanded
    assert "as the policy demands" in judge_hardware(signed, SIGNED)


def test_a_demand_that_nothing_can_answer_is_undecided() -> None:
    with pytest.raises(Undecided):
        judge_hardware(HardwareTerms(products=frozenset(("Milan",))), None)
    with pytest.raises(Undecided):
        judge_hardware(HardwareTerms(firmware_status=frozenset(("UpToDate",))), MILAN)
    with pytest.raises(Undecided):
        judge_hardware(HardwareTerms(id_keys=frozenset(("ef" * 48,))), TDX)


def test_the_signers_of_launches_are_read_and_kept() -> None:
    found = load_policy(f"version: 1\nhardware: {{id_keys: [{'ef' * 48}]}}".encode())
    assert found.hardware.id_keys == {"ef" * 48}
    assert parse_policy(found.document()) == found
    with pytest.raises(AppraisalError, match="not a digest"):
        load_policy(b"version: 1\nhardware: {id_keys: [Microsoft]}")


@pytest.mark.parametrize("demanded", Freshness)
@pytest.mark.parametrize("level", Freshness)
def test_a_level_of_freshness_includes_those_below_it(demanded: Freshness, level: Freshness) -> None:
    order = [Freshness.BOOT, Freshness.HEADER, Freshness.LEDGER, Freshness.DATA]
    if order.index(level) >= order.index(demanded):
        assert level.value in judge_freshness(demanded, level)
    else:
        with pytest.raises(Undecided):
            judge_freshness(demanded, level)
