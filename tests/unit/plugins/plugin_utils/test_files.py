# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A relative path of an option leads where whoever wrote it looks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from ansible.errors import AnsibleActionFail
from ansible.parsing.dataloader import DataLoader
from ansible_collections.cvm.fde.plugins.plugin_utils.files import (
    FILE_LIMIT,
    certificate_texts,
    ledger_at,
    located,
    small_file,
)
from ansible_collections.cvm.fde.tests.lab.ansible import SETTINGS

TASK = {"cvm.fde.fleet_report": {"hosts": [], "path": "report.json", "require": "nothing"}}
PLAY = [{"hosts": "localhost", "gather_facts": False, "tasks": [TASK]}]


@pytest.fixture
def loader(tmp_path: Path) -> DataLoader:
    """The loader of a playbook of the user's."""
    found = DataLoader()
    found.set_basedir(str(tmp_path))
    return found


def play(playbook: str, started_in: Path, *words: str, collections: Path | None = None) -> None:
    """Run a playbook from a directory; raises ``CalledProcessError``."""
    settings = {**os.environ, **SETTINGS}
    if collections is not None:
        settings["ANSIBLE_COLLECTIONS_PATH"] += f":{collections}"
    program = str(Path(sys.executable).with_name("ansible-playbook"))
    subprocess.run([program, playbook, *words], cwd=started_in, env=settings, capture_output=True, check=True)


def test_a_relative_path_is_that_of_the_users_playbook(tmp_path: Path) -> None:
    (tmp_path / "plays").mkdir()
    (tmp_path / "plays/play.yml").write_text(json.dumps(PLAY))
    play("plays/play.yml", tmp_path)
    assert (tmp_path / "plays/report.json").exists() and not (tmp_path / "report.json").exists()


@pytest.mark.parametrize("imported", [False, True])
def test_a_relative_path_of_a_collections_playbook_is_that_of_whoever_starts_it(tmp_path: Path, imported: bool) -> None:
    playbooks = tmp_path / "installed/ansible_collections/some/where/playbooks"
    playbooks.mkdir(parents=True)
    (playbooks / "play.yml").write_text(json.dumps(PLAY))
    (tmp_path / "plays").mkdir()
    mine = tmp_path / "plays/mine.yml"
    mine.write_text(json.dumps([{"ansible.builtin.import_playbook": "some.where.play"}]))
    play(str(mine) if imported else "some.where.play", tmp_path, collections=tmp_path / "installed")
    assert (tmp_path / "report.json").exists()
    assert not (playbooks / "report.json").exists() and not (mine.parent / "report.json").exists()


@pytest.mark.parametrize("place", ["plays", "ansible_collections/cvm/fde/playbooks"])
def test_a_home_and_a_whole_path_are_the_same_everywhere(loader: DataLoader, tmp_path: Path, place: str) -> None:
    (tmp_path / place).mkdir(parents=True)
    loader.set_basedir(str(tmp_path / place))
    assert located(loader, "~/key.pem") == str(Path.home() / "key.pem")
    assert located(loader, "/srv/key.pem") == "/srv/key.pem"


def test_the_url_of_a_ledger_is_no_path(loader: DataLoader, tmp_path: Path) -> None:
    assert ledger_at(loader, "postgresql://db/ledger") == "postgresql://db/ledger"
    assert ledger_at(loader, "ledger.db") == str(tmp_path / "ledger.db")


def test_what_is_too_large_or_absent_is_named(tmp_path: Path) -> None:
    large = tmp_path / "large"
    large.write_bytes(bytes(FILE_LIMIT + 1))
    with pytest.raises(AnsibleActionFail, match=f"{large}: it is larger than"):
        small_file(str(large))
    with pytest.raises(AnsibleActionFail, match="none: it cannot be read"):
        small_file(str(tmp_path / "none"))


def test_a_certificate_that_is_no_text_is_refused() -> None:
    assert certificate_texts(["one"], lambda _path: b"-----BEGIN") == ["-----BEGIN"]
    with pytest.raises(AnsibleActionFail, match="Name PEM files"):
        certificate_texts(["one"], lambda _path: b"\x30\x82\xff")
