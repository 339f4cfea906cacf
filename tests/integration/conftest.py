# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The tests under ``inside`` need to be root with device-mapper: only a guest collects them (see test_in_uml.py)."""

from __future__ import annotations

import os

collect_ignore = [] if os.environ.get("FDE_INSIDE_UML") else ["inside"]
