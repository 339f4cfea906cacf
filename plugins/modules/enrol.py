#!/usr/bin/python
# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: enrol
short_description: Attest a machine and make its TPM known to the ledger
version_added: 0.1.0
author:
  - The cvm.fde authors (@cvm-fde)
description:
  - Attests a machine as M(cvm.fde.attest) does. When it is trusted, the keys of its TPM become those of this host
    in the ledger. From then on M(cvm.fde.attest) with that ledger notices another TPM behind this host, this TPM behind
    another host, and a TPM that went back.
  - A machine that is not trusted is not enrolled and the task fails; the verdict is recorded all the same.
  - A host that is enrolled already is attested again and nothing changes. One that shows another TPM is not trusted
    until an operator approves it by M(cvm.fde.decision).
options:
  ledger:
    description:
      - The ledger that the machine is enrolled in, the path of a SQLite file or the URL of a PostgreSQL database,
        on the control node. See C(docs/ledger.md).
    type: str
    required: true
  create:
    description:
      - Make the ledger where there is none.
      - Only for the very first enrolment. A ledger that is gone took the memory of every anchor with it; a new one
        in its place would hide that.
    type: bool
    default: false
requirements:
  - SQLAlchemy >= 2.0 (on the control node)
attributes:
  check_mode:
    support: full
    details:
      - The machine is attested and the ledger is asked, but nothing is recorded and no ledger is made.
  diff_mode:
    support: none
  idempotent:
    support: full
    details:
      - Every verdict is recorded anew. A change is that the ledger knows a key which it did not know before.
extends_documentation_fragment:
  - cvm.fde.attributes
  - cvm.fde.attributes.action
  - cvm.fde.appraisal
  - cvm.fde.platform_ca
  - cvm.fde.sources
seealso:
  - module: cvm.fde.attest
  - module: cvm.fde.decision
  - module: cvm.fde.audit
"""

EXAMPLES = r"""
- name: Enrol a machine
  cvm.fde.enrol:
    manifest: build/manifest.json
    manifest_key: keys/manifest.pem
    endorsement_ca:
      - authorities/vtpm-ca.pem
    ledger: /var/lib/fde/ledger.db
"""

RETURN = r"""
verdict:
  description: What became of the machine. Everything else that M(cvm.fde.attest) returns is returned as well.
  returned: when the machine was asked
  type: str
  sample: trusted
keys:
  description: The keys that are known to the ledger from now on, as in RV(cvm.fde.attest#module:keys).
  returned: when the machine was asked
  type: dict
report:
  description: The host's entry in the fleet's report, see C(docs/reference-report.md).
  returned: when the machine was asked
  type: dict
"""
