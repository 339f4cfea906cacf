# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where the quotes, event logs and hardware reports of real machines are, which are not part of the project."""

from __future__ import annotations

import os
from pathlib import Path

VECTORS = Path(os.environ.get("FDE_TEST_VECTORS", Path(__file__).resolve().parents[2] / "shared/vectors"))
MISSING = f"real attestation inputs are not at {VECTORS}; set FDE_TEST_VECTORS"
