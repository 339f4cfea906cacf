# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The benchmark of the verifier runs as the documentation says, with real quotes and without them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Optional

import pytest

CHECKOUT = Path(__file__).resolve().parents[3]


def run(vectors: Optional[Path], *options: str) -> str:
    environment = {**os.environ, "FDE_TEST_VECTORS": str(vectors or "/nonexistent")}
    words = [sys.executable, "-m", "tests.bench.appraisal", "--seconds", "0.02", *options]
    return subprocess.run(words, cwd=CHECKOUT, env=environment, capture_output=True, check=True, text=True).stdout


def check(found: dict[str, Any]) -> None:
    rates = [f"{name}_per_s_core" for name in ("quotes", "quotes_cold", "logs", "hosts", "hosts_cold")]
    assert all(found[name] > 0 for name in rates)
    assert found["host_cpu_ms"] == pytest.approx(1000 / found["hosts_cold_per_s_core"], abs=0.01)
    assert found["cores"] >= 1


def test_json_is_all_that_is_printed_where_it_is_asked_for() -> None:
    found = json.loads(run(None, "--json", "-"))
    check(found)
    assert found["evidence"] == "of a software TPM"
    assert found["checkquote_ratio"] is None


def test_real_quotes_are_taken_where_they_are(vectors: Path, tmp_path: Path) -> None:
    printed = run(vectors, "--json", str(tmp_path / "results.json"))
    found = json.loads((tmp_path / "results.json").read_text())
    check(found)
    assert found["evidence"] == "of real machines"
    assert "logs never seen before" in printed
