# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The fleet's report, its schema, its table, and the documentation of its checks."""

from __future__ import annotations

import datetime
import json
import re
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.evidence import Hydration
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.judgement import (
    Check,
    Result,
    Status,
    Verdict,
    verdict_of,
)
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.rules.table import ROAD, RULES
from ansible_collections.cvm.fde.plugins.plugin_utils.naming import UNIQUE
from ansible_collections.cvm.fde.plugins.plugin_utils.report import (
    entry,
    fleet,
    missing,
    quoted,
    reasons,
    table,
    trusted,
    unjudged,
)

NOW = datetime.datetime(2026, 11, 23, 23, 0, tzinfo=datetime.timezone(datetime.timedelta(hours=2)))
DOCS = Path(__file__).resolve().parents[4] / "docs"


def result(number: int, verdict: Verdict = Verdict.TRUSTED, **claims: Any) -> Result:
    found: dict[str, Any] = {
        "identity": "pinned",
        "image": "debian-forky",
        "endorsement_key": f"{number:064x}",
        "attestation_key": f"{number + 50:064x}",
        "strategy": "clone",
        "root_hash": "ab" * 32,
        "volume_key_id": f"{number + 100:064x}",
        "secure_boot": True,
        "pcr_policy": "cd" * 32,
        "anchor": {
            "state": "ready",
            "generation": 1,
            "complete": False,
            "recoveries": 0,
            "refusals": 0,
            "last_refusal": None,
            "matches": True,
        },
    }
    checks = (
        Check(
            "quote_nonce", Status.PASSED if verdict is Verdict.TRUSTED else Status.FAILED, "it answers another nonce"
        ),
        Check("pcr_4", Status.UNKNOWN, "not judged"),
    )
    return Result(verdict, "ek-certificate", checks, {**found, **claims})


def report(*entries: dict[str, Any]) -> dict[str, Any]:
    return fleet(entries, NOW)


def validate(found: dict[str, Any]) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads((DOCS / "schema" / "report.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(found, schema)


def test_a_report_fits_its_schema() -> None:
    found = report(
        entry("b", result(1), Hydration(1, 3)),
        entry("a", result(2, Verdict.UNTRUSTED, secure_boot=None, strategy=None), None),
        unjudged("c", Status.UNKNOWN, "the host could not be asked"),
        unjudged("d", Status.FAILED, "the evidence is not an object"),
    )
    validate(json.loads(json.dumps(found)))
    assert found["created"] == "2026-11-23T21:00:00Z"
    assert [host["host"] for host in found["hosts"]] == ["a", "b", "c", "d"]
    assert [host["verdict"] for host in found["hosts"]] == ["untrusted", "trusted", "unknown", "untrusted"]
    assert found["hosts"][1]["hydration"] == {"hydrated": 1, "total": 3, "percent": 33.3}


def test_two_hosts_with_one_tpm_are_both_untrusted() -> None:
    found = report(entry("a", result(1), None), entry("b", result(1), None), entry("c", result(2), None))
    assert [host["verdict"] for host in found["hosts"]] == ["untrusted", "untrusted", "trusted"]
    names = {check["name"] for check in found["hosts"][0]["checks"] if check["status"] == "failed"}
    assert names == set(UNIQUE.values())
    validate(found)


def test_two_endorsement_keys_of_one_tpm_do_not_make_two_machines() -> None:
    shared = {"attestation_key": "ee" * 32}
    found = report(entry("a", result(1, **shared), None), entry("b", result(2, **shared), None))
    assert [host["verdict"] for host in found["hosts"]] == ["untrusted", "untrusted"]
    assert [reasons(host) for host in found["hosts"]] == [
        ["unique_attestation_key: another host of the fleet shows the same"]
    ] * 2


def test_the_table_says_of_which_machines_nobody_knows_which_they_are() -> None:
    text = table(report(entry("a", result(1, identity="unpinned"), None), unjudged("b", Status.UNKNOWN, "gone")))
    assert [line.split()[2] for line in text.splitlines()[:3]] == ["IDENTITY", "unpinned", "unpinned"]


def test_hosts_without_known_keys_are_not_taken_for_the_same() -> None:
    empty = dict.fromkeys(UNIQUE)
    found = report(entry("a", result(1, **empty), None), entry("b", result(2, **empty), None))
    assert trusted(found)


def test_a_fleet_is_trusted_only_as_a_whole_and_not_when_it_is_empty() -> None:
    assert trusted(report(entry("a", result(1), None)))
    assert not trusted(report(entry("a", result(1), None), unjudged("b", Status.UNKNOWN, "gone")))
    assert not trusted(report())


def test_a_host_that_was_not_asked_is_in_the_report() -> None:
    found = report(*missing({"a": entry("a", result(1), None), "b": None}))
    assert [host["verdict"] for host in found["hosts"]] == ["trusted", "unknown"]


def test_the_table_shows_each_host_and_why_it_is_not_trusted() -> None:
    text = table(report(entry("a", result(1), Hydration(1, 2)), entry("long-name", result(2, Verdict.UNTRUSTED), None)))
    lines = text.splitlines()
    assert lines[0].split("  ")[0] == "HOST"
    assert re.match(
        r"a +trusted +pinned +debian-forky +clone +50\.0 % +0{10}\S\S +abababababab +on +cdcdcdcdcdcd +ready, matches",
        lines[1],
    )
    assert lines[2].startswith("long-name")
    assert lines[3] == "  - quote_nonce: it answers another nonce"
    assert len(lines) == 4


def test_reasons_are_failures_and_only_without_any_what_is_unknown() -> None:
    assert reasons(entry("a", result(1, Verdict.UNTRUSTED), None)) == ["quote_nonce: it answers another nonce"]
    assert reasons(entry("a", result(1), None)) == ["pcr_4: not judged"]


def test_a_targets_own_text_is_repeated_only_as_short_plain_ascii() -> None:
    assert quoted("a\x1b[2J\nb\u202ec") == "a [2J b c"
    assert len(quoted("x" * 10_000_000)) < 300


def outcomes(*statuses: Status, name: str = "pcr_4") -> list[Check]:
    return [Check(name if number == 0 else f"c{number}", status, "") for number, status in enumerate(statuses)]


@pytest.mark.parametrize(
    ("checks", "verdict"),
    [
        (outcomes(Status.PASSED, Status.PASSED), Verdict.TRUSTED),
        (outcomes(Status.PASSED, Status.UNKNOWN), Verdict.UNKNOWN),
        (outcomes(Status.FAILED, Status.UNKNOWN), Verdict.UNTRUSTED),
        (outcomes(Status.FAILED, Status.UNKNOWN, name="log_replay"), Verdict.UNEXPLAINED),
        (outcomes(Status.FAILED, Status.FAILED, name="evidence_replay"), Verdict.UNTRUSTED),
        ([], Verdict.UNKNOWN),
    ],
)
def test_the_verdict_follows_from_the_checks(checks: list[Check], verdict: Verdict) -> None:
    assert verdict_of(checks) is verdict


def test_the_documentation_lists_the_checks_in_the_order_of_judgement() -> None:
    text = (DOCS / "reference-report.md").read_text().split("## Checks")[1]
    assert re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE) == [rule.name for rule in RULES]
    for name in (*UNIQUE.values(), "answers", ROAD.name, "identity", "anchor_freshness"):
        assert f"`{name}`" in text
    for verdict in Verdict:
        assert f"| `{verdict.value}` |" in (DOCS / "reference-report.md").read_text()
