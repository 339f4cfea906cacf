# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs inside the guest, with the reports and the machine of tests/integration/inside."""

from __future__ import annotations

import sys
from pathlib import Path

from ansible_collections.cvm.fde.tests.integration.inside.conftest import *  # noqa: F403

sys.path.insert(0, str(Path(__file__).resolve().parent))
