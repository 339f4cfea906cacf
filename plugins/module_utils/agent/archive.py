# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The agent as one file: a zipapp of the core (PEP 441) that is the same, byte for byte, wherever it is built."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Iterator, Mapping

PACKAGE = "cvm_fde"
#: The parts of the core that the agent imports.
PARTS = ("agent", "disk", "dm", "escrow", "luks2", "tpm", "volume")
FILES = ("codes.py", "errors.py", "runner.py")
_MAIN = f"""\
import sys

from {PACKAGE}.agent.entry import main

sys.exit(main())
"""
#: The earliest time a zip can hold; the content alone decides about the bytes.
_TIME = (1980, 1, 1, 0, 0, 0)


def build(core: Path) -> bytes:
    """Return the zipapp of the core in the directory ``core`` (``plugins/module_utils``)."""
    return b"#!/usr/bin/python3 -I\n" + pack({"__main__.py": _MAIN.encode(), **dict(_modules(core))})


def pack(files: Mapping[str, bytes]) -> bytes:
    """Return a zip of ``files`` by name; the same files give the same bytes."""
    buffer = io.BytesIO()
    # Stored, not compressed: the compressor's version would show in the bytes, and package and initrd compress anyway.
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, content in sorted(files.items()):
            entry = zipfile.ZipInfo(name, _TIME)
            entry.external_attr = 0o100644 << 16
            entry.create_system = 3
            archive.writestr(entry, content)
    return buffer.getvalue()


def unpack(content: bytes) -> dict[str, bytes]:
    """Return the files of a zip that ``pack`` made."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def _modules(core: Path) -> Iterator[tuple[str, bytes]]:
    yield f"{PACKAGE}/__init__.py", b""
    for name in FILES:
        yield f"{PACKAGE}/{name}", (core / name).read_bytes()
    for part in PARTS:
        # A zip has no namespace packages, so a package without an __init__ gets an empty one.
        yield f"{PACKAGE}/{part}/__init__.py", b""
        for file in sorted((core / part).glob("*.py")):
            yield f"{PACKAGE}/{part}/{file.name}", file.read_bytes()
