# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs inside the guest, with the reports and the machine of tests/integration/inside."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
_PATH = Path(__file__).resolve().parents[2] / "integration/inside/conftest.py"
_spec = importlib.util.spec_from_file_location("fde_inside", _PATH)
assert _spec is not None and _spec.loader is not None
_inside = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_inside)
globals().update({name: value for name, value in vars(_inside).items() if not name.startswith("_")})
