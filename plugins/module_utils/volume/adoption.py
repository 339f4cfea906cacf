# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The id of a volume key that was not made here, by which systemd tells at boot that it is the same one."""

from __future__ import annotations

import os
import secrets

from ..luks2.area import HeaderArea
from ..luks2.change import draft
from ..luks2.digest import volume_key_id
from ..luks2.secret import descriptor_path, memory_file, wipe
from .machine import Machine


def adopted_key_id(machine: Machine, name: str, area: HeaderArea, key: bytearray) -> str:
    """Return the id of the volume key that ``key`` opens in a judged header. Raises ``FdeError``."""
    directory = machine.places.run
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    # cryptsetup writes the volume key to a new file only. It lies in RAM, where root alone looks, and is overwritten.
    path = directory / f"key-{secrets.token_hex(8)}"
    try:
        with draft(area, str(directory)) as copy, memory_file(key) as given:
            machine.runner.run(
                [
                    *("cryptsetup", "luksDump", "--batch-mode", "--disable-external-tokens", "--dump-volume-key"),
                    *("--volume-key-file", str(path), "--key-file", descriptor_path(given), copy.path),
                ],
                pass_fds=(given,),
            )
        volume_key = bytearray(path.read_bytes())
        try:
            return volume_key_id(volume_key, name, area.header().uuid)
        finally:
            wipe(volume_key)
    finally:
        if path.exists():
            with path.open("r+b") as file:
                file.write(bytes(os.fstat(file.fileno()).st_size))
            path.unlink()
