# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What encryption, authentication and a journal cost: every profile of volume beside the raw device, in one guest.

As root, after ``make setup``, from the checkout::

    python -m tests.bench.volume --guest uml       # User-mode Linux: the processor's own speed, ciphers in C
    python -m tests.bench.volume --guest qemu      # the lab's guest: ciphers as a cloud has them; without KVM emulated
    python -m tests.bench.volume --show build/bench/volume-uml.json

Results go to ``build/bench/volume-GUEST.json``, with ``--picture`` also to an SVG.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(CHECKOUT / "build/collections"))

from tests.bench.volume_chart import MIB, REFERENCE, picture, table  # noqa: E402
from tests.bench.volume_inside import STACKS  # noqa: E402
from tests.integration import uml  # noqa: E402
from tests.lab.cache import BUILD  # noqa: E402
from tests.lab.disks import DataDisk  # noqa: E402
from tests.lab.guest import Guest, boot  # noqa: E402
from tests.lab.images import base_image  # noqa: E402
from tests.lab.machine import KVM, accelerator  # noqa: E402
from tests.lab.process import LabError, run  # noqa: E402
from tests.lab.trees import tools_tree  # noqa: E402
from tests.lab.volumes import PACKAGES  # noqa: E402

FOLDER = BUILD / "bench"
INSIDE = Path(__file__).with_name("volume_inside.py")
CORE = CHECKOUT / "plugins/module_utils"
HOUR = 3600.0
#: While a stack is made and measured nobody hears anything.
SILENCE = 300.0
#: What one core does in user space with the processor's instructions for it: a bound for every device.
CIPHERS = {"AES-256-XTS": ("-evp", "aes-256-xts"), "HMAC-SHA256": ("-hmac", "sha256")}


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.bench.volume", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--guest", choices=GUESTS, default="uml")
    parser.add_argument("--seconds", type=float, default=2.0, help="how long each workload runs")
    parser.add_argument("--rounds", type=int, default=1, help="how often all is measured; the best round counts")
    parser.add_argument("--size", type=int, default=320, help="size of the device, MiB")
    parser.add_argument("--only", action="append", default=[], metavar="STACK", help="measure these stacks and 'raw'")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="draw the ratios into an SVG")
    parser.add_argument("--show", type=Path, metavar="FILE", help="measure nothing, show earlier results")
    args = parser.parse_args()
    try:
        known = json.loads(args.show.read_text()) if args.show else _measured(args)
    except (LabError, uml.GuestError) as error:
        print(f"volume: {error}", file=sys.stderr)
        return 1
    print(json.dumps({name: known[name] for name in known if name != "stacks"}, indent=1))
    print(table(known["stacks"]))
    if args.picture:
        args.picture.write_text(picture(known["stacks"], f"Throughput of data volumes, {known['guest']}"))
    return 0


def _measured(args: argparse.Namespace) -> dict[str, Any]:
    FOLDER.mkdir(parents=True, exist_ok=True)
    options = ["--seconds", str(args.seconds), "--rounds", str(args.rounds)]
    stacks = [stack.name for stack in STACKS if not args.only or stack.name in (REFERENCE, *args.only)]
    ceilings, before = _ceilings(), os.getloadavg()[0]
    where, known = GUESTS[args.guest](args.size, options, stacks)
    # Whatever else the host did took time from some stacks and not from others.
    load = [round(one, 1) for one in (before, *os.getloadavg()[::2])]
    known = {"guest": where, "host": _host(), "load": load, "one_core_user_space": ceilings, **known}
    (FOLDER / f"volume-{args.guest}.json").write_text(json.dumps(known, indent=1))
    return known


def _in_uml(size: int, options: list[str], stacks: list[str]) -> tuple[str, dict[str, Any]]:
    """Measure on a loop device over memory in User-mode Linux, each stack in a guest of its own.

    That kernel can hang under this load. A stack whose guest hung is left out, and said to be.
    """
    known: dict[str, Any] = {}
    for stack in stacks:
        try:
            measured = _uml_guest(size, [*options, "--only", stack])
        except uml.GuestError as error:
            print(f"{stack}: {str(error).splitlines()[0]}", file=sys.stderr, flush=True)
            continue
        known = {**measured, "stacks": {**known.get("stacks", {}), **measured["stacks"]}}
    if REFERENCE not in known.get("stacks", {}):
        raise LabError("the raw device could not be measured")
    return "User-mode Linux", {**known, "hung": [stack for stack in stacks if stack not in known["stacks"]]}


def _uml_guest(size: int, options: list[str]) -> dict[str, Any]:
    exchange = FOLDER / "exchange"
    exchange.mkdir(exist_ok=True)
    (exchange / "status").unlink(missing_ok=True)
    words = " ".join(f"'{option}'" for option in options)
    (exchange / "measure").write_text(
        f"truncate -s {size}M /tmp/disk && losetup --sector-size 4096 /dev/loop0 /tmp/disk && modprobe -a btrfs\n"
        f"exec python3 {INSIDE} /dev/loop0 --out /exchange/results.json {words}\n"
    )
    guest = uml.Guest(tools_tree(), memory="3072M", idle=SILENCE, limit=HOUR)
    outcome = guest.run(["sh", "/exchange/measure"], exchange=exchange, echo=True)
    if outcome.status:
        raise LabError(f"the measurement ended with status {outcome.status}: {outcome.output[-2000:]}")
    measured: dict[str, Any] = json.loads((exchange / "results.json").read_text())
    return measured


def _in_qemu(size: int, options: list[str], stacks: list[str]) -> tuple[str, dict[str, Any]]:
    """Measure on a virtio-blk disk of a guest of the lab; its file is in the host's page cache."""
    image = base_image(more=PACKAGES)
    guest = Guest.create("bench-volume", image, disks=[DataDisk(size * MIB, sector=4096, serial="bench")])
    try:
        boot(guest)
        guest.ssh("mkdir -p /run/bench && tar -xC /run/bench", stdin=_code())
        words = " ".join(f"'{word}'" for word in [*options, *(f"--only={stack}" for stack in stacks)])
        command = (
            f"cd /run/bench && PYTHONPATH=. python3 {INSIDE.name} {guest.hardware.disks[0].by_id} --out results.json"
        )
        print(guest.ssh(f"{command} {words}", timeout=3 * HOUR).stdout, end="")
        known = json.loads(guest.ssh("cat /run/bench/results.json").stdout)
    finally:
        guest.delete()
    how = "KVM" if accelerator() is KVM else "software emulation"
    return f"QEMU, {how}", known


GUESTS: dict[str, Callable[[int, list[str], list[str]], tuple[str, dict[str, Any]]]] = {
    "uml": _in_uml,
    "qemu": _in_qemu,
}


def _code() -> bytes:
    """Return an archive of the program that measures and of the core, under the name it is imported by."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        archive.add(INSIDE, INSIDE.name)
        archive.add(CORE, "ansible_collections/cvm/fde/plugins/module_utils")
    return packed.getvalue()


def _host() -> str:
    text = Path("/proc/cpuinfo").read_text()
    models = re.findall(r"^model name\s*: (.*)$", text, re.MULTILINE)
    return f"{len(models)} x {models[0]}" if models else "unknown"


def _ceilings() -> dict[str, str]:
    """Ask openssl what one core does with blocks of 4 KiB."""
    found = {}
    for name, words in CIPHERS.items():
        said = run(["openssl", "speed", "-mr", "-seconds", "1", "-bytes", "4096", *words])
        (bytes_per_second,) = re.findall(r"^\+F:\d+:[^:]+:([\d.]+)$", said, re.MULTILINE)
        found[name] = f"{float(bytes_per_second) / MIB:.0f} MiB/s"
    return found


if __name__ == "__main__":
    sys.exit(main())
