# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The machine behind a host is that of the verifier's unit tests: a software TPM with logs that fit its PCRs."""

from __future__ import annotations

from ansible_collections.cvm.fde.tests.unit.plugins.conftest import (
    authority,
    endorsement_authority,
    image,
    make_machine,
)

__all__ = ["authority", "endorsement_authority", "image", "make_machine"]
