# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a killed program left set up on a volume's device, so that it would count as in use for ever.

cryptsetup maps a new volume under a temporary name while it writes every sector; and a volume with authentication is
two mappings, of which the upper one may be gone. Nobody mounts these, and they belong to the volume that is being
made or opened, when they lie on its device and nothing else does.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Iterator

#: cryptsetup names it after the process in old versions, after the volume's UUID in new ones.
_TEMPORARY = re.compile(r"temporary-cryptsetup-[0-9a-f-]+(_dif)?")
#: How ``_name`` calls a device-mapper device that has lost its name.
_UNNAMED = re.compile(r"/dev/dm-[0-9]+")


def strays(name: str, node: str, sys: Path = Path("/sys")) -> tuple[str, ...]:
    """Return the names of what is to be removed, from the top down; nothing where somebody else uses the device.

    The volume itself, when it is open, is no stray, nor is what lies below it.
    """
    number = os.stat(node).st_rdev
    names = list(_holders(sys / "dev/block" / f"{os.major(number)}:{os.minor(number)}", sys))
    own = {name, f"{name}_dif"} if name in names else set()
    left = [one for one in names if one not in own]
    if not all(_TEMPORARY.fullmatch(one) or one == f"{name}_dif" for one in left):
        return ()
    # One that was to lie above, and was cut off before it had a table, lies on nothing yet.
    above = {one[: -len("_dif")] for one in left if _TEMPORARY.fullmatch(one) and one.endswith("_dif")}
    unfinished = sorted(above.intersection(_name(entry) for entry in (sys / "class/block").glob("dm-*")) - set(left))
    return tuple(dict.fromkeys([*unfinished, *reversed(left)]))


def going_away(node: str, sys: Path = Path("/sys")) -> bool:
    """Return whether something is set up on a device, and all of it has lost its name already.

    A killed program's mapping ends only after the kernel has written what that program had begun to write.
    """
    number = os.stat(node).st_rdev
    names = list(_holders(sys / "dev/block" / f"{os.major(number)}:{os.minor(number)}", sys))
    return bool(names) and all(_UNNAMED.fullmatch(one) for one in names)


def _holders(device: Path, sys: Path) -> Iterator[str]:
    """Yield the names of what is set up on a device, what lies below before what lies above."""
    directory = device / "holders"
    for entry in sorted(directory.iterdir()) if directory.is_dir() else ():
        holder = sys / "class/block" / entry.name
        yield _name(holder)
        yield from _holders(holder, sys)


def _name(holder: Path) -> str:
    """Return a holder's name; what is no device-mapper device, or is going away, has one that nothing here knows."""
    try:
        return (holder / "dm/name").read_text().strip()
    except OSError:
        return f"/dev/{holder.name}"
