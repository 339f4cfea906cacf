# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the collection says about itself is what it holds."""

from __future__ import annotations

import ast
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import yaml

CHECKOUT = Path(__file__).resolve().parents[3]
MODULES = sorted(path.stem for path in (CHECKOUT / "plugins/modules").glob("*.py"))

#: What a user of the installed collection needs; everything else is for those who change it and stays in the checkout.
SHIPPED = {
    "CHANGELOG.md",
    "FILES.json",
    "LICENSES",
    "MANIFEST.json",
    "README.md",
    "REUSE.toml",
    "changelogs",
    "docs",
    "meta",
    "playbooks",
    "plugins",
    "roles",
}


def documentation(module: str) -> dict:
    """Return the DOCUMENTATION of a module without importing it."""
    tree = ast.parse((CHECKOUT / "plugins/modules" / f"{module}.py").read_text())
    for node in tree.body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "DOCUMENTATION":
            return yaml.safe_load(ast.literal_eval(node.value))
    raise AssertionError(f"{module} has no DOCUMENTATION")


def test_the_action_group_holds_every_module_and_nothing_else() -> None:
    runtime = yaml.safe_load((CHECKOUT / "meta/runtime.yml").read_text())
    assert runtime["action_groups"]["fde"] == MODULES


@pytest.mark.parametrize("module", MODULES)
def test_a_module_takes_the_common_attributes(module: str) -> None:
    fragments = documentation(module)["extends_documentation_fragment"]
    assert "cvm.fde.attributes" in ([fragments] if isinstance(fragments, str) else fragments)


def test_every_action_plugin_has_a_module_that_documents_it() -> None:
    actions = {path.stem for path in (CHECKOUT / "plugins/action").glob("*.py")}
    assert actions <= set(MODULES)


def test_the_archive_holds_what_a_user_needs_and_nothing_else(tmp_path: Path) -> None:
    galaxy = Path(sys.executable).with_name("ansible-galaxy")
    subprocess.run(
        [galaxy, "collection", "build", "--output-path", tmp_path, CHECKOUT], check=True, stdout=subprocess.DEVNULL
    )
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        names = opened.getnames()
    assert {name.split("/")[0] for name in names} <= SHIPPED
    assert {f"plugins/modules/{module}.py" for module in MODULES} <= set(names)
    assert [name for name in names if "__pycache__" in name or "/." in name or name.endswith(".pyc")] == []
