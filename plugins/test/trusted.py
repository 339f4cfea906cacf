# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The test ``cvm.fde.trusted``: says yes only to a verdict of ``trusted`` that every check supports."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from typing import Callable, Optional

from jinja2 import pass_context

from ..plugin_utils.naming import UNIQUE, Naming
from ..plugin_utils.registered import registered

DOCUMENTATION = r"""
name: trusted
short_description: Tell whether a host was attested and found trusted
version_added: 0.1.0
author:
  - The cvm.fde authors (@cvm-fde)
description:
  - True only when there is exactly one entry of the host, its verdict is C(trusted), and every check in it passed
    or was waived by the appraisal policy.
  - Everything else is false. A task that was skipped, failed or did not reach the host, an entry of another host, a
    report that is not one, and anything unexpected in it.
  - Given a host's name alone it looks at the variable C(attest_result) of that host, which is what the role
    P(cvm.fde.attest#role) and the playbook C(cvm.fde.attest) register.
  - Two hosts that show the same key are neither trusted, since one may have passed the questions on to the other. Who
    is known by its key is trusted nevertheless, by O(cvm.fde.attest#module:endorsement_key) or by a ledger
    (O(cvm.fde.attest#module:ledger)).
  - In a report its own entries are compared. Otherwise the variable C(attest_result) of every host of the inventory is
    looked at. A relay shows only once both hosts were attested under that name, so attest all hosts first. In a large
    fleet use a report, which compares once.
  - A host may send facts of any name, and Ansible makes variables of them. A host that ever sent a fact of the name
    C(attest_result) is not trusted.
  - A variable of another name, given as O(attested), is only as good as where it comes from. Register it in the same
    play, for every host; where it was never registered it may be a fact that the host sent.
options:
  _input:
    description: A host's name, alone or with O(attested), or the registered result of M(cvm.fde.attest) itself.
    type: raw
    required: true
  attested:
    description:
      - What the host was attested by, the registered result of M(cvm.fde.attest) for it, the registered result of
        M(cvm.fde.fleet_report), or the content of C(report.json).
      - By default the variable C(attest_result) of the host.
    type: dict
  max_age:
    description:
      - How many seconds ago the report may have been made. Only a report has a time; with this option anything without
        one is false.
    type: float
seealso:
  - module: cvm.fde.attest
  - module: cvm.fde.fleet_report
"""

EXAMPLES = r"""
- name: Attest the host
  ansible.builtin.include_role:
    name: cvm.fde.attest
  vars:
    attest_require: nothing

- name: Give the secret to trusted hosts only
  ansible.builtin.copy:
    content: "{{ secret }}"
    dest: /etc/service/secret
    mode: "0600"
  when: inventory_hostname is cvm.fde.trusted

- name: Attest the host by a task of its own
  cvm.fde.attest:
    manifest: build/manifest.json
    manifest_key: keys/manifest.pem
    endorsement_ca:
      - authorities/vtpm-ca.pem
    require: nothing
  register: attested

- name: Say where the result is
  ansible.builtin.copy:
    content: "{{ secret }}"
    dest: /etc/service/secret
    mode: "0600"
  when: inventory_hostname is cvm.fde.trusted(attested)

- name: Take a report that is at most an hour old
  ansible.builtin.assert:
    that: >-
      inventory_hostname is cvm.fde.trusted(
        lookup('ansible.builtin.file', 'report.json') | from_json, max_age=3600)
"""

RETURN = r"""
_value:
  description: Whether the host is trusted.
  type: bool
"""

#: What the role registers the result of `cvm.fde.attest` as.
RESULT = "attest_result"
#: What a policy waived was its author's decision; the verdict says that nothing else is missing.
_GOOD = ("passed", "waived")
#: A report from the future was not made by this clock; what two clocks may differ by is forgiven.
_AHEAD = datetime.timedelta(minutes=1)


@pass_context
def trusted(
    context: Mapping[str, object], found: object, attested: object = None, max_age: Optional[float] = None
) -> bool:
    """Tell whether a host, named or known from its own result, is trusted."""
    hostvars = context.get("hostvars")
    if isinstance(found, str):
        known = registered(hostvars, found, RESULT) if attested is None else attested
        report = _fleet_report(known)
        if report is not None:
            return _is_trusted_by_report(found, report, max_age)
        entry = _entry_of_result(known)
        if entry is None or entry.get("host") != found:
            return False
    else:
        entry = None if attested is not None else _entry_of_result(found)
    return max_age is None and entry is not None and _entry_is_trusted(entry) and _is_alone(entry, hostvars)


def _is_trusted_by_report(host: str, report: Mapping[str, object], max_age: Optional[float]) -> bool:
    hosts = _list(report.get("hosts"))
    if report.get("version") != 1 or not _is_recent(report.get("created"), max_age):
        return False
    named = [entry for entry in hosts if not isinstance(entry, Mapping) or entry.get("host") == host]
    if len(named) != 1 or not isinstance(named[0], Mapping) or not _entry_is_trusted(named[0]):
        return False
    return _is_identified(named[0]) or not any(_shares(named[0], entry) for entry in hosts if entry is not named[0])


def _is_alone(entry: Mapping[str, object], hostvars: object) -> bool:
    """Tell whether no other host that was attested shows a key of this one: one may have asked the other's TPM.

    Every other host's variables are looked at, unless it is known whose key this is.
    """
    if _is_identified(entry):
        return True
    if not isinstance(hostvars, Mapping):
        return False
    others = (registered(hostvars, str(host), RESULT) for host in hostvars if str(host) != entry.get("host"))
    return not any(isinstance(other, Mapping) and _shares(entry, other.get("report")) for other in others)


def _is_identified(entry: Mapping[str, object]) -> bool:
    """Tell whether the operator, or a ledger, knows the host by the key that it showed."""
    checks = [check for check in _list(entry.get("checks")) if isinstance(check, Mapping)]
    ledger = any((check.get("name"), check.get("status")) == ("identity", "passed") for check in checks)
    return ledger or entry.get("identity") == Naming.PINNED.value


def _shares(entry: Mapping[str, object], other: object) -> bool:
    return isinstance(other, Mapping) and any(
        entry.get(key) is not None and entry.get(key) == other.get(key) for key in UNIQUE
    )


def _fleet_report(attested: object) -> Optional[Mapping[str, object]]:
    """Return a report over a fleet, given as such or as the result of ``cvm.fde.fleet_report``."""
    if not isinstance(attested, Mapping):
        return None
    if "hosts" in attested:
        return attested
    report = attested.get("report")
    return report if isinstance(report, Mapping) and "hosts" in report and not attested.get("skipped") else None


def _entry_of_result(result: object) -> Optional[Mapping[str, object]]:
    """Return the entry in a result of ``cvm.fde.attest`` that says of itself that it is trusted."""
    if not isinstance(result, Mapping) or result.get("verdict") != "trusted":
        return None
    if any(result.get(word) for word in ("skipped", "failed", "unreachable")):
        return None
    entry = result.get("report")
    return entry if isinstance(entry, Mapping) else None


def _entry_is_trusted(entry: Mapping[str, object]) -> bool:
    checks = _list(entry.get("checks"))
    return (
        entry.get("verdict") == "trusted"
        and isinstance(entry.get("attestation_key"), str)
        and bool(checks)
        and all(isinstance(check, Mapping) and check.get("status") in _GOOD for check in checks)
    )


def _list(found: object) -> Sequence[object]:
    """Return a list, which has no members where there is none."""
    return found if isinstance(found, Sequence) and not isinstance(found, (str, bytes)) else ()


def _is_recent(created: object, max_age: Optional[float]) -> bool:
    if max_age is None:
        return True
    if isinstance(max_age, bool) or not isinstance(max_age, (int, float)) or not isinstance(created, str):
        return False
    try:
        moment = datetime.datetime.strptime(created, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=datetime.timezone.utc)
    except ValueError:
        return False
    age = datetime.datetime.now(datetime.timezone.utc) - moment
    return age >= -_AHEAD and age.total_seconds() <= max_age


class TestModule:
    """Tests of Ansible's templates."""

    def tests(self) -> dict[str, Callable[..., bool]]:
        return {"trusted": trusted}
