# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the collection says about itself is what it holds."""

from __future__ import annotations

import ast
import importlib
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import yaml
from ansible_collections.cvm.fde.plugins.action.attest import _SOURCES as SOURCES
from ansible_collections.cvm.fde.plugins.modules import attest_round

CHECKOUT = Path(__file__).resolve().parents[3]
PLUGINS = "ansible_collections.cvm.fde.plugins"
ACTIONS = sorted(path.stem for path in (CHECKOUT / "plugins/action").glob("*.py"))
MODULES = sorted(path.stem for path in (CHECKOUT / "plugins/modules").glob("*.py"))

#: Options that an action plugin gives to its module, and does not take.
GIVEN = {"image_prepare": ("payload",), "luks2_volume": ("agent", "host", "certificates", "escrowed")}

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
    assert set(ACTIONS) <= set(MODULES)


def test_an_action_plugin_takes_what_its_module_documents() -> None:
    """ansible-test compares the arguments of modules only."""
    described = documented(ACTIONS)
    for name in ACTIONS:
        plugin = importlib.import_module(f"{PLUGINS}.action.{name}")
        arguments = plugin.OPTIONS if name == "luks2_volume" else plugin.ARGUMENTS
        if name in ("attest", "enrol"):
            # What is left out is left to the module that answers.
            arguments = {**arguments, **{source: attest_round.ARGUMENTS[source] for source in SOURCES}}
        options = {option: one for option, one in described[name].items() if option not in GIVEN.get(name, ())}
        assert options == {option: _comparable(spec, "options") for option, spec in arguments.items()}, name


def documented(modules: list[str]) -> dict[str, dict[str, object]]:
    """Return the options of modules, with those of their documentation fragments, as far as arguments have the like."""
    program = Path(sys.executable).with_name("ansible-doc")
    asked = subprocess.run(
        [program, "--json", *(f"cvm.fde.{module}" for module in modules)],
        check=True,
        stdout=subprocess.PIPE,
    )
    found = {name.rpartition(".")[2]: one["doc"]["options"] for name, one in json.loads(asked.stdout).items()}
    return {
        module: {option: _comparable(described, "suboptions") for option, described in options.items()}
        for module, options in found.items()
    }


def _comparable(option: dict, inner: str) -> dict[str, object]:
    kept = {
        "type": option.get("type", "str"),
        **{name: option.get(name) for name in ("elements", "choices", "default")},
    }
    nested = {name: _comparable(one, inner) for name, one in (option.get(inner) or {}).items()}
    return {**kept, "required": option.get("required", False), "nested": nested}


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
