# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How fast the root gets into the encrypted volume, beside systemd-clonesetup with its defaults, in one guest.

As root, after ``make setup``, from the checkout::

    python -m tests.bench.hydration --guest uml     # User-mode Linux; disks in memory, and such with latency
    python -m tests.bench.hydration --guest qemu    # the lab's guest

Both clones have the same source (in the lab's guest a part of the image's root), and volumes of the same kind
(authenticated, with a journal) on disks of the same kind; one is measured after the other. The rate is that of regions
that became hydrated, after what is copied at the start.

A disk in memory answers at once. Those with latency are the kernel's simulated SCSI disks (scsi_debug): in memory too,
but each request ends a millisecond after it came, however many there are at once.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from tests.bench.boot import RESULTS, host, in_uml
from tests.lab.disks import GIB, DataDisk
from tests.lab.guest import Guest, boot
from tests.lab.sealed import sealed_image
from tests.lab.upkeep import settle

INSIDE = __file__.replace(".py", "_inside.py")
DISKS = (DataDisk(2 * GIB, serial="bench-1"), DataDisk(2 * GIB, serial="bench-2"))
#: How many times faster the root's hydration is to be.
BUDGET = 5


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.bench.hydration", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--guest", choices=("uml", "qemu"), default="uml")
    options = parser.parse_args()
    result: dict[str, Any] = {"guest": options.guest, "host": host(), "budget": BUDGET}
    if options.guest == "uml":
        disks = {"in memory": lambda: in_uml(INSIDE, "--memory"), "with latency": lambda: in_uml(INSIDE, "--latency")}
    else:
        disks = {"virtio": _in_qemu}
    for name, measure in disks.items():
        found = measure()
        ratio = round(found["cvm.fde"]["mb_per_second"] / found["systemd-clonesetup"]["mb_per_second"], 1)
        result[name] = {**found, "ratio": ratio, "met": ratio >= BUDGET}
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"hydration-{options.guest}.json").write_text(json.dumps(result, indent=1))
    print(json.dumps(result, indent=1))
    return 0


def _in_qemu() -> dict[str, Any]:
    guest = Guest.create("bench-hydration", sealed_image().image, disks=DISKS)
    try:
        boot(guest)
        # The guest's own root first, or both would compete with it.
        settle(guest)
        with open(INSIDE, "rb") as file:
            command = f"python3 - {' '.join(disk.by_id for disk in DISKS)}"
            found: dict[str, Any] = json.loads(guest.ssh(command, stdin=file.read(), timeout=1800).stdout)
    finally:
        guest.delete()
    return found


if __name__ == "__main__":
    sys.exit(main())
