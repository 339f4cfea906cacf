# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Data volumes from nothing to erased, on a real kernel: what is made, kept, found again, and refused."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from ansible_collections.cvm.fde.plugins.module_utils.luks2.profile import PROFILES
from owner import Owner, drop_caches
from software_tpm import Tpm

PATTERN = b"nobody but the owner may ever read this line. "
#: Bytes; xfs makes nothing smaller.
SIZES = {"ext4": 96 << 20, "xfs": 384 << 20, "btrfs": 192 << 20, "none": 64 << 20}


@pytest.mark.parametrize("kind", SIZES)
@pytest.mark.parametrize("profile", PROFILES)
def test_a_volume_of_every_profile_holds_every_file_system(
    owner: Owner, disk: Callable[..., str], tpm: Tpm, profile: str, kind: str
) -> None:
    device = disk(SIZES[kind])
    wanted = owner.wants(device, profile=profile, file_system=kind)
    made = owner.run(wanted)
    assert [step["action"] for step in made["steps"]][:4] == ["pin", "clear", "format", "change-keyslots"]
    assert (made["state"], made["unlock"]) == ("open" if kind == "none" else "mounted", ["tpm2 (PCR 7)"])
    assert owner.run(wanted)["steps"] == []
    path = owner.mapped if kind == "none" else owner.mount_point / "file"
    with open(path, "r+b" if kind == "none" else "wb") as file:
        file.write(PATTERN * 4096)
        os.fsync(file.fileno())
    drop_caches()
    assert Path(path).read_bytes().startswith(PATTERN * 4096)
    closed = owner.run(owner.wants(device, profile=profile, file_system=kind, state="closed"))
    assert closed["state"] == "closed"
    drop_caches()
    assert PATTERN[:16] not in Path(device).read_bytes()
    assert owner.run(wanted)["state"] != "closed"
    assert Path(path).read_bytes().startswith(PATTERN * 4096)
