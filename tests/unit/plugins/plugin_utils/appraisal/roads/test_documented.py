# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The page about the roads names what the roads say, no more and no less."""

from __future__ import annotations

import ast
from pathlib import Path

from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.roads.trust import RoadName

CHECKOUT = Path(__file__).resolve().parents[6]
APPRAISAL = CHECKOUT / "plugins" / "plugin_utils" / "appraisal"
PAGE = CHECKOUT / "docs" / "roads-to-trust.md"
OURS = [*(APPRAISAL / "roads").glob("*.py"), *(APPRAISAL / "hardware").glob("*.py"), APPRAISAL / "cbor.py"]


def codes(name: str, files: list[Path]) -> set[str]:
    """Return the first arguments of all calls of ``name`` that are written out."""
    calls = (node for file in files for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call))
    return {
        call.args[0].value
        for call in calls
        if isinstance(call.func, ast.Name) and call.func.id == name and isinstance(call.args[0], ast.Constant)
    }


def first_column(header: str) -> list[str]:
    """Return the first column of the table whose header begins so."""
    lines = PAGE.read_text().splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith(header)) + 2
    return [line.split("|")[1].strip().strip("`") for line in lines[start : lines.index("", start)]]


def test_every_road_is_described() -> None:
    assert sorted(first_column("| road |")) == sorted(road.value for road in RoadName)


def test_every_reason_for_a_refusal_is_described() -> None:
    described = first_column("| code | what was found |")
    assert described == sorted(set(described))
    raised = codes("AppraisalError", [*OURS, APPRAISAL / "endorsement.py", APPRAISAL / "quote.py"])
    # Whoever calls for a signature to be verified does not say this code itself.
    assert set(described) == raised | {"bad-signature"}


def test_every_remark_is_described() -> None:
    described = set(first_column("| code | what it means |")) | set(first_column("| warning | what it means |"))
    assert described == codes("Remark", OURS)
