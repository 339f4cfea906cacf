# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Makes the sealed image of this checkout, boots two new guests from it, and writes down how to reach and judge them.

Run as root: ``python3 extensions/molecule/default/guests.py FOLDER NAME...``. In the folder appear ``guests.json``, an
inventory, and ``variables.json``, what the playbook ``attest`` must know about them.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from tests.lab.ansible import inventory
from tests.lab.guest import Guest, boot, together
from tests.lab.sealed import sealed_image


def main() -> None:
    folder = Path(sys.argv[1])
    sealed = sealed_image()
    guests = [Guest.create(name, sealed.image) for name in sys.argv[2:]]
    together(boot, guests)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "variables.json").write_text(json.dumps(sealed.variables()))
    inventory(folder / "guests.json", {"guests": {guest.name: guest.inventory() for guest in guests}})


if __name__ == "__main__":
    main()
