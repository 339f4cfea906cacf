# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The boot agent's command line."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Optional, Sequence

from ..dm.device import DeviceMapper
from ..errors import FdeError
from ..volume import command
from . import console, initrd
from .boot import boot
from .decision import Code, refuse
from .hydration import hydrate, notify
from .machine import this_machine
from .process import SubprocessRunner
from .status import status

#: Seconds; a loaded host may take minutes for what a quiet one does in one second.
_LIMIT = 900


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Run one command and return the exit status."""
    parser = argparse.ArgumentParser(prog="cvm-fde", description="Boot agent of the Ansible collection cvm.fde")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("boot", help="make or open the encrypted root; in the initrd")
    commands.add_parser("emergency", help="say that the initrd cannot continue")
    commands.add_parser("hydrate", help="copy the image's root into the encrypted volume")
    commands.add_parser("status", help="print what is known about the root as JSON")
    tree = commands.add_parser("initrd", help="write the agent into the tree of an initrd; for dracut")
    tree.add_argument("root", type=Path)
    command.add_parser(commands)
    chosen = parser.parse_args(arguments)
    if chosen.command == "volume":
        return command.run(SubprocessRunner(limit=_LIMIT), chosen.action, chosen.name)
    if chosen.command == "initrd":
        for source, target in initrd.write(initrd.closure(), chosen.root):
            print(f"{source}\t{target}")
        return 0
    return _run(chosen.command)


def _run(command: str) -> int:
    # Nothing that a boot starts takes longer by the size of a disk; hydration does.
    runner = SubprocessRunner(limit=None if command == "hydrate" else _LIMIT)
    try:
        if command == "emergency":
            raise refuse(Code.INITRD_FAILED, "the initrd")
        if command == "boot":
            boot(this_machine(runner))
        elif command == "hydrate":
            hydrate(DeviceMapper(runner), runner, notify)
        else:
            print(json.dumps(status(DeviceMapper(runner)), indent=2, sort_keys=True))
    except Exception as error:
        known = error if isinstance(error, FdeError) else FdeError("the boot agent", repr(error), "Report this defect")
        if command in ("boot", "emergency"):
            # Whatever ended the boot is shown and measured; the traceback of a defect goes to the journal.
            console.refuse(known, runner)
        if known is not error:
            raise
        print(f"cvm-fde: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
