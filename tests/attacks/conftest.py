# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Lends the machines of the verifier's tests. The attacks under ``inside`` are collected by a guest only, which has no
such machines.
"""

from __future__ import annotations

import os

if os.environ.get("FDE_INSIDE_UML"):
    collect_ignore = ["test_attacks.py", "test_evidence.py"]
else:
    from ansible_collections.cvm.fde.tests.unit.plugins.conftest import (
        authority,
        endorsement_authority,
        image,
        machine,
        make_machine,
        tomorrow,
    )
    from ansible_collections.cvm.fde.tests.unit.plugins.plugin_utils.appraisal.test_judgement import good, grounds

    collect_ignore = ["inside"]
    __all__ = [
        "authority",
        "endorsement_authority",
        "good",
        "grounds",
        "image",
        "machine",
        "make_machine",
        "tomorrow",
    ]
