# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs a target under atheris (libFuzzer for Python), from seeds, with its modules instrumented.

A target is a file beside this one: it says which modules to instrument, what to start from, and what must hold for any
bytes. ``python -m tests.fuzz.TARGET --runs 1000000`` runs it by hand; what it finds is kept in ``--findings``, and
``--repeat FILE`` runs one finding again. The corpus grows in ``--corpus`` where one is named.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

sys.path.insert(0, str(Path(__file__).parents[2] / "build/collections"))

#: Gets bytes, a limit for their number, a seed, and libFuzzer's own mutation of bytes; returns other bytes.
Mutator = Callable[[bytes, int, int, Callable[[bytes, int], bytes]], bytes]


@dataclass(frozen=True)
class Target:
    """``load`` imports what is under test and returns the check of one input, which raises what it finds."""

    name: str
    load: Callable[[], Callable[[bytes], None]]
    seeds: Callable[[], Iterable[bytes]]
    longest: int = 64 << 10
    mutate: Optional[Mutator] = None


def run(target: Target, arguments: Sequence[str]) -> None:
    """Fuzz a target as the command line says; ends the process."""
    options = _options(target, arguments)
    import atheris

    with atheris.instrument_imports(include=["ansible_collections.cvm.fde.plugins"]):
        check = target.load()
    if options.repeat is not None:
        check(options.repeat.read_bytes())
        print(f"{options.repeat}: nothing was found")
        return
    with tempfile.TemporaryDirectory(prefix="fde-fuzz-") as directory:
        seeds = Path(directory)
        for seed in target.seeds():
            (seeds / hashlib.sha256(seed).hexdigest()[:16]).write_bytes(seed)
        options.findings.mkdir(parents=True, exist_ok=True)
        # libFuzzer adds to the first directory, and only reads the others.
        corpus = [str(options.corpus)] if options.corpus is not None else []
        flags = [
            f"-runs={options.runs}",
            f"-max_total_time={options.seconds}",
            f"-max_len={target.longest}",
            f"-artifact_prefix={options.findings}/{target.name}-",
            *(["-seed=" + str(options.seed)] if options.seed is not None else []),
            *("-timeout=20", "-print_final_stats=1", "-verbosity=1"),
        ]
        more: dict[str, Any] = {} if target.mutate is None else {"custom_mutator": _mutator(target.mutate, atheris)}
        atheris.Setup([target.name, *flags, *corpus, str(seeds)], check, **more)
        atheris.Fuzz()


def _mutator(mutate: Mutator, atheris: Any) -> Callable[[bytes, int, int], bytes]:
    return lambda content, longest, seed: mutate(content, longest, seed, atheris.Mutate)


def _options(target: Target, arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=f"python -m tests.fuzz.{target.name}", description=__doc__)
    parser.add_argument("--runs", type=int, default=100_000, help="executions; -1 for no end")
    parser.add_argument("--seconds", type=int, default=0, help="longest time; 0 for no end")
    parser.add_argument("--seed", type=int, help="make a run repeatable")
    parser.add_argument("--corpus", type=Path, help="directory in which the corpus grows")
    parser.add_argument("--findings", type=Path, default=Path("build/fuzz"), help="directory for what is found")
    parser.add_argument("--repeat", type=Path, metavar="FILE", help="check one finding instead")
    options = parser.parse_args(arguments)
    if options.corpus is not None:
        options.corpus.mkdir(parents=True, exist_ok=True)
    return options
