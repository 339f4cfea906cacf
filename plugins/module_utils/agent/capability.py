# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What each strategy needs of the kernel, at preparing, at sealing and at every boot."""

from __future__ import annotations

from typing import Iterable, Mapping

from ..codes import Code, refuse
from ..runner import Runner
from .configuration import Strategy

#: Where a prepared system says which strategy it was prepared for.
STRATEGY_FILE = "/usr/lib/cvm-fde/strategy"
_ENCRYPTED = ("dm-crypt", "dm-integrity", "dm-verity")
#: The kernel's modules by strategy, as ``modprobe`` names them. Debian 13 builds its kernel without dm-clone.
MODULES: Mapping[Strategy, tuple[str, ...]] = {
    Strategy.CLONE: (*_ENCRYPTED, "dm-clone"),
    Strategy.OVERLAY: (*_ENCRYPTED, "btrfs", "overlay"),
    Strategy.COPY: _ENCRYPTED,
    Strategy.EPHEMERAL: ("dm-verity", "overlay"),
}


def missing(strategy: Strategy, known: str) -> tuple[str, ...]:
    """Return the modules that a kernel lacks; ``known`` are its ``modules.dep`` and ``modules.builtin`` together."""
    names = {line.split(":")[0].rsplit("/", 1)[-1].split(".ko")[0] for line in known.splitlines()}
    names = {name.replace("_", "-") for name in names}
    return tuple(name for name in MODULES[strategy] if name not in names)


def require(runner: Runner, strategy: Strategy) -> None:
    """Load what the strategy needs. Raises ``Refusal`` with ``strategy-unsupported``."""
    names = MODULES[strategy]
    absent = [] if _loaded(runner, *names) else [name for name in names if not _loaded(runner, name)]
    if absent:
        raise refuse(Code.STRATEGY_UNSUPPORTED, f"strategy '{strategy.value}'", _sentence(absent))


def _loaded(runner: Runner, *names: str) -> bool:
    return runner.run(["modprobe", "--quiet", "--all", *names], ok=()).status == 0


def _sentence(absent: Iterable[str]) -> str:
    return f"no {', '.join(absent)}"
