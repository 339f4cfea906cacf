# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How fast the image's root gets into the encrypted volume, beside systemd-clonesetup with its defaults, in one guest.

As root, after ``make setup``, from the checkout::

    python -m tests.bench.hydration         # results also go to build/bench/hydration.json

Both clones have the same source, a part of the image's root partition, and volumes of the same kind (authenticated,
with a journal) on disks of the same kind; one is measured after the other. The rate is that of regions that became
hydrated, after what is copied at the start.
"""

from __future__ import annotations

import json
import sys

from tests.bench.boot import BUILD, host
from tests.lab.disks import GIB, DataDisk
from tests.lab.guest import Guest, boot
from tests.lab.sealed import sealed_image

INSIDE = __file__.replace(".py", "_inside.py")
RESULTS = BUILD / "bench/hydration.json"
DISKS = (DataDisk(2 * GIB, serial="bench-1"), DataDisk(2 * GIB, serial="bench-2"))
#: How many times faster the root's hydration is to be.
BUDGET = 5


def main() -> int:
    guest = Guest.create("bench-hydration", sealed_image().image, disks=DISKS)
    try:
        boot(guest)
        # The guest's own root first, or both would compete with it.
        guest.ssh('while test -n "$(dmsetup status --target clone)"; do sleep 2; done', timeout=1800)
        with open(INSIDE, "rb") as file:
            command = f"python3 - {' '.join(disk.by_id for disk in DISKS)}"
            found = json.loads(guest.ssh(command, stdin=file.read(), timeout=1800).stdout)
    finally:
        guest.delete()
    ratio = round(found["cvm.fde"]["mb_per_second"] / found["systemd-clonesetup"]["mb_per_second"], 1)
    result = {"host": host(), **found, "ratio": ratio, "budget": BUDGET}
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=1))
    print(json.dumps(result, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
