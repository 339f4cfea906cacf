# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The header area is read once, digested and stored as it was."""

from __future__ import annotations

import hashlib
import hmac
import stat

import pytest
from ansible_collections.cvm.fde.plugins.module_utils.errors import FdeError
from ansible_collections.cvm.fde.plugins.module_utils.luks2.area import HeaderArea, read_area
from ansible_collections.cvm.fde.plugins.module_utils.luks2.digest import volume_key_id
from ansible_collections.cvm.fde.plugins.module_utils.luks2.header import SIZES
from ansible_collections.cvm.fde.plugins.module_utils.luks2.profile import LAYOUT


def test_the_area_of_a_volume_is_read_digested_and_parsed(forger, tmp_path):
    disk = tmp_path / "disk"
    content = forger.genuine().ljust(LAYOUT.offset, b"k")
    disk.write_bytes(content + b"data")
    area = read_area(str(disk))
    disk.write_bytes(b"what the host swaps in later")
    assert (area.content, area.present) == (content, True)
    assert area.digest == hashlib.sha256(b"cvm.fde luks2 header\0" + content).digest()
    assert area.header().uuid == "6a2f0e55-5b7e-4d0e-9d59-1c2f35e7a003"


def test_a_byte_of_a_keyslot_belongs_to_the_digest(forger):
    content = bytearray(forger.genuine().ljust(LAYOUT.offset, b"k"))
    before = HeaderArea("disk", bytes(content)).digest
    content[-1] ^= 1
    assert HeaderArea("disk", bytes(content)).digest != before


def test_a_disk_without_luks_is_told_from_one_with_a_broken_header(forger):
    assert not HeaderArea("disk", b"").present
    assert not HeaderArea("disk", bytes(LAYOUT.offset)).present
    assert HeaderArea("disk", b"LUKS\xba\xbe").present
    for size in SIZES:
        assert HeaderArea("disk", bytes(size) + b"SKUL\xba\xbe").present


def test_a_stored_copy_is_for_root_only_and_never_replaces_anything(forger, tmp_path):
    area = HeaderArea("disk", forger.genuine())
    target = tmp_path / "header"
    area.store(str(target))
    assert target.read_bytes() == forger.genuine()
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    with pytest.raises(FileExistsError):
        area.store(str(target))
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileExistsError):
        area.store(str(tmp_path / "link"))


def test_a_device_that_is_not_there_is_an_error_for_the_user(tmp_path):
    with pytest.raises(FdeError, match="cannot be read"):
        read_area(str(tmp_path / "absent"))


def test_the_volume_key_id_is_the_one_that_systemd_measures():
    key = bytes(range(96))
    expected = hmac.new(key, b"cryptsetup:fde-crypt:6a2f0e55-5b7e-4d0e-9d59-1c2f35e7a003", hashlib.sha256)
    found = volume_key_id(bytearray(key), "fde-crypt", "6a2f0e55-5b7e-4d0e-9d59-1c2f35e7a003")
    assert found == expected.hexdigest()


@pytest.mark.parametrize("name", ["", "a:b", "a\\b", "a b", "ü"])
def test_a_name_that_systemd_would_escape_has_no_volume_key_id(name):
    with pytest.raises(ValueError, match="device-mapper name"):
        volume_key_id(b"key", name, "uuid")
