# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What of Python an initrd needs to run the agent: the modules that are imported now, and those that will be, compiled.

Modules are stored without their source (PEP 3147, "legacy" pyc beside its package): that is a third of the size, and an
initrd that normalises time stamps cannot make Python compile everything again at each boot.
"""

from __future__ import annotations

import importlib
import importlib.util
import marshal
import os
import sys
import sysconfig
import zipimport
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Iterator, Mapping, Optional

#: Where the agent stands in an initrd, as a directory that Python runs.
AGENT_DIRECTORY = "/usr/lib/cvm-fde/agent"
#: The agent's modules that it imports only when it comes to need them, by their names in its package.
_RARE = (
    *("agent.commit", "agent.dialogue", "agent.first_boot", "agent.recovery", "agent.refusals", "agent.status"),
    *("agent.upkeep", "luks2.change", "luks2.keyslots", "volume.command"),
)
#: Modules that Python itself imports so.
_LATE = ("encodings.ascii", "encodings.latin_1", "encodings.utf_16_le", "traceback", "linecache", "tokenize")
#: Imported where they exist, but only for formats that the agent does not use.
_UNUSED = ("bcrypt", "pycparser")
#: Packages of which every module goes along: they import some of their own that then say that this system cannot use
#: them, which is not an error, while one that is absent would be.
_WHOLE = ("tpm2_pytss",)


@dataclass(frozen=True)
class Closure:
    """``compiled`` maps paths in the initrd to contents; ``copied`` to files here."""

    compiled: Mapping[str, bytes]
    copied: Mapping[str, str]


def closure() -> Closure:
    """Return the closure of the modules that this process has imported, and of the late ones."""
    package = __name__.rpartition(".agent.")[0]
    for name in (*_LATE, *(f"{package}.{name}" for name in _RARE)):
        importlib.import_module(name)
    compiled, copied = {}, {os.path.realpath(sys.executable): os.path.realpath(sys.executable)}
    for name, module in sorted(sys.modules.items()):
        if name.partition(".")[0] in _UNUSED:
            continue
        destination = _destination(name, module)
        if destination is None:
            continue
        if destination.endswith(".pyc"):
            compiled[destination] = _compiled(name, module)
        else:
            copied[destination] = str(module.__file__)
    for name in _WHOLE:
        compiled.update(_rest_of(name, compiled))
    return Closure(compiled, copied)


def write(found: Closure, root: Path) -> Iterator[tuple[str, str]]:
    """Write the compiled modules below ``root`` and yield (file, path in the initrd) of what is to be copied there.

    What is to be copied are programs and shared objects, which bring libraries along; that is dracut's work.
    """
    for path, content in found.compiled.items():
        target = root / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    for path, source in found.copied.items():
        yield source, path


def _destination(name: str, module: ModuleType) -> Optional[str]:
    """Return where a module goes: the standard library stays where it is, all else goes beside the agent."""
    file: Optional[str] = getattr(module, "__file__", None)
    if not file:
        return None
    standard = sysconfig.get_path("stdlib") + "/"
    if file.endswith(".py"):
        if file.startswith(standard) and "-packages/" not in file:
            return file + "c"
        is_package = hasattr(module, "__path__")
        path = ("" if name == "__main__" else name).replace(".", "/") or "__main__"
        return f"{AGENT_DIRECTORY}/{path}{'/__init__' if is_package else ''}.pyc"
    if file.startswith(standard) and "-packages/" not in file:
        return file
    return f"{AGENT_DIRECTORY}/{'/'.join(name.split('.')[:-1] + [os.path.basename(file)])}"


def _rest_of(package: str, known: Mapping[str, bytes]) -> Iterator[tuple[str, bytes]]:
    """Yield what a package holds beside the modules that could be imported, as (path in the initrd, content)."""
    module = sys.modules.get(package)
    for directory in getattr(module, "__path__", ()):
        for file in sorted(Path(directory).glob("*.py")):
            path = f"{AGENT_DIRECTORY}/{package}/{file.name}c"
            if path not in known:
                yield path, _pyc(f"{package}.{file.stem}", importlib.util.decode_source(file.read_bytes()))


def _compiled(name: str, module: ModuleType) -> bytes:
    """Return the content of a pyc without a source; statements of the source's docstrings are left out."""
    loader = getattr(module, "__loader__", None)
    # What is frozen into Python or lies in a directory is read from its file; only a zip knows its own content.
    if isinstance(loader, zipimport.zipimporter):
        source = loader.get_source(name) or ""
    else:
        source = importlib.util.decode_source(Path(str(module.__file__)).read_bytes())
    return _pyc(name, source)


def _pyc(name: str, source: str) -> bytes:
    code = compile(source, f"{name}.py", "exec", dont_inherit=True, optimize=2)
    return importlib.util.MAGIC_NUMBER + bytes(12) + marshal.dumps(code)
