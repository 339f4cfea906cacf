# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Fuzz with coverage: ``python -m tests.fuzz [--seconds N] [--runs N] [--seed N] [--folder PATH] [NAME...]``, from the
checkout, with Atheris.

Each target runs in a process of its own for that long; what it found to be interesting stays in the folder, by default
``build/fuzz``, and so does an input that is a finding. The exit status is zero where there was none.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Optional

CHECKOUT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(CHECKOUT / "build/collections"))
#: Seconds that one input may take: all of them are bounded to kilobytes.
SLOW = 5
MEMORY = 1024


def main(arguments: Optional[Sequence[str]] = None) -> int:
    parser = argparse.ArgumentParser(prog="tests.fuzz")
    parser.add_argument("--seconds", type=int, default=60, help="how long each target runs (60; 0: for ever)")
    parser.add_argument("--runs", type=int, default=-1, help="inputs at the most, for each target (no limit)")
    parser.add_argument("--seed", type=int, default=0, help="what chance begins with (0: another one each time)")
    folder = CHECKOUT / "build/fuzz"
    parser.add_argument("--folder", type=Path, default=folder, help="where inputs and logs are kept (build/fuzz)")
    parser.add_argument("--inside", metavar="NAME", help=argparse.SUPPRESS)
    parser.add_argument("names", nargs="*", metavar="NAME", help="targets (all)")
    options = parser.parse_args(arguments)
    if options.inside:
        return _fuzz(options.inside, options)
    from .targets import TARGETS

    names = options.names or list(TARGETS)
    unknown = set(names) - set(TARGETS)
    if unknown:
        parser.error(f"no such target: {', '.join(sorted(unknown))}; there are {', '.join(TARGETS)}")
    found = [name for name in names if not _run(name, options)]
    print(f"findings: {', '.join(found) if found else 'none'}")
    return 1 if found else 0


def _run(name: str, options: argparse.Namespace) -> bool:
    """Fuzz one target in a process of its own, say how many inputs were tried, and return whether all went well."""
    folder = options.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / f"{name}.log"
    with log.open("w") as output:
        words = [sys.executable, "-m", "tests.fuzz", "--inside", name, f"--folder={folder}"]
        words += [f"--seconds={options.seconds}", f"--runs={options.runs}", f"--seed={options.seed}"]
        status = subprocess.run(words, cwd=CHECKOUT, stdout=output, stderr=output, check=False).returncode
    text = log.read_text(errors="replace")
    tried = re.findall(r"^(?:Done |#)(\d+)", text, re.MULTILINE)
    coverage = re.findall(r"cov: (\d+)", text)
    state = "ok" if status == 0 else f"FOUND SOMETHING, see {log}"
    print(
        f"{name:18} {int(tried[-1] if tried else 0):>10,} inputs  {coverage[-1] if coverage else '?':>5} edges  {state}"
    )
    sys.stdout.flush()
    return status == 0


def _fuzz(name: str, options: argparse.Namespace) -> int:
    import atheris

    with atheris.instrument_imports(include=["ansible_collections.cvm.fde.plugins"]):
        from .targets import TARGETS
    target = TARGETS[name]
    corpus = options.folder / name
    corpus.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        for number, seed in enumerate([*target.own(), *target.real()]):
            (Path(folder) / f"{number}").write_bytes(seed)
        words = [
            sys.argv[0],
            f"-max_total_time={options.seconds}",
            f"-runs={options.runs}",
            f"-seed={options.seed}",
            f"-max_len={target.limit}",
            f"-timeout={SLOW}",
        ]
        words += [f"-rss_limit_mb={MEMORY}", f"-artifact_prefix={corpus}-", "-print_final_stats=1"]
        if target.words:
            dictionary = Path(folder) / "words"
            dictionary.write_text("".join(f'"{_escaped(word)}"\n' for word in target.words))
            words.append(f"-dict={dictionary}")
        own = {"custom_mutator": lambda *change: mutate(*change, atheris.Mutate)} if (mutate := target.mutate) else {}
        atheris.Setup([*words, str(corpus), folder], target.once, **own)
        atheris.Fuzz()
    return 0


def _escaped(word: bytes) -> str:
    return "".join(f"\\x{byte:02x}" for byte in word)


if __name__ == "__main__":
    sys.exit(main())
