#!/usr/bin/python
# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: fleet_report
short_description: Report on an attested fleet
version_added: 0.1.0
author:
  - The cvm.fde authors (!UNKNOWN)
description:
  - Gathers what M(cvm.fde.attest) registered for each host, writes it to one file on the control node and shows it
    as a table.
  - Two hosts that show the same endorsement key, attestation key or volume key are both reported as V(untrusted).
  - It runs on the control node only and needs no connection to any host. Use it with C(run_once).
options:
  hosts:
    description: The hosts to report on. One without a registered result, or that sent a fact of that name, is reported
      as V(unknown), and so is one whose task failed, with what it failed by.
    type: list
    elements: str
    required: true
  variable:
    description: Name of the variable in which the task of M(cvm.fde.attest) was registered. By default that of the
      role.
    type: str
    default: attest_result
  path:
    description: File for the report, on the control node. Without it nothing is written.
    type: path
  require:
    description: With V(trusted), the task fails unless there are hosts and all of them are trusted.
    type: str
    choices: [trusted, nothing]
    default: trusted
attributes:
  check_mode:
    support: full
    details:
      - The report is shown but not written. A task with O(path) says that it would change it.
  diff_mode:
    support: none
  idempotent:
    support: none
    details:
      - Every report carries the time at which it was made.
extends_documentation_fragment:
  - cvm.fde.attributes
  - cvm.fde.attributes.action
seealso:
  - module: cvm.fde.attest
"""

EXAMPLES = r"""
- name: Attest every host of the play
  cvm.fde.attest:
    manifest: build/manifest.json
    manifest_key: keys/manifest.pem
    endorsement_ca:
      - authorities/vtpm-ca.pem
    require: nothing
  register: attest_result

- name: Report on all of them
  cvm.fde.fleet_report:
    hosts: "{{ ansible_play_hosts_all }}"
    path: report.json
  run_once: true
"""

RETURN = r"""
report:
  description: The report, see C(docs/reference-report.md).
  returned: always
  type: dict
path:
  description: Where the report was written, or would be in check mode.
  returned: when O(path) is given
  type: str
"""
