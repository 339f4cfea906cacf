# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where the files of a data volume are, below one root so that nothing else names them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

AGENT = "/usr/lib/cvm-fde/agent.pyz"


@dataclass(frozen=True)
class Places:
    """``root`` is the root of the file system; only the places of files follow it, never what is written into them."""

    root: Path = Path("/")

    def pin(self, name: str) -> Path:
        """The file that says which header the volume has; it must lie where only this system writes."""
        return self.root / f"etc/cvm-fde/volumes/{name}.json"

    def saved(self, name: str) -> Path:
        """The new header, while it is being written to the disk. Beside the pin: /var may lie on the volume itself."""
        return self.root / f"etc/cvm-fde/volumes/{name}.header"

    def replaced(self, name: str) -> Path:
        """The old header, as long as ``saved`` is there: what is torn must be made of the two."""
        return self.root / f"etc/cvm-fde/volumes/{name}.header.old"

    def envelope(self, name: str) -> Path:
        """The recovery key's envelope until the control node has it; nobody on this system can open it."""
        return self.root / f"etc/cvm-fde/volumes/{name}.cms"

    @property
    def run(self) -> Path:
        """A directory in RAM."""
        return self.root / "run/cvm-fde/volumes"

    def header(self, name: str) -> Path:
        """The copy of the header, in RAM, that the volume is opened from."""
        return self.run / f"{name}.header"

    @property
    def crypttab(self) -> Path:
        return self.root / "etc/crypttab"

    @property
    def fstab(self) -> Path:
        return self.root / "etc/fstab"

    @property
    def units(self) -> Path:
        return self.root / "etc/systemd/system"

    @property
    def agent(self) -> Path:
        return self.root / AGENT[1:]
