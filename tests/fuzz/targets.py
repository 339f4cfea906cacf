# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""All that is fuzzed, by name."""

from __future__ import annotations

from . import appraisal, luks2_header

TARGETS = {target.name: target for target in (*appraisal.TARGETS, luks2_header.TARGET)}
