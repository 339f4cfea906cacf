# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The ledger, for what works on it alone."""

from __future__ import annotations


class ModuleDocFragment:
    DOCUMENTATION = r"""
options:
  ledger:
    description: The path of the SQLite file or the URL of the PostgreSQL database, on the control node.
    type: str
    required: true
requirements:
  - SQLAlchemy >= 2.0 (on the control node)
"""
