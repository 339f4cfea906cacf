# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the boot agent costs: processor time, memory, initrd and boot time, beside the same system without it and beside
what systemd does by itself for a first boot.

As root, after ``make setup``, from the checkout::

    python -m tests.bench.boot --guest uml     # User-mode Linux: the processor's own speed, the agent alone
    python -m tests.bench.boot --guest qemu    # the lab's guests: whole boots; without KVM emulated

Results also go to ``build/bench/boot-GUEST.json``. In User-mode Linux the agent and systemd's programs work on disks in
memory. In the lab there are two guests, one after the other: the same tree without the agent, and the sealed image,
booted twice. What boots without the agent has an initrd of the same dracut with the same drivers of disks, which mounts
the plain root; its root is neither verified nor encrypted. The agent's cost there is what systemd's accounting says of
its unit, with every program that it starts; the same work is then done on a further disk by systemd alone: a partition
of systemd-repart with ``Encrypt=tpm2``, opened by systemd-cryptsetup, and a clone by systemd-clonesetup.

Each budget is printed beside what was measured, and whether it was met; null is what only whole boots show. The exit
status does not depend on it: other work on the machine, and emulation, count too.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import sys
import tempfile
from pathlib import Path
from typing import Any, Optional

from tests.integration import uml
from tests.lab.cache import BUILD, cached, digest
from tests.lab.disks import GIB, DataDisk
from tests.lab.guest import Guest, boot
from tests.lab.images import pack
from tests.lab.machine import accelerator
from tests.lab.sealed import prepared_tree, sealed_image
from tests.lab.trees import copy_tree, run_in, tools_tree

UNIT = "cvm-fde-boot.service"
#: No falling back to ptrace, which takes twice as long: with the filter User-mode Linux is nearer to a machine.
FILTER = "seccomp=on"
INSIDE = Path(__file__).with_name("boot_inside.py")
RESULTS = BUILD / "bench"
DISK = DataDisk(4 * GIB, serial="bench")
#: Seconds of the processor, MB in memory, MB more of the initrd, and seconds until the root is usable that a first boot
#: may take longer than the same system without the agent.
BUDGET = {"cpu": 1.0, "memory": 64.0, "initrd": 10.0, "added": 10.0}
#: The initrd without the agent: what mounts a plain root, from the disks that the agent's initrd knows too.
PLAIN_MODULES = "base fs-lib kernel-modules rootfs-block systemd systemd-initrd systemd-udevd systemd-journald"
PLAIN_MODULES += " systemd-tmpfiles systemd-modules-load udev-rules"
PLAIN_DRIVERS = "virtio_pci virtio_blk virtio_scsi nvme sd_mod ahci ata_piix hv_storvsc xen-blkfront vmw_pvscsi ext4"
#: systemd's messages of a unit: that it is started, and that it has started (sd-messages.h).
_STARTING, _STARTED = "7d4958e842da4a758f6c1cdc7b36dcc5", "39f53479d3a045ac8e11786248231fbf"
_CLOCKS = ("InitRDTimestampMonotonic", "UserspaceTimestampMonotonic", "FinishTimestampMonotonic")


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.bench.boot", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--guest", choices=("uml", "qemu"), default="uml")
    options = parser.parse_args()
    result: dict[str, Any] = {"guest": options.guest, "host": host()}
    if options.guest == "uml":
        result.update(in_uml("tests.bench.boot_uml"))
    else:
        result |= {"initrd": initrd(), "without_agent": _plain(), **_sealed()}
    result |= {"ratios": _ratios(result), "budget": budget(result)}
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"boot-{options.guest}.json").write_text(json.dumps(result, indent=1))
    print(json.dumps(result, indent=1))
    return 0


def budget(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return for each budget the limit, what was measured, and whether that is within it.

    What takes a boot with the agent and one without is None where there were none: the agent's own time by the clock is
    not what it adds to a boot, which does other things meanwhile and waits for disks and for the TPM.
    """
    first = result["first_boot"]
    found: dict[str, Optional[float]] = {"cpu": first["cpu"], "memory": first["memory"], "initrd": None, "added": None}
    if "initrd" in result:
        before, after = result["without_agent"], first
        found["initrd"] = result["initrd"]["agent"]
        found["added"] = round(after["kernel"] + after["initrd"] - before["kernel"] - before["initrd"], 1)
    return {
        name: {"limit": BUDGET[name], "measured": one, "met": None if one is None else one <= BUDGET[name]}
        for name, one in found.items()
    }


def in_uml(*words: str) -> dict[str, Any]:
    """Run a module of the checkout, or a program, in User-mode Linux and return the JSON that it prints last.

    Raises ``RuntimeError`` when it fails.
    """
    tree = uml.tools_tree()
    assert tree is not None, uml.missing()
    argv = ["python3", *(words if words[0].startswith("/") else ("-m", *words))]
    with tempfile.TemporaryDirectory(prefix="fde-exchange-") as exchange:
        done = uml.Guest(tree, limit=3600, idle=900, words=(FILTER,)).run(argv, exchange=Path(exchange))
    if done.status != 0:
        raise RuntimeError(done.output[-2000:])
    found: dict[str, Any] = json.loads(done.output.splitlines()[-1])
    return found


def host() -> dict[str, Any]:
    """Return what the numbers depend on: the machine, its load, and whether guests are emulated."""
    model = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name"))
    return {
        "processor": model.partition(":")[2].strip(),
        "cpus": os.cpu_count(),
        "kernel": platform.release(),
        "load": round(os.getloadavg()[0], 1),
        "accelerator": " ".join(str(word) for word in accelerator()),
    }


def initrd() -> dict[str, float]:
    """Return the sizes in MB of the initrd with the agent and of that which only mounts a plain root."""
    tree = prepared_tree()
    with_agent = (tree / f"boot/initrd.img-{_kernel(tree)}").stat().st_size
    without = (plain_tree() / f"boot/initrd.img-{_kernel(tree)}").stat().st_size
    sizes = {"with": with_agent, "without": without, "agent": with_agent - without}
    return {name: round(size / 1e6, 1) for name, size in sizes.items()}


def plain_tree() -> Path:
    """Return the tree of the sealed image with an initrd that has no agent."""
    prepared = prepared_tree()

    def build(tree: Path) -> None:
        copy_tree(prepared, tree)
        version = _kernel(tree)
        # Its own configuration would add the agent.
        words = ["--force", "--quiet", "--conf", "/dev/null", "--confdir", "/srv", "--no-hostonly", "--zstd"]
        words += ["--no-early-microcode", "--reproducible", "--modules", PLAIN_MODULES, "--drivers", PLAIN_DRIVERS]
        run_in(tree, ["dracut", *words, "--kver", version, f"/boot/initrd.img-{version}"])

    recipe = digest(prepared.name, PLAIN_MODULES, PLAIN_DRIVERS, Path(__file__))
    return cached("the same tree without the agent in its initrd", "plain", recipe, build)


def _kernel(tree: Path) -> str:
    return max(path.name for path in (tree / "usr/lib/modules").iterdir())


def _plain() -> dict[str, float]:
    tree = plain_tree()
    image = cached("an image of it", "plain.raw", digest(tree.name), lambda at: pack(tree, at))
    guest = Guest.create("bench-plain", image, size=4 * GIB)
    try:
        boot(guest)
        return clocks(guest)
    finally:
        guest.delete()


def _sealed() -> dict[str, Any]:
    guest = Guest.create("bench-sealed", sealed_image().image, disks=[DISK])
    try:
        boot(guest)
        first = clocks(guest) | agent(guest)
        # The image has no need of it.
        repart = tools_tree() / "usr/bin/systemd-repart"
        guest.ssh("install -m 0755 /dev/stdin /usr/bin/systemd-repart", stdin=repart.read_bytes())
        command = f"python3 - {DISK.by_id}"
        native = json.loads(guest.ssh(command, stdin=INSIDE.read_bytes(), timeout=1800).stdout)
        guest.reboot()
        return {"first_boot": first, "later_boot": clocks(guest) | agent(guest), "native": native}
    finally:
        guest.delete()


def clocks(guest: Guest) -> dict[str, float]:
    """Return how long kernel, initrd and system took, in seconds."""
    text = guest.ssh(f"systemctl show -p {','.join(_CLOCKS)}").stdout
    known = dict(line.partition("=")[::2] for line in text.splitlines())
    begun, switched, finished = (int(known[name]) / 1e6 for name in _CLOCKS)
    return {
        "kernel": round(begun, 1),
        "initrd": round(switched - begun, 1),
        "system": round(finished - switched, 1) if finished else 0.0,
    }


def agent(guest: Guest) -> dict[str, float]:
    """Return what systemd's accounting says of the agent in this boot: seconds, and MB at the peak.

    Its unit is gone once the system runs; what it used is in the kernel's log, from the moment in which it was dropped.
    """
    lines = guest.ssh(f"journalctl --boot --output=json --no-pager UNIT={UNIT}").stdout.splitlines()
    told = {entry.get("MESSAGE_ID"): int(entry["__MONOTONIC_TIMESTAMP"]) for entry in map(json.loads, lines)}
    look = f"journalctl --boot --output=cat --no-pager --grep={UNIT}:.Consumed"
    used = guest.ssh(f"timeout 300 sh -c 'until {look}; do sleep 1; done'", timeout=600).stdout
    return {**consumed(used), "wall": round((told[_STARTED] - told[_STARTING]) / 1e6, 2)}


def consumed(text: str) -> dict[str, float]:
    """Read seconds of the processor and MB at the peak in what systemd says of a unit that it drops."""
    found = re.search(r"Consumed (.*) CPU time .* ([0-9.]+)([KMG]) memory peak", text)
    if found is None:
        raise ValueError(f"systemd does not say what was used: {text!r}")
    units = {"h": 3600, "min": 60, "s": 1, "ms": 1e-3, "us": 1e-6}
    spans = re.findall(r"([0-9.]+)(h|min|ms|us|s)", found[1])
    return {
        "cpu": round(sum(float(number) * units[unit] for number, unit in spans), 2),
        "memory": round(float(found[2]) * 1024 ** ("KMG".index(found[3]) + 1) / 1e6, 1),
    }


def _ratios(result: dict[str, Any]) -> dict[str, float]:
    """Return each cost over that of its peer; nothing is asserted, other work on the machine counts too."""
    first, native = result["first_boot"], result["native"]
    ratios = {
        f"{word} of the agent's first boot / native": first[kind] / sum(step[kind] for step in native.values())
        for kind, word in (("cpu", "processor time"), ("wall", "wall time"))
    }
    if "initrd" in result:
        ratios["initrd with the agent / without"] = result["initrd"]["with"] / result["initrd"]["without"]
        ratios["time in the initrd, first boot / without the agent"] = (
            first["initrd"] / result["without_agent"]["initrd"]
        )
    return {name: round(value, 2) for name, value in ratios.items()}


if __name__ == "__main__":
    sys.exit(main())
