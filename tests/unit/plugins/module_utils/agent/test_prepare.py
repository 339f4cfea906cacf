# SPDX-License-Identifier: GPL-3.0-or-later
"""What it takes to prepare a system, and that a second run has nothing to do."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any, Optional, Sequence

import pytest
from ansible_collections.cvm.fde.plugins.module_utils.agent.capability import MODULES, STRATEGY_FILE, missing
from ansible_collections.cvm.fde.plugins.module_utils.agent.configuration import Strategy
from ansible_collections.cvm.fde.plugins.module_utils.agent.prepare import (
    Action,
    File,
    Found,
    Kernel,
    Link,
    Step,
    System,
    Wanted,
    apply_all,
    plan,
    wanted,
)
from ansible_collections.cvm.fde.plugins.module_utils.agent.requirements import REQUIREMENTS, Family
from ansible_collections.cvm.fde.plugins.module_utils.errors import FdeError
from ansible_collections.cvm.fde.plugins.module_utils.runner import Completed

AGENT = File("/usr/lib/cvm-fde/agent.pyz", b"agent", executable=True)
SERVICE = Link("/etc/systemd/system/a.service", "/usr/lib/systemd/system/a.service")
WANTED = Wanted((AGENT,), (SERVICE,))
KERNEL = Kernel("7.2", "digest", "digest")
DONE = Found(Family.DEBIAN, (), {AGENT.path: AGENT.content, SERVICE.path: SERVICE.target}, (KERNEL,), WANTED.inputs)


def test_nothing_is_done_to_a_prepared_system() -> None:
    assert plan(DONE, WANTED) == ()


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (replace(DONE, contents={**DONE.contents, AGENT.path: b"old"}), [(Action.WRITE, AGENT.path)]),
        (replace(DONE, contents={**DONE.contents, AGENT.path: None}), [(Action.WRITE, AGENT.path)]),
        (replace(DONE, contents={**DONE.contents, SERVICE.path: None}), [(Action.LINK, SERVICE.path)]),
        (replace(DONE, missing=(REQUIREMENTS[0],)), [(Action.INSTALL, "dracut")]),
        (replace(DONE, recorded_inputs=None), []),
        (replace(DONE, recorded_inputs="other"), []),
        (replace(DONE, kernels=(replace(KERNEL, initrd=None),)), []),
        (replace(DONE, kernels=(replace(KERNEL, built=None),)), []),
        (replace(DONE, kernels=(replace(KERNEL, initrd="rebuilt by somebody else"),)), []),
    ],
)
def test_each_difference_also_rebuilds_the_initrd(found: Found, expected: list[tuple[Action, str]]) -> None:
    assert plan(found, WANTED) == (*(Step(*step) for step in expected), Step(Action.BUILD, "7.2"))


def test_only_the_kernel_whose_initrd_changed_is_rebuilt() -> None:
    found = replace(DONE, kernels=(KERNEL, Kernel("7.3", "a", "b")))
    assert plan(found, WANTED) == (Step(Action.BUILD, "7.3"),)


def test_a_package_is_installed_once_however_many_files_miss() -> None:
    steps = plan(replace(DONE, missing=REQUIREMENTS), WANTED)
    names = [step.subject for step in steps if step.action is Action.INSTALL]
    assert len(names) == len(set(names))
    assert "systemd-tpm|systemd" in names


@pytest.mark.parametrize(
    ("found", "cause"),
    [
        (replace(DONE, kernels=()), "no kernel"),
        (replace(DONE, kernels=(KERNEL, replace(KERNEL, missing_modules=("dm-clone",)))), "it has no dm-clone"),
        (replace(DONE, family=None, missing=(REQUIREMENTS[0],)), "neither apt nor dnf"),
    ],
)
def test_what_cannot_be_prepared_is_said_before_anything_is_changed(found: Found, cause: str) -> None:
    with pytest.raises(FdeError, match=cause):
        plan(found, WANTED)


def test_a_system_without_package_manager_is_fine_when_nothing_is_missing() -> None:
    assert plan(replace(DONE, family=None), WANTED) == ()


class Dracut:
    """Builds an initrd as dracut does, in a system that has everything else."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.ran: list[tuple[str, ...]] = []

    def run(self, argv: Sequence[str], **_options: Any) -> Completed:
        self.ran.append(tuple(argv))
        (self.root / f"boot/initrd.img-{argv[-1]}").write_bytes(b"initrd")
        return Completed(tuple(argv), 0, b"", b"")

    def find(self, name: str) -> Optional[str]:
        return name


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for requirement in REQUIREMENTS:
        path = tmp_path / requirement.paths[0].replace("*", "any")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    modules = tmp_path / "usr/lib/modules/7.2"
    modules.mkdir(parents=True)
    lines = [f"kernel/drivers/md/{name}.ko.xz:\n" for name in MODULES[Strategy.CLONE]]
    (modules / "modules.dep").write_text("".join(lines[:2]))
    (modules / "modules.builtin").write_text("".join(line.replace(".xz:", "") for line in lines[2:]))
    (tmp_path / "boot").mkdir()
    (tmp_path / "usr/lib/os-release").write_text("ID=debian\n")
    (tmp_path / "usr/bin/apt-get").touch()
    return tmp_path


def test_a_second_run_finds_nothing_to_do(root: Path) -> None:
    runner = Dracut(root)
    system = System(root, runner)
    payload = {
        "usr/lib/cvm-fde/agent.pyz": b"agent",
        "usr/lib/dracut/modules.d/90cvm-fde/cvm-fde.rules": b"rules",
        "usr/lib/dracut/modules.d/90cvm-fde/module-setup.sh": b"script",
    }
    target = wanted(payload, system.udev_rules())
    first = plan(system.probe(target), target)
    apply_all(system, first, target)
    assert runner.ran == [("dracut", "--force", "--quiet", "--kver", "7.2")]
    assert (root / "usr/lib/udev/rules.d/56-cvm-fde.rules").read_bytes() == b"rules"
    assert (root / "usr/lib/cvm-fde/agent.pyz").stat().st_mode & 0o777 == 0o755
    assert os.readlink(root / "usr/bin/cvm-fde") == "/usr/lib/cvm-fde/agent.pyz"
    assert plan(system.probe(target), target) == ()
    (root / "boot/initrd.img-7.2").write_bytes(b"another")
    assert plan(system.probe(target), target) == (Step(Action.BUILD, "7.2"),)


def test_a_kernel_without_dm_clone_is_found(root: Path) -> None:
    (root / "usr/lib/modules/7.2/modules.builtin").write_text("kernel/drivers/md/dm-verity.ko\n")
    [kernel] = System(root, Dracut(root)).probe(WANTED).kernels
    assert kernel.missing_modules == ("dm-clone",)


def test_a_directory_that_is_no_system_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FdeError, match="not an installed system"):
        System(tmp_path, Dracut(tmp_path)).probe(WANTED)


TRIXIE = """kernel/drivers/md/dm-crypt.ko.xz: kernel/drivers/md/dm-mod.ko.xz
kernel/drivers/md/dm-integrity.ko.xz:
kernel/drivers/md/dm-verity.ko.xz:
kernel/fs/btrfs/btrfs.ko.xz:
kernel/fs/overlayfs/overlay.ko.xz:
"""


@pytest.mark.parametrize(
    ("strategy", "lacking"),
    [
        (Strategy.CLONE, ("dm-clone",)),
        (Strategy.OVERLAY, ()),
        (Strategy.COPY, ()),
        (Strategy.EPHEMERAL, ()),
    ],
)
def test_what_a_kernel_lacks_depends_on_the_strategy(strategy: Strategy, lacking: tuple[str, ...]) -> None:
    assert missing(strategy, TRIXIE) == lacking
    assert missing(strategy, TRIXIE.replace("-", "_") + "kernel/dm_clone.ko\n") == ()


@pytest.mark.parametrize(
    ("strategy", "services"),
    [
        (Strategy.CLONE, ["cvm-fde-hydrate.service"]),
        (Strategy.COPY, ["cvm-fde-hydrate.service"]),
        (Strategy.OVERLAY, ["cvm-fde-hydrate.service", "cvm-fde-masks.service"]),
        (Strategy.EPHEMERAL, []),
    ],
)
def test_a_system_is_prepared_for_one_strategy(strategy: Strategy, services: list[str]) -> None:
    target = wanted({"a/cvm-fde.rules": b""}, "/rules", strategy)
    assert [link.path.rsplit("/", 1)[-1] for link in target.links] == ["cvm-fde", *services]
    assert [file.content for file in target.files if file.path == STRATEGY_FILE] == [f"{strategy.value}\n".encode()]


def test_only_an_overlay_needs_what_makes_its_file_system(root: Path) -> None:
    (root / "usr/sbin/mkfs.btrfs").unlink()
    system = System(root, Dracut(root))
    payload = {"usr/lib/dracut/modules.d/90cvm-fde/cvm-fde.rules": b"rules"}
    for strategy, absent in ((Strategy.CLONE, 0), (Strategy.OVERLAY, 1)):
        assert len(system.probe(wanted(payload, system.udev_rules(), strategy)).missing) == absent
