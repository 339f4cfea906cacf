# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A TPM in software whose power is switched on and taken away; what it keeps lies in a folder."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path
from typing import Optional


class SoftwareTpm:
    """The TPM with the state in ``folder``; programs reach it by ``tcti`` while it has power."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._socket, self._ready = folder, folder / "tpm.sock", folder / "tpm.pid"
        self._process: Optional[subprocess.Popen[bytes]] = None
        self.tcti = f"swtpm:path={self._socket}"

    def on(self) -> None:
        """Switch the power on, after it was taken away where it was on. Raises ``RuntimeError``."""
        self.off()
        self._process = subprocess.Popen(
            ["swtpm", "socket", "--tpm2", "--tpmstate", f"dir={self._folder}"]
            + ["--flags", "not-need-init,startup-clear", "--pid", f"file={self._ready}"]
            + ["--server", f"type=unixio,path={self._socket}", "--ctrl", f"type=unixio,path={self._socket}.ctrl"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for _attempt in range(3000):
            # Its sockets exist before anyone listens there; the file with its process id comes after both.
            if self._ready.exists() and self._ready.read_text().strip():
                return
            time.sleep(0.01)
        raise RuntimeError("swtpm did not start")

    def off(self) -> None:
        """Take the power away."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
        for path in (self._socket, Path(f"{self._socket}.ctrl"), self._ready):
            path.unlink(missing_ok=True)
