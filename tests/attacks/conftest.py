# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Lends the machines of the verifier's tests. The attacks under ``inside`` are collected by a guest only, which has no
such machines.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

if os.environ.get("FDE_INSIDE_UML"):
    collect_ignore = ["test_attacks.py", "test_evidence.py"]
else:
    collect_ignore = ["inside"]
    _PATH = Path(__file__).resolve().parents[1] / "unit/plugins/conftest.py"
    _spec = importlib.util.spec_from_file_location("fde_machines", _PATH)
    assert _spec is not None and _spec.loader is not None
    _machines = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(_machines)
    globals().update({name: value for name, value in vars(_machines).items() if not name.startswith("_")})
