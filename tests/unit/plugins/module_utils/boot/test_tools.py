# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Programs come from the tools tree, which sees the files it needs and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ansible_collections.cvm.fde.plugins.module_utils.boot.tools import (
    STUB,
    File,
    Tools,
    TreeTools,
    open_tools,
    sandboxed,
)
from ansible_collections.cvm.fde.plugins.module_utils.errors import FdeError
from ansible_collections.cvm.fde.plugins.module_utils.runner import MissingProgram


class NoPrograms:
    """A runner of a machine without programs."""

    def run(self, *_: Any, **__: Any) -> Any:
        raise AssertionError("nothing may be started")

    def find(self, name: str) -> None:
        return None


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "tree/usr/lib/systemd").mkdir(parents=True)
    (tmp_path / "tree/usr/lib/systemd/systemd-measure").write_text("")
    return tmp_path / "tree"


def test_programs_of_this_machine_get_plain_paths(direct_runner: Any) -> None:
    tools = Tools(direct_runner)
    done = tools.run(["echo", File("/a/key", prefix="--key="), File("/a/disk", writable=True, suffix="@@1M"), "x"])
    assert done.stdout == b"--key=/a/key /a/disk@@1M x\n"
    assert tools.resource(STUB) == f"/{STUB}"
    assert tools.has("echo")
    assert not tools.has("no-such-program")


def test_a_read_only_file_is_mounted_alone_and_read_only() -> None:
    command = sandboxed("/tree", ["prog", File("/keys/pcr.key", prefix="--key=")], {"A": "b"})
    assert command[0] == "bwrap"
    assert command[command.index("--ro-bind") : command.index("--ro-bind") + 3] == ["--ro-bind", "/tree", "/"]
    assert command[-3:] == ["--", "prog", "--key=/run/files/0/pcr.key"]
    place = command.index("/keys/pcr.key")
    assert command[place - 1 : place + 2] == ["--ro-bind", "/keys/pcr.key", "/run/files/0/pcr.key"]
    assert "/keys" not in command
    assert "--unshare-net" in command
    assert command[command.index("A") - 1 : command.index("A") + 2] == ["--setenv", "A", "b"]


def test_files_of_one_name_do_not_meet_and_a_directory_is_mounted_once() -> None:
    command = sandboxed(
        "/t", ["p", File("/a/x"), File("/b/x"), File("/w/1", writable=True), File("/w/2", writable=True)], {}
    )
    assert command[command.index("--") + 2 :] == [
        "/run/files/0/x",
        "/run/files/1/x",
        "/run/files/2/1",
        "/run/files/2/2",
    ]
    assert command.count("/w") == 1


def test_a_tree_without_its_sandbox_or_without_a_system_is_refused(tree: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingProgram, match="bwrap"):
        TreeTools(NoPrograms(), str(tree))
    with pytest.raises(FdeError, match="not a tools tree"):
        open_tools(NoPrograms(), str(tmp_path / "empty"))


def test_what_the_tree_lacks_is_looked_for_on_this_machine(tree: Path) -> None:
    class OnlySandbox(NoPrograms):
        def find(self, name: str) -> Any:
            return f"/usr/bin/{name}" if name in ("bwrap", "openssl") else None

    tools = TreeTools(OnlySandbox(), str(tree))
    assert tools.has("systemd-measure")
    assert tools.has("openssl")
    assert not tools.has("ukify")
    assert tools.resource(STUB) == f"{tree}/{STUB}"
