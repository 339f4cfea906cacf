# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What ``cvm.fde.trusted`` takes for trust, and everything that it does not."""

from __future__ import annotations

import copy
import datetime
from typing import Any

import pytest
from ansible_collections.cvm.fde.plugins.test.trusted import trusted as condition
from hypothesis import given
from hypothesis import strategies as st

NOW = datetime.datetime.now(datetime.timezone.utc)
CHECKS = [{"name": "quote_nonce", "status": "passed", "reason": "it answers"}]


#: What Ansible knows of every host; here, nothing.
NOTHING: dict[str, Any] = {"hostvars": {}}


def trusted(found: Any, attested: Any = None, max_age: Any = None, context: dict[str, Any] = NOTHING) -> bool:
    return condition(context, found, attested, max_age)


def entry(host: str = "web1", **changes: Any) -> dict[str, Any]:
    keys = {name: f"{name} of {host}" for name in ("endorsement_key", "attestation_key", "volume_key_id")}
    return {
        "host": host,
        "verdict": "trusted",
        "identity": "unpinned",
        "checks": copy.deepcopy(CHECKS),
        **keys,
        **changes,
    }


def result(**changes: Any) -> dict[str, Any]:
    return {"verdict": "trusted", "failed": False, "changed": False, "report": entry(), **changes}


def report(*entries: Any, **changes: Any) -> dict[str, Any]:
    return {"version": 1, "created": NOW.strftime("%Y-%m-%dT%H:%M:%SZ"), "hosts": list(entries), **changes}


def test_a_registered_result_of_a_trusted_host_is_trusted() -> None:
    assert trusted(result())
    assert trusted("web1", result())


def test_a_host_is_found_in_a_report_and_in_the_result_that_carries_it() -> None:
    found = report(entry(), entry("web2", verdict="untrusted"))
    assert trusted("web1", found)
    assert trusted("web1", {"report": found, "failed": True})
    assert not trusted("web2", found)


UNTRUSTED: dict[str, Any] = {
    "nothing": None,
    "true": True,
    "a word": "trusted",
    "empty": {},
    "only a verdict": {"verdict": "trusted"},
    "another verdict": result(verdict="untrusted"),
    "another verdict inside": result(report=entry(verdict="unknown")),
    "skipped": result(skipped=True),
    "failed": result(failed=True),
    "unreachable": result(unreachable=True),
    "another host's": result(report=entry("web2")),
    "no key": result(report=entry(attestation_key=None)),
    "a key of another form": result(report=entry(attestation_key=["ab"])),
    "no checks": result(report=entry(checks=[])),
    "checks as text": result(report=entry(checks="passed")),
    "checks of other forms": result(report=entry(checks=["passed"])),
    "a check that is unknown": result(report=entry(checks=[*CHECKS, {"name": "pcr_4", "status": "unknown"}])),
    "a check that failed": result(report=entry(checks=[*CHECKS, {"name": "pcr_4", "status": "failed"}])),
    "an empty report": report(),
    "a host twice": report(entry(), entry()),
    "a host twice, once distrusted": report(entry(), entry(verdict="untrusted")),
    "an entry of another form": report(entry(), "web1"),
    "a later version": report(entry(), version=2),
    "hosts as an object": report(hosts={"web1": entry()}),
    "a skipped report": {"report": report(entry()), "skipped": True},
}


@pytest.mark.parametrize("name", UNTRUSTED)
def test_everything_else_is_not_trusted(name: str) -> None:
    assert trusted("web1", UNTRUSTED[name]) is False


@pytest.mark.parametrize("name", sorted(set(UNTRUSTED) - {"another host's"}))
def test_a_result_alone_is_looked_at_as_closely(name: str) -> None:
    assert trusted(UNTRUSTED[name]) is False


def registered(**variables: Any) -> dict[str, Any]:
    return {"hostvars": {"web1": variables, "web2": {}}}


def test_a_name_alone_stands_for_what_the_role_registered() -> None:
    assert trusted("web1", context=registered(attest_result=result()))
    assert trusted("web1", context=registered(attest_result=result(), ansible_facts={"os": "debian"}))
    assert not trusted("web2", context=registered(attest_result=result()))
    assert not trusted("web3", context=registered(attest_result=result()))


def test_a_host_without_a_result_is_not_trusted() -> None:
    for context in ({}, NOTHING, {"hostvars": None}, {"hostvars": {"web1": None}}, registered()):
        assert not trusted("web1", context=context)
        assert not trusted("trusted", context=context)


@pytest.mark.parametrize("name", UNTRUSTED)
def test_what_was_registered_is_looked_at_as_closely(name: str) -> None:
    assert trusted("web1", context=registered(attest_result=UNTRUSTED[name])) is False


SHARED = pytest.mark.parametrize("shared", ["endorsement_key", "attestation_key", "volume_key_id"])
#: Who shows the keys of ``web1`` as well, and with what outcome.
RELAYS: dict[str, Any] = {
    "trusted": {},
    "untrusted": {"verdict": "untrusted"},
    "failed": {"verdict": "untrusted", "failed": True},
}


def fleet(shared: str, outcome: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """Return two attested hosts of which the second shows a key of the first."""
    one = entry(**changes)
    other = result(report=entry("web2", **{shared: one[shared]}), **outcome)
    return {"hostvars": {"web1": {"attest_result": result(report=one)}, "web2": {"attest_result": other}}}


@SHARED
@pytest.mark.parametrize("outcome", RELAYS)
def test_two_hosts_that_show_the_same_key_are_neither_trusted(shared: str, outcome: str) -> None:
    # One of them passed the questions on to the other, and nothing says which.
    context = fleet(shared, RELAYS[outcome])
    assert not trusted("web1", context=context)
    assert not trusted("web2", context=context)
    own = context["hostvars"]["web1"]["attest_result"]
    assert not trusted("web1", own, context=context)
    assert not trusted(own, context=context)
    assert not trusted("web1", report(own["report"], context["hostvars"]["web2"]["attest_result"]["report"]))


@SHARED
def test_hosts_with_keys_of_their_own_are_trusted_beside_each_other(shared: str) -> None:
    context = fleet(shared, {})
    context["hostvars"]["web2"] = {"attest_result": result(report=entry("web2"))}
    assert trusted("web1", context=context) and trusted("web2", context=context)
    context["hostvars"]["web2"] = {"attest_result": result(report=entry("web2", **{shared: None}), verdict="unknown")}
    assert trusted("web1", context=context)


@SHARED
def test_a_host_whose_key_is_known_to_be_its_own_is_trusted_beside_one_that_borrows_it(shared: str) -> None:
    identified = [*CHECKS, {"name": "identity", "status": "passed"}]
    for changes in ({"identity": "pinned"}, {"checks": identified}):
        context = fleet(shared, {}, **changes)
        assert trusted("web1", context=context)
        assert not trusted("web2", context=context)
    waived = fleet(shared, {}, checks=[*CHECKS, {"name": "identity", "status": "waived"}])
    assert not trusted("web1", context=waived)


def test_a_fact_of_another_host_takes_nobodys_trust_away() -> None:
    context = fleet("attestation_key", {})
    planted = context["hostvars"]["web2"]["attest_result"]
    context["hostvars"]["web2"]["ansible_facts"] = {"attest_result": planted}
    assert trusted("web1", context=context)
    assert not trusted("web2", context=context)


def test_what_other_hosts_show_must_be_there_to_look_at() -> None:
    for context in ({}, {"hostvars": None}):
        assert not trusted("web1", result(), context=context)
        assert not trusted(result(), context=context)


@pytest.mark.parametrize("fact", [result(), None, "trusted", {}])
def test_a_host_that_sends_a_fact_of_that_name_is_not_trusted(fact: Any) -> None:
    # Ansible makes a variable of the fact, which looks like a registered one.
    facts = {"attest_result": fact}
    assert not trusted("web1", context=registered(attest_result=result(), ansible_facts=facts))


@pytest.mark.parametrize(
    ("age", "limit", "expected"),
    [(0, 60, True), (120, 60, False), (-3600, 60, False), (0, 0.0, False), (0, "60", False)],
)
def test_a_report_may_be_asked_for_its_age(age: int, limit: Any, expected: bool) -> None:
    created = (datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(seconds=age)).strftime(
        "%Y-%m-%dT%H:%M:%SZ"
    )
    assert trusted("web1", report(entry(), created=created), max_age=limit) is expected


@pytest.mark.parametrize("created", [None, 1, "", "yesterday", "2026-11-23"])
def test_a_report_without_a_time_has_no_age(created: Any) -> None:
    assert not trusted("web1", report(entry(), created=created), max_age=1e9)


def test_a_result_has_no_age() -> None:
    assert not trusted("web1", result(), max_age=1e9)
    assert not trusted(result(), max_age=1e9)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.sampled_from(["web1", "trusted", "passed", "hosts"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["host", "hosts", "verdict", "report", "checks", "version"]), inner, max_size=4
        )
    ),
    max_leaves=12,
)


@given(values, values)
def test_anything_at_all_is_answered_and_never_trusted(found: Any, attested: Any) -> None:
    # None of these has a check that passed: the word "status" is not among them.
    assert trusted(found, attested) is False
