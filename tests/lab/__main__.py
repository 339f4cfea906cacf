# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab's command line."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from .demo import demo
from .disks import BY_ID, GIB, SECTORS, DataDisk
from .guest import Guest, boot, guests, together
from .images import base_image
from .process import LabError
from .sealed import prepared_tree, sealed_image
from .trees import SUITE, SUITES, base_tree, tools_tree


def main(argv: list[str]) -> int:
    """Run one command; 0 when all went well."""
    args = _parser().parse_args(argv)
    try:
        return int(args.run(args) or 0)
    except LabError as error:
        print(f"lab: {error}", file=sys.stderr)
        return 1


def _up(args: argparse.Namespace) -> None:
    image = args.image or base_image(args.suite, args.sector)
    known = {guest.name for guest in guests()}

    def one(guest: Guest) -> None:
        if guest.name not in known or args.new:
            Guest.create(
                guest.name,
                image,
                size=args.size * GIB,
                cpus=args.cpus,
                memory=args.memory,
                interface=args.interface,
                sector=args.sector,
                disks=[DataDisk.parse(text) for text in args.disk],
            )
        if not guest.running:
            boot(guest, args.until)

    together(one, [Guest(name) for name in args.names])


def _down(args: argparse.Namespace) -> None:
    for guest in [Guest(name) for name in args.names] if args.names else guests():
        if args.delete:
            guest.delete()
        elif args.hard or not guest.running:
            guest.power_off()
        else:
            guest.shut_down()


def _ssh(args: argparse.Namespace) -> int:
    guest = Guest(args.name)
    return subprocess.call([*guest.ssh_command(), *args.command], cwd=guest.folder)


def _console(args: argparse.Namespace) -> int:
    return subprocess.call(["tail", "-n", "200", "-F", Guest(args.name).serial.path])


def _list(_: argparse.Namespace) -> None:
    for guest in guests():
        try:
            port = str(guest.hardware.port)
        except LabError:
            port = "?"
        print(f"{guest.name:12} {'on' if guest.running else 'off':4} ssh port {port:<6} {guest.folder}")


def _sealed(args: argparse.Namespace) -> Path:
    return sealed_image(args.suite, args.strategy, args.recovery, args.sector).image


def _suite(command: argparse.ArgumentParser) -> None:
    command.add_argument("--suite", choices=SUITES, default=SUITE, help=f"release of Debian (default: {SUITE})")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lab", description="Confidential-VM stand-ins: QEMU, OVMF, Secure Boot, a TPM."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    up = commands.add_parser("up", help="make and boot guests, all at once, until ssh answers")
    up.add_argument("names", nargs="+", metavar="NAME")
    up.add_argument("--image", type=Path, help="raw image (default: the general-purpose base image of the suite)")
    _suite(up)
    up.add_argument("--new", action="store_true", help="replace guests that exist")
    up.add_argument("--size", type=int, default=5, help="size of the disk, GiB")
    up.add_argument("--interface", choices=BY_ID, default="virtio", help="how the root disk is attached")
    up.add_argument("--sector", type=int, choices=SECTORS, default=512, help="logical sectors of the root disk, bytes")
    up.add_argument(
        "--disk",
        action="append",
        default=[],
        metavar="SIZE[,interface=NAME][,sector=BYTES][,serial=TEXT]",
        help="a further disk, as in 2G or 512M,interface=nvme,sector=4096 (more than one: repeat it)",
    )
    up.add_argument("--cpus", type=int, default=2)
    up.add_argument("--memory", type=int, default=1536, help="MiB")
    up.add_argument("--until", metavar="REGEX", help="wait for this on the serial line, not for ssh")
    up.set_defaults(run=_up)

    down = commands.add_parser("down", help="shut guests down (without names: all)")
    down.add_argument("names", nargs="*", metavar="NAME")
    down.add_argument("--hard", action="store_true", help="cut the power")
    down.add_argument("--delete", action="store_true", help="cut the power and delete the guest")
    down.set_defaults(run=_down)

    ssh = commands.add_parser("ssh", help="run a command in a guest, or a shell")
    ssh.add_argument("name", metavar="NAME")
    ssh.add_argument("command", nargs=argparse.REMAINDER)
    ssh.set_defaults(run=_ssh)

    reboot = commands.add_parser("reboot", help="reboot a guest and wait until ssh answers")
    reboot.add_argument("name", metavar="NAME")
    reboot.set_defaults(run=lambda args: Guest(args.name).reboot())

    console = commands.add_parser("console", help="follow a guest's serial log")
    console.add_argument("name", metavar="NAME")
    console.set_defaults(run=_console)

    commands.add_parser("list", help="list the guests").set_defaults(run=_list)
    for name, what, path in (
        ("tools", "tree of tools", lambda _: tools_tree()),
        ("tree", "tree of the base image", lambda args: base_tree(args.suite)),
        ("image", "base image", lambda args: base_image(args.suite, args.sector)),
        ("prepared", "tree with the boot agent", lambda args: prepared_tree(args.suite, args.strategy)),
        ("sealed", "sealed image", _sealed),
    ):
        command = commands.add_parser(name, help=f"build the {what} when it is missing, and print its path")
        command.set_defaults(run=lambda args, path=path: print(path(args)))
        if name != "tools":
            _suite(command)
        if name in ("image", "sealed"):
            command.add_argument("--sector", type=int, choices=SECTORS, default=512, help="sectors of its disks, bytes")
        if name in ("prepared", "sealed"):
            command.add_argument("--strategy", help="the variable image_strategy of the role image")
        if name == "sealed":
            command.add_argument("--recovery", help="the variable image_recovery of the role image")

    commands.add_parser(
        "demo", help="seal an image, boot two guests from it, attest them, show the fleet"
    ).set_defaults(run=lambda _: demo())
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
