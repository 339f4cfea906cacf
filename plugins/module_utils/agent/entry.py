# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The boot agent's command line.

A command imports what it needs when it is run: a boot waits for its agent, and half of the agent is for other commands.
``initrd.closure`` takes all of it along.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Optional, Sequence

from ..codes import Code, refuse, without_recovery
from ..errors import FdeError, Refusal
from . import console
from .boot import boot
from .configuration import Recovery
from .machine import Machine, this_machine
from .process import SubprocessRunner

if TYPE_CHECKING:
    import argparse

#: Seconds; a loaded host may take minutes for what a quiet one does in one second.
_LIMIT = 900


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Run one command and return the exit status."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    if words in (["boot"], ["emergency"]):
        # What systemd runs in the initrd: a parser would cost a twentieth of the processor time of a boot.
        return _early(words[0])
    chosen = _parsed(words)
    if chosen.command == "volume":
        from ..volume import command as volume_command

        return volume_command.run(SubprocessRunner(limit=_LIMIT), chosen.action, chosen.name)
    if chosen.command == "initrd":
        from . import initrd

        for source, target in initrd.write(initrd.closure(), chosen.root):
            print(f"{source}\t{target}")
        return 0
    return _late(chosen)


def _parsed(words: Sequence[str]) -> argparse.Namespace:
    import argparse

    parser = argparse.ArgumentParser(prog="cvm-fde", description="Boot agent of the Ansible collection cvm.fde")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("boot", help="make or open the encrypted root; in the initrd")
    commands.add_parser("emergency", help="say that the initrd cannot continue")
    commands.add_parser("hydrate", help="copy the image's root into the encrypted volume, and fill that")
    commands.add_parser("pause", help="stop that copying, whatever became of the process that paced it")
    commands.add_parser("masks", help="report what the volume of an overlay hides of the image")
    commands.add_parser("status", help="print what is known about the root as JSON")
    pin = commands.add_parser("commit", help="let the next boot accept a header that was changed on purpose")
    pin.add_argument("--dry-run", action="store_true", help="only show what was changed")
    pin.add_argument("--digest", metavar="HEX", help="commit no other header than the one with this digest")
    tree = commands.add_parser("initrd", help="write the agent into the tree of an initrd; for dracut")
    tree.add_argument("root", type=Path)
    data = commands.add_parser("volume", help="check a data volume before and after it is opened")
    data.add_argument("action", choices=("check", "header"))
    data.add_argument("name")
    return parser.parse_args(words)


def _early(command: str) -> int:
    """Run a command of the initrd; whatever goes wrong refuses the boot."""
    runner = SubprocessRunner(limit=_LIMIT)
    machine: Optional[Machine] = None
    try:
        machine = this_machine(runner)
        if command == "emergency":
            raise refuse(Code.INITRD_FAILED, "the initrd")
        boot(machine)
    except Exception as error:
        known = _known(error)
        if machine is not None and isinstance(known, Refusal) and _recovered(machine, known):
            runner.run(["systemctl", "--force", "--force", "reboot"])
            return 0
        if machine is None:
            console.refuse(known, runner)
        else:
            from . import refusals

            said = without_recovery(known) if machine.configuration.recovery is Recovery.NONE else known
            console.refuse(said, runner, remember=partial(refusals.remember, machine))
        if known is not error:
            # The traceback of a defect goes to the journal.
            raise
        return 1
    return 0


def _known(error: Exception) -> FdeError:
    """Return an error as what the user can act on."""
    if isinstance(error, FdeError):
        return error
    if isinstance(error, OSError):
        subject = str(error.filename or "a device")
        return FdeError(subject, error.strerror or repr(error), "Look at the kernel's log, and check the disk")
    return FdeError("the boot agent", repr(error), "Report this defect")


def _recovered(machine: Machine, refusal: Refusal) -> bool:
    """Offer the recovery of a refused boot at the console, if the image does, and tell whether it was carried out."""
    from . import dialogue, recovery, refusals

    if not recovery.offered(machine, refusal):
        return False
    console.announce(refusal)
    try:
        with dialogue.console() as person:
            try:
                done = recovery.recover(machine, refusal, person)
            except Exception as failure:
                # Whatever ended it: the refusal stands, and is measured.
                person.tell(f"The recovery failed: {failure if isinstance(failure, FdeError) else repr(failure)}")
                return False
    except OSError as error:
        console.say(f"there is no console to recover at: {error.strerror}")
        return False
    if done:
        refusals.keep(machine, refusal)
        console.say(f"the volume was recovered after the refusal {refusal.code}; the machine starts anew")
    return done


def _late(chosen: argparse.Namespace) -> int:
    """Run a command of the running system; what went wrong is one line, and a defect keeps its traceback."""
    from . import commit, upkeep
    from .status import status

    # Nothing takes longer by the size of a disk but hydration.
    runner = SubprocessRunner(limit=None if chosen.command == "hydrate" else _LIMIT)
    try:
        if chosen.command == "hydrate":
            upkeep.hydrate_root(runner)
        elif chosen.command == "pause":
            upkeep.pause(runner)
        elif chosen.command == "masks":
            upkeep.keep_masks(runner)
        elif chosen.command == "commit":
            outcome = commit.commit(this_machine(runner), seen=chosen.digest, dry_run=chosen.dry_run)
            print(json.dumps(asdict(outcome), indent=2, sort_keys=True))
        else:
            print(json.dumps(status(runner), indent=2, sort_keys=True))
    except (FdeError, OSError) as error:
        print(f"cvm-fde: {_known(error)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
