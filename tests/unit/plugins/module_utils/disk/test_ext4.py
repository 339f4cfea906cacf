# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Files of an ext4 image are read and changed without mounting it; the real debugfs does it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from ansible_collections.cvm.fde.plugins.module_utils.boot.tools import Tools
from ansible_collections.cvm.fde.plugins.module_utils.disk.ext4 import (
    Ext4Files,
    Mkdir,
    Remove,
    Symlink,
    Write,
    quote,
)
from ansible_collections.cvm.fde.plugins.module_utils.errors import FdeError
from ansible_collections.cvm.fde.plugins.module_utils.runner import Runner

pytestmark = pytest.mark.skipif(not os.path.exists("/usr/sbin/debugfs"), reason="e2fsprogs is not installed")
OFFSET = 1 << 20


@pytest.fixture
def image(tmp_path: Path) -> Path:
    tree = tmp_path / "tree"
    (tree / "etc/many").mkdir(parents=True)
    (tree / "etc/a file").write_text("spaces")
    (tree / "etc/host key").write_bytes(b"secret")
    for number in range(30):
        (tree / f"etc/many/{number}").write_text(str(number))
    file_system = tmp_path / "fs"
    with file_system.open("wb") as file:
        file.truncate(8 << 20)
    subprocess.run(["/usr/sbin/mkfs.ext4", "-q", "-d", str(tree), str(file_system)], check=True)
    path = tmp_path / "disk"
    path.write_bytes(bytes(OFFSET) + file_system.read_bytes())
    return path


@pytest.fixture
def files(image: Path, direct_runner: Runner) -> Ext4Files:
    return Ext4Files(Tools(direct_runner), str(image), OFFSET)


def test_directories_and_files_are_read_at_an_offset(files: Ext4Files) -> None:
    entries = files.list("/etc")
    assert set(entries) == {"a file", "host key", "many"}
    assert entries["many"].is_directory
    assert (entries["a file"].is_file, entries["a file"].size) == (True, 6)
    assert files.read("/etc/a file") == b"spaces"


def test_what_does_not_exist_is_empty(files: Ext4Files) -> None:
    assert files.list("/nowhere") == {}
    assert files.read("/nowhere/file") == b""


def test_changes_are_made_and_leave_a_clean_file_system(files: Ext4Files, image: Path, tmp_path: Path) -> None:
    changes = [
        Remove("/etc/host key"),
        *(Remove(f"/etc/many/{number}") for number in range(30)),
        Remove("/etc/many", directory=True),
        Mkdir("/etc/new dir"),
        Symlink("/etc/new dir/link", "/etc/a file"),
        Write("/etc/new dir/unit", b'content with "quotes"\n', 0o600),
    ]
    files.apply(changes, 1_700_000_000, str(tmp_path))
    assert set(files.list("/etc")) == {"a file", "new dir"}
    assert files.read("/etc/new dir/unit") == b'content with "quotes"\n'
    assert files.list("/etc/new dir")["unit"].mode & 0o777 == 0o600
    check = subprocess.run(["/usr/sbin/e2fsck", "-f", "-n", f"{image}?offset={OFFSET}"], capture_output=True)
    assert check.returncode == 0, check.stdout


def test_a_change_that_did_not_happen_is_an_error(files: Ext4Files, tmp_path: Path) -> None:
    with pytest.raises(FdeError, match="could not be changed"):
        files.apply([Remove("/etc/many", directory=True)], 0, str(tmp_path))


def test_extracting_what_is_no_file_is_an_error(files: Ext4Files, tmp_path: Path) -> None:
    files.extract("/etc/a file", str(tmp_path / "out"))
    assert (tmp_path / "out").read_bytes() == b"spaces"
    for path in ("/etc/many", "/etc/none"):
        with pytest.raises(FdeError, match="cannot be read"):
            files.extract(path, str(tmp_path / "none"))


@pytest.mark.parametrize("name", ['a"b', "a\nrm /etc/passwd", "a\rb", "a\0b"])
def test_names_that_could_smuggle_a_request_are_refused(name: str) -> None:
    with pytest.raises(FdeError, match="cannot be handled"):
        quote(name)


def test_a_hostile_name_in_the_image_is_an_error_not_a_request(tmp_path: Path, direct_runner: Runner) -> None:
    tree = tmp_path / "tree"
    (tree / "var/log").mkdir(parents=True)
    (tree / "var/log/x\nrm").write_text("")
    path = tmp_path / "fs"
    with path.open("wb") as file:
        file.truncate(8 << 20)
    subprocess.run(["/usr/sbin/mkfs.ext4", "-q", "-d", str(tree), str(path)], check=True)
    with pytest.raises(FdeError, match="cannot be handled"):
        Ext4Files(Tools(direct_runner), str(path)).list("/var/log")
