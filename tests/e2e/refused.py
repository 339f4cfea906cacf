# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a guest says on its console whose boot is refused."""

from __future__ import annotations


def is_refused(said: str, code: str) -> bool:
    """Tell whether the boot was refused by this code, and what that is worth: the TPM is closed since."""
    return f"cvm-fde: refused [{code}]" in said and "cvm-fde: the refusal is measured into PCR 11" in said
