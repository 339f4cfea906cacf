# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""By what machines are told apart in a report; for plugins that read one, and judge nothing, as well.

Those are loaded where nothing but Ansible is installed.
"""

from __future__ import annotations

from enum import Enum

#: What no two machines may share, and the check that fails when they do.
UNIQUE = {
    "endorsement_key": "unique_endorsement_key",
    # One TPM has endorsement keys of several kinds, but only this one of ours.
    "attestation_key": "unique_attestation_key",
    "volume_key_id": "unique_volume_key",
}


class Naming(str, Enum):
    """Whether it is known which machine answered. It is no part of the verdict."""

    #: The endorsement key is the one that the operator knows this machine by.
    PINNED = "pinned"
    #: Nothing names the machine: any one of the same image may have answered in its place.
    UNPINNED = "unpinned"
