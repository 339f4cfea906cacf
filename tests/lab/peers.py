# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Collections of others that this one is compared with, and that must be able to read what it makes."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

from .cache import cached, digest
from .process import run

#: The release of the package ``ansible`` and the collections that are taken out of it.
RELEASE, COLLECTIONS = "12.3.0", ("community/crypto", "community/general", "ansible/posix")


def peers() -> Path:
    """Return a folder with the collections, for ANSIBLE_COLLECTIONS_PATH."""

    def unpack(folder: Path) -> None:
        folder.mkdir()
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
        run([*pip, "download", "--no-deps", "--dest", folder, f"ansible=={RELEASE}"])
        (wheel,) = folder.glob("ansible-*.whl")
        with zipfile.ZipFile(wheel) as archive:
            prefixes = tuple(f"ansible_collections/{name}/" for name in COLLECTIONS)
            archive.extractall(folder, [name for name in archive.namelist() if name.startswith(prefixes)])
        wheel.unlink()

    return cached("the peers' collections", "peers", digest(RELEASE, COLLECTIONS), unpack)
