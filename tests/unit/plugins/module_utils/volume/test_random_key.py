# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A new volume key is random, of the TPM too where there is one, and gone afterwards."""

from __future__ import annotations

import pytest
from ansible_collections.cvm.fde.plugins.module_utils.luks2.method import Recovery, Tpm2
from ansible_collections.cvm.fde.plugins.module_utils.luks2.profile import PROFILES
from ansible_collections.cvm.fde.plugins.module_utils.tpm.esys import TpmError, tss
from ansible_collections.cvm.fde.plugins.module_utils.volume.machine import tcti_of
from ansible_collections.cvm.fde.plugins.module_utils.volume.random_key import fresh_volume_key
from ansible_collections.cvm.fde.plugins.module_utils.volume.wanted import Wanted
from ansible_collections.cvm.fde.tests.unit.plugins.conftest import Machine


def wanted(device: str, *, tpm: bool = True) -> Wanted:
    return Wanted("data", "/dev/vdb", unlock=(Tpm2((7,)) if tpm else Recovery(),), tpm2_device=device)


@pytest.mark.parametrize("size", sorted({profile.volume_key_size for profile in PROFILES.values()}))
def test_every_key_is_another_one_and_is_overwritten_afterwards(machine: Machine, size: int) -> None:
    seen = []
    for given in (wanted(machine.tcti), wanted(machine.tcti), wanted(machine.tcti, tpm=False)):
        with fresh_volume_key(size, given) as key:
            assert len(key) == size and len(set(key)) > 8
            seen.append(bytes(key))
        assert not any(key)
    assert len(set(seen)) == 3


@pytest.mark.skipif(tss is None, reason="tpm2-pytss is not installed")
@pytest.mark.parametrize("device", ["/dev/null", "device:/dev/null"])
def test_a_tpm_that_gives_nothing_is_no_half_of_a_key(device: str) -> None:
    """The path of a node is what systemd takes, and the library does not."""
    with pytest.raises(TpmError, match="device:/dev/null: .*IO failure"), fresh_volume_key(96, wanted(device)):
        pass


def test_a_volume_that_no_tpm_opens_asks_none() -> None:
    with fresh_volume_key(96, wanted("/dev/null", tpm=False)) as key:
        assert len(key) == 96


@pytest.mark.parametrize(
    ("device", "tcti"),
    [
        ("auto", "device:/dev/tpmrm0"),
        ("device", "device:/dev/tpmrm0"),
        ("device:", "device:/dev/tpmrm0"),
        ("/dev/tpmrm1", "device:/dev/tpmrm1"),
        ("device:/dev/tpmrm1", "device:/dev/tpmrm1"),
        ("swtpm:path=/run/tpm", "swtpm:path=/run/tpm"),
    ],
)
def test_a_tpm_is_named_to_the_library_as_it_takes_it(device: str, tcti: str) -> None:
    assert tcti_of(device) == tcti
