# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The codes of refusals are stable, and the anchor can keep each of them."""

from __future__ import annotations

import pytest
from ansible_collections.cvm.fde.plugins.module_utils.codes import Code
from ansible_collections.cvm.fde.plugins.module_utils.tpm.anchor import CODE_LIMIT, Anchor, State

#: What consoles, logs, TPMs and policies of users have: a name may be added here, and none be changed or removed.
NAMES = {
    "secure-boot-off",
    "configuration-added",
    "strategy-unsupported",
    "verity-missing",
    "image-outdated",
    "disk-ambiguous",
    "volume-disk",
    "disk-damaged",
    "disk-foreign",
    "partition-foreign",
    "volume-duplicate",
    "anchor-unreadable",
    "anchor-foreign",
    "volume-without-anchor",
    "volume-missing",
    "header-mismatch",
    "rolled-back",
    "disk-too-small",
    "tpm-owned",
    "anchor-no-room",
    "luks2-policy",
    "device-shrunk",
    "key-unavailable",
    "not-activated",
    "active-table",
    "not-measured",
    "image-changed",
    "written-record",
    "clone-metadata",
    "initrd-failed",
    "failed",
    "header-changed",
    "volume-has-data",
}


def test_the_names_are_those_that_were_published() -> None:
    assert {code.value for code in Code} == NAMES


@pytest.mark.parametrize("code", Code)
def test_the_anchor_keeps_the_name_as_a_whole(code: Code) -> None:
    assert len(code.value) <= CODE_LIMIT
    assert Anchor.unmarshal(Anchor(State.READY).refused(code.value).marshal()).last_refusal == code.value
