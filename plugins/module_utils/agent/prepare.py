# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Puts the boot agent into an installed system: packages, files, and an initrd for each of its kernels.

Probe, plan, apply: ``probe`` looks, ``plan`` is a pure function of what was found and what is wanted, ``apply`` does
one step. The system is the running one or a directory tree; paths of the system are without the tree's own path.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Mapping, Optional, Sequence, Union

from ..errors import FdeError
from ..runner import Runner
from .capability import STRATEGY_FILE, missing
from .configuration import Strategy
from .requirements import REQUIREMENTS, Family, Requirement

#: What was built from what, so that a second run knows that nothing changed.
RECORD = "/var/lib/cvm-fde/initrds.json"
_INITRDS = ("/boot/initrd.img-{}", "/boot/initramfs-{}.img", "/usr/lib/modules/{}/initrd")


@dataclass(frozen=True)
class File:
    """A file of the agent: its path in the system, its content and whether it is a program."""

    path: str
    content: bytes
    executable: bool = False


@dataclass(frozen=True)
class Link:
    """A symbolic link of the agent."""

    path: str
    target: str


@dataclass(frozen=True)
class Wanted:
    """All that a prepared system has of ours."""

    files: tuple[File, ...]
    links: tuple[Link, ...]
    strategy: Strategy = Strategy.CLONE

    @property
    def inputs(self) -> str:
        """The digest of all that goes into an initrd on our side."""
        digest = hashlib.sha256()
        for file in sorted(self.files, key=lambda one: one.path):
            digest.update(f"{file.path}\0{len(file.content)}\0".encode() + file.content)
        return digest.hexdigest()


@dataclass(frozen=True)
class Kernel:
    """A kernel of the system; ``initrd`` is the digest of its initrd, ``built`` the one recorded when we built it."""

    version: str
    initrd: Optional[str]
    built: Optional[str]
    missing_modules: tuple[str, ...] = ()


@dataclass(frozen=True)
class Found:
    """What the system has now. ``contents`` are of the wanted paths: bytes of a file, target of a link, or None."""

    family: Optional[Family]
    missing: tuple[Requirement, ...]
    contents: Mapping[str, Union[bytes, str, None]]
    kernels: tuple[Kernel, ...]
    recorded_inputs: Optional[str]


class Action(str, Enum):
    """The kinds of steps."""

    INSTALL = "install"
    WRITE = "write"
    LINK = "link"
    BUILD = "build"


@dataclass(frozen=True)
class Step:
    """One step: what is done to which package, path or kernel."""

    action: Action
    subject: str


#: The agent, and the short command for it: ``cvm-fde commit``.
AGENT, COMMAND = "/usr/lib/cvm-fde/agent.pyz", "/usr/bin/cvm-fde"
#: What a running system does for its root, and for which strategies.
_SERVICES = {
    "cvm-fde-hydrate.service": (Strategy.CLONE, Strategy.COPY, Strategy.OVERLAY),
    "cvm-fde-masks.service": (Strategy.OVERLAY,),
}
_EXECUTABLE = (".pyz", ".sh")


def wanted(payload: Mapping[str, bytes], udev_rules: str, strategy: Strategy = Strategy.CLONE) -> Wanted:
    """Return what is wanted of a system, from the files of the payload by their paths."""
    files = [File(f"/{path}", content, path.endswith(_EXECUTABLE)) for path, content in sorted(payload.items())]
    rules = next(file.content for file in files if file.path.endswith("/cvm-fde.rules"))
    links = tuple(
        Link(f"/etc/systemd/system/multi-user.target.wants/{name}", f"/usr/lib/systemd/system/{name}")
        for name, strategies in _SERVICES.items()
        if strategy in strategies
    )
    links = (Link(COMMAND, AGENT), *links)
    chosen = File(STRATEGY_FILE, f"{strategy.value}\n".encode())
    return Wanted((*files, File(udev_rules, rules), chosen), links, strategy)


def plan(found: Found, target: Wanted) -> tuple[Step, ...]:
    """Return the steps from ``found`` to what is wanted. Raises ``FdeError`` where there is no way."""
    if not found.kernels:
        raise FdeError("the system", "it has no kernel", "Install a kernel package first")
    for kernel in found.kernels:
        if kernel.missing_modules:
            raise FdeError(
                f"kernel {kernel.version}",
                f"it has no {', '.join(kernel.missing_modules)}, which the strategy '{target.strategy.value}' needs",
                "Choose another strategy, or a kernel that has it: dm-clone is in Debian 14, Ubuntu 24.04 and Fedora",
            )
    steps = [Step(Action.INSTALL, name) for name in _packages(found)]
    steps += [Step(Action.WRITE, file.path) for file in target.files if found.contents[file.path] != file.content]
    steps += [Step(Action.LINK, link.path) for link in target.links if found.contents[link.path] != link.target]
    changed = bool(steps) or found.recorded_inputs != target.inputs
    for kernel in found.kernels:
        if changed or kernel.initrd is None or kernel.initrd != kernel.built:
            steps.append(Step(Action.BUILD, kernel.version))
    return tuple(steps)


def _packages(found: Found) -> tuple[str, ...]:
    """Return the packages to install; alternatives are joined by "|"."""
    if not found.missing:
        return ()
    if found.family is None:
        raise FdeError(
            "the system",
            f"it lacks {found.missing[0].paths[0]}, and it has neither apt nor dnf",
            "Install what is missing by its own means",
        )
    return tuple(dict.fromkeys("|".join(one.packages[found.family]) for one in found.missing))


class System:
    """An installed system below ``root``; programs are run in it by ``runner``."""

    def __init__(self, root: Path, runner: Runner) -> None:
        self._root = root
        self._runner = runner

    def probe(self, target: Wanted) -> Found:
        """Look at what there is; changes nothing. Raises ``FdeError`` when ``root`` is no system."""
        if not self._at("/usr/lib/os-release").exists() and not self._at("/etc/os-release").exists():
            raise FdeError(str(self._root), "it is not an installed system", "Give the root of a system as 'root'")
        record = self._record()
        contents: dict[str, Union[bytes, str, None]] = {file.path: self._content(file) for file in target.files}
        contents.update({link.path: self._target(link) for link in target.links})
        needed = (one for one in REQUIREMENTS if one.strategy in (None, target.strategy))
        absent = tuple(one for one in needed if not any(self._matches(path) for path in one.paths))
        kernels = tuple(self._kernel(version, record, target.strategy) for version in self._kernel_versions())
        return Found(self._family(), absent, contents, kernels, record.get("inputs"))

    def apply(self, step: Step, target: Wanted) -> None:
        """Do one step. Raises ``FdeError``."""
        if step.action is Action.INSTALL:
            self._install(step.subject.split("|"))
        elif step.action is Action.WRITE:
            self._write(next(file for file in target.files if file.path == step.subject))
        elif step.action is Action.LINK:
            self._link(next(link for link in target.links if link.path == step.subject))
        else:
            self._build(step.subject)

    def record(self, target: Wanted) -> None:
        """Remember what the initrds were built from, and what they are."""
        built = {version: self._digest(path) for version in self._kernel_versions() if (path := self._initrd(version))}
        content = json.dumps({"inputs": target.inputs, "initrds": built}, indent=2, sort_keys=True) + "\n"
        self._write(File(RECORD, content.encode()))

    def udev_rules(self) -> str:
        """Return where udev rules go that follow device-mapper's own and precede those that probe the device."""
        number = 56 if self._at("/usr/lib/udev/rules.d/55-dm.rules").exists() else 12
        # Before the package is there, the family tells.
        if self._family() is Family.DEBIAN:
            number = 56
        return f"/usr/lib/udev/rules.d/{number}-cvm-fde.rules"

    def _at(self, path: str) -> Path:
        return self._root / path.lstrip("/")

    def _matches(self, pattern: str) -> bool:
        return any(True for _path in self._root.glob(pattern))

    def _family(self) -> Optional[Family]:
        if self._at("/usr/bin/apt-get").exists():
            return Family.DEBIAN
        return Family.REDHAT if self._at("/usr/bin/dnf").exists() else None

    def _content(self, file: File) -> Optional[bytes]:
        path = self._at(file.path)
        if not path.is_file() or path.is_symlink() or bool(path.stat().st_mode & 0o100) != file.executable:
            return None
        return path.read_bytes()

    def _target(self, link: Link) -> Optional[str]:
        path = self._at(link.path)
        return os.readlink(path) if path.is_symlink() else None

    def _kernel_versions(self) -> tuple[str, ...]:
        directory = self._at("/usr/lib/modules")
        return tuple(sorted(one.parent.name for one in directory.glob("*/modules.dep")))

    def _kernel(self, version: str, record: Mapping[str, object], strategy: Strategy) -> Kernel:
        initrd = self._initrd(version)
        built = record.get("initrds")
        digest = built.get(version) if isinstance(built, dict) else None
        directory = self._at("/usr/lib/modules") / version
        known = "".join((directory / name).read_text() for name in ("modules.dep", "modules.builtin"))
        return Kernel(version, self._digest(initrd) if initrd else None, digest, missing(strategy, known))

    def _initrd(self, version: str) -> Optional[Path]:
        paths = (self._at(pattern.format(version)) for pattern in _INITRDS)
        return next((path for path in paths if path.exists()), None)

    @staticmethod
    def _digest(path: Path) -> str:
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
        return digest.hexdigest()

    def _record(self) -> dict[str, Optional[str]]:
        try:
            content = json.loads(self._at(RECORD).read_text())
        except (OSError, ValueError):
            return {}
        return content if isinstance(content, dict) else {}

    def _install(self, names: Sequence[str]) -> None:
        if self._family() is Family.REDHAT:
            self._runner.run(["dnf", "--assumeyes", "--setopt=install_weak_deps=False", "install", names[0]])
            return
        env = {"DEBIAN_FRONTEND": "noninteractive"}
        self._runner.run(["apt-get", "update"], env=env)
        for name in names:
            install = ["apt-get", "--yes", "--no-install-recommends", "install", name]
            if self._runner.run([*install, "--simulate"], env=env, ok=()).status == 0:
                self._runner.run(install, env=env)
                return
        raise FdeError(
            " or ".join(names), "the distribution has no such package", "Check the package sources of the system"
        )

    def _write(self, file: File) -> None:
        path = self._at(file.path)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.new")
        temporary.write_bytes(file.content)
        temporary.chmod(0o755 if file.executable else 0o644)
        temporary.replace(path)

    def _link(self, link: Link) -> None:
        path = self._at(link.path)
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_symlink() or path.exists():
            path.unlink()
        path.symlink_to(link.target)

    def _build(self, version: str) -> None:
        self._runner.run(["dracut", "--force", "--quiet", "--kver", version])


def apply_all(system: System, steps: Sequence[Step], target: Wanted) -> None:
    """Do all steps and remember the result, so that the next run finds nothing to do."""
    for step in steps:
        system.apply(step, target)
    system.record(target)
