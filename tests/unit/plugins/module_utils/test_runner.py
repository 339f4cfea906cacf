# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The runner of modules: programs get what they were given, and all that they write arrives."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Optional

import pytest
from ansible_collections.cvm.fde.plugins.module_utils.errors import FdeError
from ansible_collections.cvm.fde.plugins.module_utils.runner import CommandError, MissingProgram, ModuleRunner


class Module:
    """Finds programs as an ``AnsibleModule`` does, and runs none."""

    def get_bin_path(self, name: str, opt_dirs: list[str]) -> Optional[str]:
        return name if os.path.isabs(name) else shutil.which(name, path=":".join([*opt_dirs, os.environ["PATH"]]))


RUNNER = ModuleRunner(Module())


def test_arguments_input_and_environment_arrive_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEPT", "of the module")
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    script = 'printf "%s|" "$@" "$KEPT" "$MORE" "$LC_ALL"; cat'
    done = RUNNER.run(["sh", "-c", script, "sh", "~", "$HOME"], stdin=b"\0\xff", env={"MORE": "given"})
    assert done.stdout == b"~|$HOME|of the module|given|C|\0\xff"
    assert RUNNER.run(["cat"]).stdout == b""


def test_what_a_program_writes_after_a_second_of_silence_arrives() -> None:
    # As long as a reader would wait who looks once a second.
    for wait in ("0.999", "1.0", "1.001"):
        assert RUNNER.run(["sh", "-c", f"sleep {wait}; echo said"]).stdout == b"said\n"


def test_a_file_is_passed_on_under_its_number() -> None:
    with open("/dev/null", "rb") as file:
        script = f"test -e /proc/self/fd/{file.fileno()}"
        assert RUNNER.run(["sh", "-c", script], ok=(1,)).status == 1
        assert RUNNER.run(["sh", "-c", script], pass_fds=[file.fileno()]).status == 0


def test_what_goes_wrong_is_told(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="ended with status 3: why") as caught:
        RUNNER.run(["sh", "-c", "echo why >&2; exit 3"])
    assert caught.value.completed.status == 3
    assert RUNNER.run(["sh", "-c", "exit 3"], ok=()).status == 3
    with pytest.raises(MissingProgram):
        RUNNER.run(["no-such-program"])
    broken = tmp_path / "broken"
    broken.write_bytes(b"\x7fELF")
    broken.chmod(0o755)
    with pytest.raises(FdeError, match="it cannot be started: Exec format error"):
        RUNNER.run([str(broken)])
