# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The test ``cvm.fde.trusted``: says yes only to a verdict of ``trusted`` that every check supports."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from typing import Callable, Optional

from jinja2 import pass_context

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
    if isinstance(found, str):
        known = registered(context.get("hostvars"), found, RESULT) if attested is None else attested
        return _host_is_trusted(found, known, max_age)
    if attested is not None or max_age is not None:
        return False
    entry = _entry_of_result(found)
    return entry is not None and _entry_is_trusted(entry)


def _host_is_trusted(host: str, attested: object, max_age: Optional[float]) -> bool:
    report = _fleet_report(attested)
    if report is None:
        entry = _entry_of_result(attested)
        return max_age is None and entry is not None and entry.get("host") == host and _entry_is_trusted(entry)
    hosts = _list(report.get("hosts"))
    if report.get("version") != 1 or not _is_recent(report.get("created"), max_age):
        return False
    named = [entry for entry in hosts if not isinstance(entry, Mapping) or entry.get("host") == host]
    return len(named) == 1 and isinstance(named[0], Mapping) and _entry_is_trusted(named[0])


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
