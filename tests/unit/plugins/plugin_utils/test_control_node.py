# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""SQLAlchemy is imported once for all hosts where it is installed, and missed only where a ledger is used."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

COLLECTIONS = Path(__file__).resolve().parents[4] / "build/collections"
LOADED = """
import sys
sys.path.insert(0, sys.argv[1])
from ansible_collections.cvm.fde.plugins.action import attest
"""
#: What a search for SQLAlchemy comes to where it is not installed, and where it is one of another version.
MISSING = """
import sys
sys.modules["sqlalchemy"] = None
"""
OLD = """
import sys, types
sys.modules["sqlalchemy"] = types.ModuleType("sqlalchemy")
sys.modules["sqlalchemy"].__spec__ = object()
"""


def run(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", program, str(COLLECTIONS)], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_what_a_ledger_needs_is_there_before_a_process_is_made_for_each_host() -> None:
    said = run(f"{LOADED}before = set(sys.modules)\nattest.imported('recording')\nprint(set(sys.modules) - before)")
    assert said == "set()"


@pytest.mark.parametrize("installed", [MISSING, OLD], ids=["missing", "old"])
def test_whoever_uses_no_ledger_does_not_need_sqlalchemy(installed: str) -> None:
    asked = """
try:
    attest.imported("recording")
except attest.AnsibleActionFail as failure:
    print(failure.message)
"""
    assert "Install SQLAlchemy 2.0 or newer" in run(installed + LOADED + asked)
