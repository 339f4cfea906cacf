# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs inside the guest: reports every result to the host at once."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

RESULTS = Path("/exchange/results.jsonl")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Append the result to a file of the host, on disk before the next test can hang the guest."""
    if report.when == "call" or report.outcome != "passed":
        line = {
            "id": report.nodeid,
            "when": report.when,
            "outcome": report.outcome,
            "seconds": report.duration,
            "text": report.longreprtext,
            "sections": [f"{title}\n{text}" for title, text in report.sections],
        }
        with RESULTS.open("a") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())
