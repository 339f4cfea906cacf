# SPDX-License-Identifier: GPL-3.0-or-later
"""The agent as one file: the same bytes everywhere, runnable alone, and small once it is in an initrd."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import ansible_collections.cvm.fde.plugins.module_utils.agent as agent
import pytest
from ansible_collections.cvm.fde.plugins.module_utils.agent import archive

CORE = Path(str(agent.__file__)).resolve().parents[1]
#: Bytes of compiled modules in an initrd, before it is compressed: for our own a fifth more than they are with Python
#: 3.14, for all a tenth more, which is less than asyncio alone would add. Python 3.11 differs from that by a twentieth.
OURS_MAXIMUM, ALL_MAXIMUM = 910_000, 5_000_000


def imported(source: Path) -> Iterator[Path]:
    """Yield the modules of the core that a module of it imports, be it at its beginning or in a function."""
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            package = source.parents[node.level - 1]
            place = package.joinpath(*(node.module or "").split("."))
            named = [place / f"{alias.name}.py" for alias in node.names]
            yield from (one for one in (place.with_suffix(".py"), *named) if one.is_file())


@pytest.fixture(scope="module")
def zipapp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("agent") / "agent.pyz"
    path.write_bytes(archive.build(CORE))
    return path


def run(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(argv, capture_output=True, text=True, check=False, env={"PATH": os.environ["PATH"]})


def test_the_same_core_gives_the_same_bytes_whatever_its_time_stamps(tmp_path: Path) -> None:
    shutil.copytree(CORE, tmp_path / "core", copy_function=shutil.copy, ignore=shutil.ignore_patterns("__pycache__"))
    assert archive.build(tmp_path / "core") == archive.build(CORE)


def test_what_is_packed_is_unpacked() -> None:
    files = {"usr/a": b"a", "usr/lib/b": bytes(range(256))}
    assert archive.unpack(archive.pack(files)) == files


def test_the_agent_runs_without_the_collection(zipapp: Path) -> None:
    pytest.importorskip("tpm2_pytss")
    done = run(sys.executable, "-I", str(zipapp), "--help")
    assert done.returncode == 0, done.stderr
    assert "hydrate" in done.stdout


def test_the_tree_of_an_initrd_holds_the_agent_compiled_and_nothing_of_ansible(zipapp: Path, tmp_path: Path) -> None:
    pytest.importorskip("tpm2_pytss")
    done = run(sys.executable, "-I", str(zipapp), "initrd", str(tmp_path))
    assert done.returncode == 0, done.stderr
    directory = tmp_path / "usr/lib/cvm-fde/agent"
    assert (directory / "__main__.pyc").is_file()
    assert (directory / "cvm_fde/agent/boot.pyc").is_file()
    for compiled in (directory / "cvm_fde").rglob("*.pyc"):
        source = CORE / compiled.relative_to(directory / "cvm_fde").with_suffix(".py")
        for module in imported(source) if source.exists() else ():
            assert (directory / "cvm_fde" / module.relative_to(CORE)).with_suffix(".pyc").is_file(), source
    assert not list(tmp_path.rglob("*.py")) and not list(tmp_path.rglob("*ansible*"))
    copied = [line.split("\t") for line in done.stdout.splitlines()]
    assert all(Path(source).is_file() for source, _target in copied)
    # Put beside the compiled modules, as dracut does, the shared objects make it run by itself.
    for source, target in copied:
        if target.startswith("/usr/lib/cvm-fde/"):
            shutil.copy(source, tmp_path / target.lstrip("/"))
    alone = run(sys.executable, "-I", "-S", "-B", str(directory), "--help")
    assert alone.returncode == 0, alone.stderr


def test_the_modules_of_the_agent_and_all_that_they_import_stay_as_small_as_they_are(
    zipapp: Path, tmp_path: Path
) -> None:
    """Shared objects are not counted: their size is the distribution's. The whole initrd: docs/benchmarks.md."""
    pytest.importorskip("tpm2_pytss")
    done = run(sys.executable, "-I", str(zipapp), "initrd", str(tmp_path))
    assert done.returncode == 0, done.stderr
    sizes = {path: path.stat().st_size for path in tmp_path.rglob("*.pyc")}
    ours = tmp_path / "usr/lib/cvm-fde/agent/cvm_fde"
    assert OURS_MAXIMUM / 2 < sum(size for path, size in sizes.items() if ours in path.parents) < OURS_MAXIMUM
    assert ALL_MAXIMUM / 2 < sum(sizes.values()) < ALL_MAXIMUM, "what does the agent import that it did not?"
