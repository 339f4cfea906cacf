# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Users may add words to the command line, and none that would undo the protection."""

from __future__ import annotations

import pytest
from ansible_collections.cvm.fde.plugins.module_utils.agent.configuration import (
    SVN_MAXIMUM,
    Configuration,
    Recovery,
    Strategy,
    VolumeDisk,
    parse,
)
from ansible_collections.cvm.fde.plugins.module_utils.boot.command_line import (
    Choices,
    command_line,
    root_hash_of,
)
from ansible_collections.cvm.fde.plugins.module_utils.errors import FdeError

HASH = "ab" * 32


def test_the_fixed_words_come_first_and_name_the_root_hash() -> None:
    line = command_line(HASH, extra=" console=ttyS0  net.ifnames=0 ")
    assert line == (
        f"roothash={HASH} root=/dev/mapper/fde-root rw fde.strategy=clone systemd.gpt_auto=0 rd.shell=0 "
        "rd.emergency=poweroff panic=10 systemd.firstboot=off systemd.import_credentials=no "
        "systemd.verity_root_options=panic-on-corruption gpt console=ttyS0 net.ifnames=0"
    )
    assert root_hash_of(line) == HASH


@pytest.mark.parametrize(
    "word",
    [
        "root=/dev/sda1",
        "ROOT=/dev/sda1",
        "roothash=00",
        "ro",
        "rw",
        "rd.shell",
        "rd.shell=1",
        "rd.break",
        "rd.emergency=reboot",
        "fde.strategy=copy",
        "fde.anything",
        "fde.disk=other",
        "rootflags=x",
        "rootfstype=ext4",
        "fsck.mode=force",
        "systemd.volatile=no",
        "init=/bin/sh",
        "rdinit=/bin/sh",
        "systemd.gpt-auto=1",
        "systemd.gpt_auto=1",
        "systemd.debug-shell",
        "rd.systemd.debug_shell=1",
        "systemd.unit=rescue.target",
        "systemd.verity=0",
        "systemd.verity_root_data=/dev/sda",
        "systemd.set_credential=a:b",
        "single",
        "emergency",
        "--",
        "a\nb",
        '"root=/dev/sda1"',
        "ünïcode",
        "x" * 2048,
    ],
)
def test_words_that_would_undo_the_protection_are_refused(word: str) -> None:
    with pytest.raises(FdeError, match="command_line"):
        command_line(HASH, extra=f"quiet {word}")


@pytest.mark.parametrize(
    "word", ["console=ttyS0", "quiet", "rootless=1", "systemd.log_level=debug", "mitigations=auto"]
)
def test_other_words_are_taken(word: str) -> None:
    assert command_line(HASH, extra=word).endswith(f" {word}")


@pytest.mark.parametrize("strategy", list(Strategy))
@pytest.mark.parametrize("disk", [VolumeDisk(), VolumeDisk.parse("other"), VolumeDisk.parse("serial:data-1")])
@pytest.mark.parametrize("recovery", list(Recovery))
@pytest.mark.parametrize("svn", [0, 1, SVN_MAXIMUM])
def test_the_agent_reads_what_was_chosen_at_sealing(
    strategy: Strategy, disk: VolumeDisk, recovery: Recovery, svn: int
) -> None:
    found = parse(command_line(HASH, Choices(strategy, disk, recovery, svn), "quiet"))
    assert found == Configuration(bytes.fromhex(HASH), strategy, disk, recovery, svn)


@pytest.mark.parametrize("strategy", list(Strategy))
def test_every_strategy_names_one_root(strategy: Strategy) -> None:
    words = command_line(HASH, Choices(strategy)).split()
    assert len([word for word in words if word.startswith("root=")]) == 1
    assert ("rw" in words) is (strategy is not Strategy.EPHEMERAL)
    assert ("systemd.volatile=overlay" in words) is (strategy is Strategy.EPHEMERAL)


@pytest.mark.parametrize("line", ["", "roothash=12", f"roothash={HASH} roothash={HASH}", f"xroothash={HASH}"])
def test_a_command_line_without_exactly_one_root_hash_has_none(line: str) -> None:
    assert root_hash_of(line) == ""
