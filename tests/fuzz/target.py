# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is fuzzed: a function over bytes, the errors by which it may refuse them, and inputs to begin with."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable, Iterable, Optional

from ansible_collections.cvm.fde.tests.vectors import VECTORS

#: Changes bytes: gets them, a limit for their number, a seed, and libFuzzer's own change of bytes.
Mutator = Callable[[bytes, int, int, Callable[[bytes, int], bytes]], bytes]

SEEDS = Path(__file__).parent / "seeds"


@dataclass(frozen=True)
class Target:
    """``run`` returns for good bytes and raises one of ``refusals`` for all others; anything else is a finding."""

    name: str
    run: Callable[[bytes], object]
    refusals: tuple[type[BaseException], ...]
    #: Folders of ``SEEDS``.
    seeds: tuple[str, ...] = ()
    #: Globs below ``VECTORS``.
    vectors: tuple[str, ...] = ()
    #: Longer inputs are not tried.
    limit: int = 16384
    #: Whether every seed of the project's own is good.
    strict: bool = True
    words: tuple[bytes, ...] = field(default=())
    #: Makes seeds that are no files of their own.
    made: Optional[Callable[[], Iterable[bytes]]] = None
    #: How an input is changed where changes of single bytes lead nowhere.
    mutate: Optional[Mutator] = None

    def own(self) -> list[bytes]:
        """Return the project's own inputs."""
        files = [path for name in self.seeds for path in sorted((SEEDS / name).iterdir())]
        return [*(path.read_bytes() for path in files), *(self.made() if self.made is not None else ())]

    def real(self) -> list[bytes]:
        """Return the real ones. Raises ``LookupError`` where there are some, and a glob finds none of them."""
        if not VECTORS.is_dir():
            return []
        found = {pattern: sorted(VECTORS.glob(pattern)) for pattern in self.vectors}
        missed = [pattern for pattern, paths in found.items() if not paths]
        if missed:
            raise LookupError(f"no real input of {self.name} is called {', '.join(missed)} in {VECTORS}")
        return [path.read_bytes()[: self.limit] for paths in found.values() for path in paths]

    def once(self, data: bytes) -> None:
        """Run it once, as the fuzzer does."""
        with contextlib.suppress(*self.refusals):
            self.run(data)
