# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Boots a general-purpose guest with two data disks, and makes an escrow key.

Run as root: ``python3 extensions/molecule/volume/make_guest.py FOLDER NAME [SUITE]``. In the folder appear
``guests.json``, an inventory with the paths of the disks, and ``escrow.key`` with its certificate ``escrow.pem``.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from tests.lab.ansible import inventory
from tests.lab.disks import MIB, DataDisk
from tests.lab.guest import Guest, boot
from tests.lab.images import base_image
from tests.lab.volumes import escrow_certificate

DISKS = (DataDisk(192 * MIB, "virtio", 512, "DATA"), DataDisk(320 * MIB, "nvme", 4096, "LOGS"))


def main() -> None:
    folder, name = Path(sys.argv[1]), sys.argv[2]
    guest = Guest.create(name, base_image(*sys.argv[3:]), disks=DISKS)
    boot(guest)
    folder.mkdir(parents=True, exist_ok=True)
    escrow_certificate(folder)
    disks = {f"{disk.serial.lower()}_disk": disk.by_id for disk in DISKS}
    inventory(folder / "guests.json", {"guests": {name: {**guest.inventory(), **disks}}})


if __name__ == "__main__":
    main()
