# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What earlier versions kept is read with what held then; what no version ever wrote is refused."""

from __future__ import annotations

import datetime
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.case import Grounds
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.endorsement import load_authorities
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.errors import AppraisalError
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.policy import Policy
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.roads.choice import PLATFORMS, Allowed
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.roads.first_use import Approval
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.roads.trust import RoadName
from ansible_collections.cvm.fde.plugins.plugin_utils.kept_policy import kept_policy, policy_document

ROADS = (RoadName.AZURE_SNP, RoadName.FIRST_USE)
NOW = datetime.datetime(2026, 11, 27, tzinfo=datetime.timezone.utc)


@pytest.fixture
def grounds(authority: Path) -> Grounds:
    authorities = load_authorities((authority / "ca.pem").read_bytes())
    allowed = Allowed(
        ROADS,
        "web1",
        ("ab" * 32,),
        Approval("web1", "cd" * 32, "ann", NOW),
        authorities={RoadName.AZURE_SNP: tuple(authorities)},
    )
    policy = Policy(name="lab", roads=ROADS, waived_checks=frozenset(("pcr_7",)))
    return Grounds((), tuple(authorities), NOW, "clone", "ef" * 32, allowed, policy)


@pytest.fixture
def document(grounds: Grounds) -> dict[str, Any]:
    return policy_document(grounds)


def without(document: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in document.items() if name not in names}


def test_what_this_version_writes_is_read_as_it_was(grounds: Grounds, document: dict[str, Any]) -> None:
    kept = kept_policy(document)
    assert (kept.policy, kept.authorities, kept.allowed) == (grounds.policy, grounds.authorities, grounds.allowed)
    assert (kept.strategy, kept.endorsement_key) == (grounds.strategy, grounds.endorsement_key)


def test_one_list_counted_on_every_road_before_the_platforms_had_their_own(
    grounds: Grounds, document: dict[str, Any]
) -> None:
    assert kept_policy({**document, "platform_authorities": {}}).allowed.authorities == {}
    kept = kept_policy(without(document, "platform_authorities"))
    assert kept.allowed.authorities == dict.fromkeys(PLATFORMS, grounds.authorities)
    assert replace(kept.allowed, authorities=grounds.allowed.authorities) == grounds.allowed


def test_every_check_had_to_pass_before_there_was_an_appraisal_policy(document: dict[str, Any]) -> None:
    kept = kept_policy(without(document, "platform_authorities", "appraisal_policy"))
    assert kept.policy == replace(Policy(), roads=ROADS)


def test_a_policy_that_waived_a_check_of_then_waives_the_others_still(
    grounds: Grounds, document: dict[str, Any]
) -> None:
    written = document["appraisal_policy"]
    document["appraisal_policy"] = {**written, "waived_checks": ["pcr_7", "pcr_9"]}
    assert kept_policy(document).policy == grounds.policy
    document["appraisal_policy"] = {**written, "waived_checks": ["pcr_7", "pcr_99"]}
    with pytest.raises(AppraisalError, match="pcr_99"):
        kept_policy(document)


@pytest.mark.parametrize(
    ("section", "name", "default"),
    [("evidence", "safe_clock", False), ("hardware", "id_keys", [])],
)
def test_a_demand_that_came_later_was_not_made(
    grounds: Grounds, document: dict[str, Any], section: str, name: str, default: object
) -> None:
    written = document["appraisal_policy"]
    assert written[section][name] == default
    document["appraisal_policy"] = {**written, section: without(written[section], name)}
    assert kept_policy(document).policy == grounds.policy


@pytest.mark.parametrize(
    "missing",
    [
        *[(name,) for name in ("version", "authorities", "strategy", "endorsement_key", "host", "roads", "pins")],
        ("approval",),
        # Whoever wrote the one wrote the other.
        ("appraisal_policy",),
    ],
)
def test_a_key_that_was_always_there_must_be_there(document: dict[str, Any], missing: tuple[str, ...]) -> None:
    with pytest.raises(AppraisalError, match="the keys of any version"):
        kept_policy(without(document, *missing))


@pytest.mark.parametrize("more", [{"authority": []}, {"version": 2}, {"version": "1"}])
def test_a_document_that_no_version_wrote_is_refused(document: dict[str, Any], more: dict[str, Any]) -> None:
    with pytest.raises(AppraisalError, match="the keys of any version"):
        kept_policy({**document, **more})


@pytest.mark.parametrize("at", ["2026-11-27T00:00:00", "yesterday", 7, None])
def test_an_approval_without_its_moment_is_refused(document: dict[str, Any], at: object) -> None:
    document["approval"] = {**document["approval"], "at": at}
    with pytest.raises(AppraisalError, match="at of the approval"):
        kept_policy(document)
