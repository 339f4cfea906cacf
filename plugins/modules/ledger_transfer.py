#!/usr/bin/python
# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: ledger_transfer
short_description: Export a ledger to a file, or import one from it
version_added: 0.1.0
author:
  - The cvm.fde authors (@cvm-fde)
description:
  - Writes everything that is in a ledger to a file of JSON lines, or makes a ledger from such a file. It is a backup,
    and the way from SQLite to PostgreSQL and back.
  - Entries keep their digests and the ledger its head, whatever database it is in. The format is told in
    C(docs/ledger.md).
  - A ledger that is not sound is not exported, and a file that is not the whole export of a sound one is not imported.
  - It runs on the control node only and needs no connection to any host. Use it with C(run_once).
options:
  state:
    description:
      - With V(exported), O(path) becomes the export of the ledger, readable for its owner only.
      - With V(imported), the ledger becomes what O(path) holds. It must not exist yet, or be empty, or be the very
        same.
    type: str
    choices: [exported, imported]
    required: true
  path:
    description: The file, on the control node.
    type: path
    required: true
  head:
    description:
      - For V(imported), a head of the ledger that was kept elsewhere, as M(cvm.fde.audit) returned it. A file that
        does not contain it is refused.
      - Without it nobody notices that the end is missing, or that somebody wrote the whole file anew.
    type: str
attributes:
  check_mode:
    details: The whole file, or the whole ledger, is read and judged all the same.
    support: full
  diff_mode:
    support: none
  idempotent:
    support: full
extends_documentation_fragment:
  - cvm.fde.attributes
  - cvm.fde.attributes.action
  - cvm.fde.ledger
seealso:
  - module: cvm.fde.audit
"""

EXAMPLES = r"""
- name: Keep a copy of the ledger
  cvm.fde.ledger_transfer:
    ledger: /var/lib/fde/ledger.db
    state: exported
    path: /backup/ledger.jsonl
  run_once: true
  register: exported

- name: Move it to PostgreSQL
  cvm.fde.ledger_transfer:
    ledger: postgresql://fde@db.example/fde
    state: imported
    path: /backup/ledger.jsonl
    head: "{{ exported.head }}"
  run_once: true
"""

RETURN = r"""
head:
  description: The end of the ledger, and of the file.
  returned: success
  type: str
  sample: "17:3cdd10..."
path:
  description: The file.
  returned: success
  type: str
"""
