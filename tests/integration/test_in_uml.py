# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs the tests under ``inside`` in User-mode Linux, a guest for each file, and reports each of them here.

The functions are found without importing their files, so that ``-k`` chooses what the guest runs.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

HERE = Path(__file__).parent
INSIDE = HERE / "inside"


def _uml() -> ModuleType:
    name = "fde_integration_uml"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, HERE / "uml.py")
        assert spec is not None and spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


uml = _uml()


def _functions() -> Iterator[str]:
    for path in sorted(INSIDE.rglob("test_*.py")):
        for node in ast.parse(path.read_text(), str(path)).body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                yield f"{path.relative_to(INSIDE)}::{node.name}"


class Guests:
    """One guest for each file of tests: what a test leaves behind, or breaks, stays in its file."""

    def __init__(self, chosen: Sequence[str], temporary: pytest.TempPathFactory) -> None:
        self._chosen = chosen
        self._temporary = temporary
        self._results: dict[str, list[dict[str, Any]]] = {}

    def results(self, file: str) -> list[dict[str, Any]]:
        """Return one record for each result of the file, and a last one with how its guest ended."""
        if file not in self._results:
            self._results[file] = self._run([name for name in self._chosen if name.split("::")[0] == file])
        return self._results[file]

    def _run(self, functions: Sequence[str]) -> list[dict[str, Any]]:
        exchange = self._temporary.mktemp("exchange")
        argv = ["python3", "-m", "pytest", "-v", "-rN", "--tb=no", "--import-mode=importlib"]
        # The checkout is read-only in there, so nothing may want to keep notes in it.
        argv += ["-p", "no:cacheprovider", "-p", "no:hypothesispytest"]
        argv += [f"--rootdir={uml.CHECKOUT}", f"--confcutdir={HERE}", "-c", str(uml.CHECKOUT / "pyproject.toml")]
        argv += [str(INSIDE / function) for function in functions]
        try:
            ending = uml.Guest(uml.tools_tree()).run(argv, exchange=exchange).output[-4000:]
        except uml.GuestError as error:
            ending = str(error)
        file = exchange / "results.jsonl"
        lines = file.read_text().splitlines() if file.exists() else []
        return [*map(json.loads, lines), {"id": "", "outcome": "ending", "text": ending}]


@pytest.fixture(scope="session")
def guests(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Guests:
    if why := uml.missing():
        pytest.skip(why)
    chosen = [
        item.callspec.params["function"]
        for item in request.session.items
        if isinstance(item, pytest.Function) and item.originalname == "test_inside"
    ]
    return Guests(chosen, tmp_path_factory)


@pytest.mark.parametrize("function", list(_functions()))
def test_inside(function: str, guests: Guests) -> None:
    """The function passed in the guest, with every set of its parameters."""
    name = str((INSIDE / function).relative_to(uml.CHECKOUT))
    results = guests.results(function.split("::")[0])
    mine = [result for result in results if result["id"].split("[")[0] == name]
    assert mine, f"it was never reached; the guest ended with:\n{results[-1]['text']}"
    failed = [result for result in mine if result["outcome"] == "failed"]
    report = "\n\n".join("\n".join([r["id"], r["text"], *r["sections"]]) for r in failed)
    if failed:
        pytest.fail(report, pytrace=False)
    assert any(result["outcome"] == "passed" for result in mine), f"skipped in the guest: {mine[0]['text']}"


def test_the_exit_status_of_a_command_comes_back(tmp_path: Path) -> None:
    if why := uml.missing():
        pytest.skip(why)
    outcome = uml.Guest(uml.tools_tree()).run(
        ["sh", "-c", "echo said; echo kept > /exchange/file; exit 41"], exchange=tmp_path
    )
    assert (outcome.status, outcome.output) == (41, "said\n")
    assert (tmp_path / "file").read_text() == "kept\n"


def test_a_hung_guest_is_ended(tmp_path: Path) -> None:
    if why := uml.missing():
        pytest.skip(why)
    with pytest.raises(uml.GuestError, match="said nothing for 5 s(.|\n)*before the hang"):
        uml.Guest(uml.tools_tree(), idle=5).run(["sh", "-c", "echo before the hang; exec sleep 600"], exchange=tmp_path)


def test_a_guest_that_dies_is_reported(tmp_path: Path) -> None:
    if why := uml.missing():
        pytest.skip(why)
    with pytest.raises(uml.GuestError, match="ended before its command"):
        uml.Guest(uml.tools_tree()).run(["poweroff", "-ff"], exchange=tmp_path)
