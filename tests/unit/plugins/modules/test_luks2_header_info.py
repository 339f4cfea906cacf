# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module reports what a header says and what is wrong with it, and fails only when it cannot read."""

from __future__ import annotations

import json
import lzma
from pathlib import Path

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.cvm.fde.plugins.modules import luks2_header_info

FIXTURES = Path(__file__).parents[1] / "module_utils/luks2/fixtures"
UUID = "6a2f0e55-5b7e-4d0e-9d59-1c2f35e7a003"


@pytest.fixture
def disk(tmp_path):
    def make(name, size=8 << 20):
        path = tmp_path / "disk"
        path.write_bytes(lzma.decompress((FIXTURES / f"{name}.xz").read_bytes()).ljust(size, b"\0")[:size])
        return path

    return make


def _run(capsys, **options):
    with patch_module_args(options), pytest.raises(SystemExit) as ended:
        luks2_header_info.main()
    return ended.value.code, json.loads(capsys.readouterr().out)


def test_a_root_volume_is_accepted(disk, capsys):
    key = (FIXTURES / "2.8.8-root.pem").read_text()
    status, result = _run(capsys, path=str(disk("2.8.8-root")), purpose="root", uuid=UUID, public_key=key)
    header = result["header"]
    assert (status, result["changed"]) == (0, False)
    assert (header["accepted"], header["violations"], header["defect"]) == (True, [], None)
    assert (header["uuid"], header["metadata_size"], len(header["digest"])) == (UUID, 256 << 10, 64)
    assert header["metadata"]["tokens"]["0"] == {"type": "systemd-tpm2", "keyslots": ["1"]}


@pytest.mark.parametrize("profile", ["authenticated", "aegis", "confidential"])
def test_a_data_volume_is_accepted_as_its_own_profile_only(disk, capsys, profile):
    for other in ("authenticated", "aegis", "confidential"):
        _status, result = _run(capsys, path=str(disk(f"2.7.5-{profile}")), profile=other)
        assert result["header"]["accepted"] is (other == profile)


def test_what_is_wrong_is_listed(disk, capsys):
    status, result = _run(capsys, path=str(disk("2.8.8-authenticated")), purpose="root")
    reasons = [violation["reason"] for violation in result["header"]["violations"]]
    assert (status, result["header"]["accepted"]) == (0, False)
    assert reasons == ["token-count", "token-count", "keyslot-count"]


def test_a_malformed_header_is_a_result(disk, capsys):
    path = disk("2.8.8-root")
    content = bytearray(path.read_bytes())
    content[5000] ^= 1
    path.write_bytes(content)
    status, result = _run(capsys, path=str(path))
    header = result["header"]
    assert (status, header["present"], header["sound"], header["accepted"]) == (0, True, False, False)
    assert header["defect"]["code"] == "checksum"
    assert header["uuid"] is None


def test_an_empty_disk_is_a_result(tmp_path, capsys):
    path = tmp_path / "disk"
    path.write_bytes(bytes(100))
    status, result = _run(capsys, path=str(path))
    assert status == 0
    assert not result["header"]["present"]
    assert result["header"]["digest"] is None


def test_a_device_that_cannot_be_read_is_a_failure(tmp_path, capsys):
    status, result = _run(capsys, path=str(tmp_path / "absent"))
    assert status == 1
    assert "cannot be read" in result["msg"]


def test_an_offset_that_no_volume_has_is_a_failure(tmp_path, capsys):
    status, result = _run(capsys, path=str(tmp_path / "absent"), data_offset=1 << 40)
    assert status == 1
    assert "data_offset" in result["msg"]


def test_the_choices_of_the_documentation_are_the_profiles():
    import yaml
    from ansible_collections.cvm.fde.plugins.module_utils.luks2.profile import LAYOUT, PROFILES

    options = yaml.safe_load(luks2_header_info.DOCUMENTATION)["options"]
    assert options["profile"]["choices"] == list(PROFILES)
    assert options["data_offset"]["default"] == LAYOUT.offset
    assert options["metadata_size"]["default"] == LAYOUT.metadata_size
