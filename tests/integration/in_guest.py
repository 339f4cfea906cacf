# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests that run inside a User-mode Linux guest, one guest for each file, and are reported outside of it.

The functions are found without importing their files, so that ``-k`` chooses what the guest runs.
"""

from __future__ import annotations

import ast
import itertools
import json
import os
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ansible
import pytest

from . import uml

#: What modules import of Ansible; a real target is sent it with the module.
ANSIBLE = Path(ansible.__file__).resolve().parent


def functions(directory: Path) -> Iterator[str]:
    """Yield the tests in the files of a directory, as ``FILE::FUNCTION``."""
    for path in sorted(directory.rglob("test_*.py")):
        for node in ast.parse(path.read_text(), str(path)).body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                yield f"{path.relative_to(directory)}::{node.name}"


def chosen(request: pytest.FixtureRequest, test: str) -> list[str]:
    """Return the functions that this run of pytest asks for: the parameters of the test of that name."""
    return [
        item.callspec.params["function"]
        for item in request.session.items
        if isinstance(item, pytest.Function) and item.originalname == test
    ]


def _scarcest(exchange: Path) -> str:
    """Say in which test the guest had the least memory left."""
    file = exchange / "memory.jsonl"
    # The last line is cut short where the guest died.
    lines = [line for line in file.read_text().splitlines() if line.endswith("}")] if file.exists() else []
    least = min(map(json.loads, lines), key=lambda one: int(one["MemAvailable"]), default=None)
    return f"the least memory, in MiB: {least}" if least else "how much memory it had is not known"


def _function(test: str) -> str:
    """Return the name of a test without its parameters."""
    return test.partition("[")[0]


class Guests:
    """One guest for each file of tests: what a test leaves behind, or breaks, stays in its file.

    A guest has one processor and 2 GiB: two run at once where the machine has two. Leaving the context starts no more.
    """

    def __init__(self, directory: Path, chosen: Sequence[str], temporary: pytest.TempPathFactory) -> None:
        self._directory = directory
        self._pool = ThreadPoolExecutor(max_workers=min(2, os.cpu_count() or 1))
        self._results = {
            file: self._pool.submit(self._run, list(names), temporary.mktemp("exchange"))
            for file, names in itertools.groupby(chosen, lambda name: name.split("::")[0])
        }

    def __enter__(self) -> Guests:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def results(self, file: str) -> list[dict[str, Any]]:
        """Return one record for each result of the file, and a last one: the tests it has, and how its guest ended."""
        return self._results[file].result()

    def _run(self, functions: Sequence[str], directory: Path) -> list[dict[str, Any]]:
        """Run the functions, and once more where the guest fell silent before any of them failed."""
        results: list[dict[str, Any]] = []
        for name in ("first", "second"):
            exchange = directory / name
            exchange.mkdir()
            silence = results[-1]["text"] if results else ""
            silent, results = self._attempt(functions, exchange)
            results[-1]["silence"] = silence
            if not silent or any(result["outcome"] == "failed" for result in results):
                break
        return results

    def _attempt(self, functions: Sequence[str], exchange: Path) -> tuple[bool, list[dict[str, Any]]]:
        """Run the functions in a guest; return whether it went silent, and the results as ``results`` does."""
        argv = ["python3", "-m", "pytest", "-v", "-rN", "--tb=no", "--import-mode=importlib"]
        # The checkout is read-only in there, so nothing may want to keep notes in it.
        argv += ["-p", "no:cacheprovider", "-p", "no:hypothesispytest"]
        argv += [
            f"--rootdir={uml.CHECKOUT}",
            f"--confcutdir={self._directory.parent}",
            "-c",
            str(uml.CHECKOUT / "pyproject.toml"),
        ]
        argv += [str(self._directory / function) for function in functions]
        # A test of many runs of a module says nothing for minutes.
        guest = uml.Guest(uml.tools_tree(), shares={ANSIBLE: False}, idle=420, limit=3 * 3600)
        silent = False
        try:
            outcome = guest.run(argv, exchange=exchange, env={"FDE_ANSIBLE": str(ANSIBLE)})
            ending = f"status {outcome.status}:\n{outcome.output[-4000:]}\n--- console\n{outcome.console[-4000:]}"
        except uml.GuestError as error:
            silent = isinstance(error, uml.Silent)
            ending = str(error)
        stuck = exchange / "stuck"
        ending += f"\n--- {stuck.read_text()}" if stuck.exists() else ""
        ending += f"\n--- {_scarcest(exchange)}"
        file = exchange / "results.jsonl"
        lines = file.read_text().splitlines() if file.exists() else []
        collected = exchange / "collected.json"
        tests = json.loads(collected.read_text()) if collected.exists() else []
        return silent, [*map(json.loads, lines), {"id": "", "outcome": "ending", "text": ending, "collected": tests}]

    def check(self, function: str) -> None:
        """Fail unless the function passed in its guest, with every set of its parameters."""
        name = str((self._directory / function).relative_to(uml.CHECKOUT))
        *results, ending = self.results(function.split("::")[0])
        if ending["silence"]:
            warnings.warn(f"the guest fell silent and was started again: {ending['silence']}", stacklevel=1)
        mine = [result for result in results if _function(result["id"]) == name]
        failed = [result for result in mine if result["outcome"] == "failed"]
        report = "\n\n".join("\n".join([r["id"], r["text"], *r["sections"]]) for r in failed)
        if failed:
            pytest.fail(report, pytrace=False)
        wanted = {test for test in ending["collected"] if _function(test) == name}
        unheard = sorted(wanted - {result["id"] for result in mine})
        if unheard or not wanted:
            pytest.fail(f"never reached: {unheard or name}; the guest ended with:\n{ending['text']}", pytrace=False)
        skipped = [f"{result['id']}: {result['text']}" for result in mine if result["outcome"] == "skipped"]
        assert not skipped, "skipped in the guest: " + "\n".join(skipped)
