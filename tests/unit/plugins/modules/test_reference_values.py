# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module writes a reference set that a verifier reads, once, and tells the truth about it."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.cvm.fde.plugins.modules import reference_values
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.reference import load_reference

pytestmark = pytest.mark.skipif(not shutil.which("openssl"), reason="openssl is not installed")
ROOT_HASH = "5a" * 32


def image(sections: dict[str, bytes]) -> bytes:
    """Return a PE32+ image with these sections, one after the other and unsigned."""
    table, start = 0x40 + 24 + 112 + 8 * 16, 0x1000
    head = bytearray(start)
    head[:2], head[0x3C:0x40] = b"MZ", struct.pack("<I", 0x40)
    head[0x40:0x44] = b"PE\0\0"
    struct.pack_into("<H12xH", head, 0x46, len(sections), 112 + 8 * 16)
    struct.pack_into("<H", head, 0x58, 0x20B)
    struct.pack_into("<I", head, 0x58 + 60, start)
    struct.pack_into("<I", head, 0x58 + 108, 16)
    body = b""
    for place, (name, data) in enumerate(sections.items()):
        offset = start + len(body)
        struct.pack_into("<8sIIII", head, table + 40 * place, name.encode(), len(data), offset, len(data), offset)
        body += data
    return bytes(head) + body


@pytest.fixture
def made(tmp_path: Path) -> dict[str, Any]:
    """A key, and a kernel image as ukify lays one out."""
    key = tmp_path / "manifest.key"
    subprocess.run(["openssl", "genrsa", "-out", key, "2048"], check=True, capture_output=True)
    public = subprocess.run(["openssl", "pkey", "-pubout", "-in", key], check=True, capture_output=True).stdout
    (tmp_path / "manifest.pem").write_bytes(public)
    sections = {
        ".sdmagic": b"#### LoaderInfo: systemd-stub 262 ####",
        ".linux": b"kernel",
        ".cmdline": f"roothash={ROOT_HASH} fde.strategy=clone".encode(),
        ".initrd": b"initrd",
        ".pcrpkey": public,
    }
    (tmp_path / "linux.efi").write_bytes(image(sections))
    return {"uki": str(tmp_path / "linux.efi"), "dest": str(tmp_path / "set.json"), "key": str(key), "folder": tmp_path}


def run(capsys: Any, check: bool = False, **options: Any) -> tuple[int, dict[str, Any]]:
    arguments = {**options, "_ansible_check_mode": check}
    with patch_module_args(arguments), pytest.raises(SystemExit) as ended:
        reference_values.main()
    return int(ended.value.code or 0), json.loads(capsys.readouterr().out)


def options(made: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {name: made[name] for name in ("uki", "dest", "key")} | more


def test_a_set_is_written_once_and_a_verifier_reads_it(made: dict[str, Any], capsys: Any) -> None:
    status, first = run(capsys, **options(made, name="debian", not_after="2027-01-01T00:00:00Z"))
    assert (status, first["changed"]) == (0, True), first
    folder = made["folder"]
    raw, signature = (folder / "set.json").read_bytes(), (folder / "set.json.sig").read_bytes()
    reference = load_reference(raw, signature, (folder / "manifest.pem").read_bytes())
    assert (reference.name, reference.strategy, reference.root_hash) == ("debian", "clone", ROOT_HASH)
    assert reference.not_after is not None and reference.not_after.year == 2027
    assert reference.pcr_7 is None
    assert set(reference.sha384) == {4, 11, 12}
    _status, again = run(capsys, **options(made, name="debian", not_after="2027-01-01T00:00:00Z"))
    assert again["changed"] is False
    assert again["reference_set"] == first["reference_set"]


def test_check_mode_writes_nothing_and_shows_what_it_would(made: dict[str, Any], capsys: Any) -> None:
    _status, found = run(capsys, check=True, **options(made))
    assert found["changed"] is True
    assert found["diff"]["before"] == "" and ROOT_HASH in found["diff"]["after"]
    assert not (made["folder"] / "set.json").exists()


def test_a_set_that_somebody_changed_is_written_again(made: dict[str, Any], capsys: Any) -> None:
    run(capsys, **options(made))
    (made["folder"] / "set.json.sig").write_bytes(b"no signature")
    _status, found = run(capsys, **options(made))
    assert found["changed"] is True


def test_a_manifest_gets_a_name_and_a_period(made: dict[str, Any], capsys: Any) -> None:
    run(capsys, **options(made))
    manifest = {"manifest": made["dest"], "name": "other", "not_before": "2026-01-01T00:00:00Z"}
    _status, found = run(capsys, **manifest)
    assert found["reference_set"]["name"] == "other"
    assert found["changed"] is False


@pytest.mark.parametrize("content", [b"", b"MZ", b"\x7fELF" * 100])
def test_what_is_no_kernel_image_is_an_error_that_names_it(made: dict[str, Any], capsys: Any, content: bytes) -> None:
    Path(made["uki"]).write_bytes(content)
    status, found = run(capsys, **options(made, name="broken"))
    assert status != 0
    assert found["failed"] and "broken" in found["msg"]
