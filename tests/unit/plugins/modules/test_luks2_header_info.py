# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module reports what a header says and what is wrong with it, and fails only when it cannot read."""

from __future__ import annotations

import hashlib
import json
import lzma
import os
import struct
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


@pytest.mark.parametrize("sectors", [1, 2048, 264_192])
def test_a_volume_within_an_image_is_found_at_its_offset(disk, capsys, sectors):
    path = disk("2.8.8-data")
    _status, whole = _run(capsys, path=str(path))
    _at(path, sectors * 512)
    status, result = _run(capsys, path=str(path), offset=sectors * 512)
    assert (status, result["header"]["accepted"]) == (0, True)
    assert result["header"] == whole["header"]
    # One sector beside it there is no header, whichever way the offset is wrong.
    for wrong in (sectors - 1, sectors + 1):
        _status, result = _run(capsys, path=str(path), offset=wrong * 512)
        assert not result["header"]["present"]


def test_a_volume_that_does_not_fit_behind_its_offset_is_not_accepted(disk, capsys):
    path = disk("2.8.8-data")
    _at(path, 4096)
    with path.open("r+b") as file:
        file.truncate(4096 + (8 << 20) - 512)
    _status, result = _run(capsys, path=str(path), offset=4096)
    header = result["header"]
    assert (header["sound"], header["accepted"], header["digest"]) == (True, False, None)
    assert header["violations"] == [
        {"reason": "device-size", "where": "device", "found": "8388096 bytes, and data from byte 8388608 on"}
    ]


def _at(path, offset):
    """Move a volume to where a partition of an image begins."""
    content = path.read_bytes()
    with path.open("wb") as file:
        file.seek(offset)
        file.write(content)


def test_an_offset_at_or_behind_the_end_is_a_failure_that_tells_the_size(disk, capsys):
    path = disk("2.8.8-data")
    for offset in (8 << 20, 1 << 40, (1 << 62) - 512):
        status, result = _run(capsys, path=str(path), offset=offset)
        assert status == 1
        assert f"it has 8388608 bytes, and no volume can begin at byte {offset}" in result["msg"]


@pytest.mark.parametrize("offset", [-512, 1, 513, 1 << 62, 1 << 80])
def test_an_offset_that_no_partition_has_is_a_failure(disk, capsys, offset):
    status, result = _run(capsys, path=str(disk("2.8.8-data")), offset=offset)
    assert (status, result["msg"]) == (1, "offset must be a multiple of 512 bytes, and not negative")


def test_what_is_neither_a_device_nor_a_file_is_refused_at_once(tmp_path, capsys):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (pipe, tmp_path, "/dev/zero"):
        status, result = _run(capsys, path=str(path))
        assert status == 1
        assert "neither a block device nor a file" in result["msg"]


def test_a_hostile_header_makes_a_short_printable_report(tmp_path, capsys):
    metadata = {"segments": {}, "digests": {}, "tokens": {}, "config": {"x\x9b": "\x1b" * 100_000, "y" * 64: ["\x9b"]}}
    metadata["keyslots"] = {
        str(n): {"type": "x", **{f"\x9b{k}": "\U0010ffff" * 250 for k in range(100)}} for n in range(32)
    }
    path = tmp_path / "disk"
    path.write_bytes(_forged(json.dumps(metadata, ensure_ascii=False).encode()))
    assert path.stat().st_size == 8 << 20
    with patch_module_args({"path": str(path)}), pytest.raises(SystemExit):
        luks2_header_info.main()
    said = capsys.readouterr().out
    assert len(said) < 600_000
    header = json.loads(said)["header"]
    assert (header["sound"], header["accepted"], len(header["violations"])) == (True, False, 48)
    assert header["more_violations"] > 3000
    assert all(text.isprintable() and len(text) < 160 for text in _texts(header))


def _texts(value):
    if isinstance(value, dict):
        for name, entry in value.items():
            yield name
            yield from _texts(entry)
    elif isinstance(value, list):
        for entry in value:
            yield from _texts(entry)
    elif isinstance(value, str):
        yield value


def _forged(text, size=4 << 20):
    genuine = lzma.decompress((FIXTURES / "2.8.8-data.xz").read_bytes())
    content = bytearray()
    for copy in (0, 256 << 10):
        header = bytearray(genuine[copy : copy + 4096] + text.ljust(size - 4096, b"\0"))
        header[8:16], header[256:264] = struct.pack(">Q", size), struct.pack(">Q", len(content))
        header[448:512] = bytes(64)
        header[448:480] = hashlib.sha256(header).digest()
        content += header
    return bytes(content)


def test_the_choices_of_the_documentation_are_the_profiles():
    import yaml
    from ansible_collections.cvm.fde.plugins.module_utils.luks2.profile import LAYOUT, PROFILES

    options = yaml.safe_load(luks2_header_info.DOCUMENTATION)["options"]
    assert options["profile"]["choices"] == list(PROFILES)
    assert options["data_offset"]["default"] == LAYOUT.offset
    assert options["metadata_size"]["default"] == LAYOUT.metadata_size
