# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Measures storage stacks on one device with fio; started by ``volume.py`` as root in a guest, needs Python >= 3.9.

``python3 volume_inside.py DEVICE --seconds S --out FILE``: everything on DEVICE is lost. Every stack is made by the
collection's own code, so that its parameters are those of the volumes that the collection makes.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
import uuid
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Iterator, Optional

from ansible_collections.cvm.fde.plugins.module_utils.agent.process import SubprocessRunner
from ansible_collections.cvm.fde.plugins.module_utils.luks2.profile import AEGIS, AUTHENTICATED, CONFIDENTIAL, Profile
from ansible_collections.cvm.fde.plugins.module_utils.luks2.volume import attach_with_key, format_volume

NAME = "fde-bench"
MOUNT = "/run/fde-bench"
MIB = 1 << 20
#: What fio reads and writes: a part of the device, or a file in it. The rest is for headers, tags, journal, trees, and
#: for the old sectors that btrfs keeps until its transaction ends.
SHARE = 0.15
RUN = SubprocessRunner()
Figures = dict[str, float]


@dataclass(frozen=True)
class Stack:
    """What lies between fio and the device, from the bottom up."""

    name: str
    profile: Optional[Profile] = None
    journal: bool = True
    file_system: Optional[str] = None


STACKS = (
    Stack("raw"),
    Stack("LUKS2", CONFIDENTIAL),
    Stack("HMAC, journal", AUTHENTICATED),
    Stack("HMAC, no journal", AUTHENTICATED, journal=False),
    Stack("AEGIS, journal", AEGIS),
    Stack("AEGIS, no journal", AEGIS, journal=False),
    Stack("ext4", file_system="ext4"),
    Stack("ext4 on HMAC, journal", AUTHENTICATED, file_system="ext4"),
    Stack("ext4 on AEGIS, journal", AEGIS, file_system="ext4"),
    Stack("btrfs", file_system="btrfs"),
    Stack("btrfs on HMAC, journal", AUTHENTICATED, file_system="btrfs"),
    Stack("btrfs on HMAC, no journal", AUTHENTICATED, journal=False, file_system="btrfs"),
    Stack("btrfs on AEGIS, journal", AEGIS, file_system="btrfs"),
    Stack("btrfs on AEGIS, no journal", AEGIS, journal=False, file_system="btrfs"),
)
MAKE = {
    "ext4": ["mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0,nodiscard"],
    "btrfs": ["mkfs.btrfs", "-q", "-f", "--csum", "sha256", "--nodiscard"],
}


@dataclass(frozen=True)
class Workload:
    """One pattern of access. ``sync``: one request at a time, each on the disk before the next."""

    direction: str
    random: bool
    block: int
    sync: bool

    @property
    def name(self) -> str:
        size = f"{self.block // MIB} MiB" if self.block >= MIB else f"{self.block // 1024} KiB"
        kind = "random" if self.random else "sequential"
        return f"{kind} {self.direction}, {size}{', sync' if self.sync else ''}"

    def fio(self, target: str, size: int, seconds: float) -> list[str]:
        words = ["fio", "--name=bench", f"--filename={target}", f"--size={size}", f"--bs={self.block}", "--direct=1"]
        words += [f"--rw={'rand' if self.random else ''}{self.direction}", "--ioengine=libaio", "--randrepeat=1"]
        words += ["--norandommap", "--time_based", f"--runtime={seconds * 1000:.0f}ms", "--output-format=json"]
        return words + (["--iodepth=1", "--fdatasync=1"] if self.sync else ["--iodepth=16"])


WORKLOADS = tuple(
    Workload(direction, random, block, sync)
    for direction in ("read", "write")
    for random in (False, True)
    for block in (4096, MIB)
    for sync in ((False, True) if direction == "write" else (False,))
)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("device", help="block device of at least 256 MiB; what is on it is lost")
    parser.add_argument("--seconds", type=float, default=3.0, help="how long each workload runs")
    parser.add_argument("--rounds", type=int, default=1, help="how often; the round with the highest throughput counts")
    parser.add_argument("--out", required=True, help="file for the results (JSON)")
    parser.add_argument("--only", action="append", default=[], metavar="STACK", help="measure these stacks alone")
    args = parser.parse_args()
    chosen = [stack for stack in STACKS if not args.only or stack.name in args.only]
    stacks: dict[str, dict[str, Figures]] = {stack.name: {} for stack in chosen}
    size = int(_size(args.device) * SHARE) // MIB * MIB
    # All stacks in every round: what else the machine does then spoils one round of all, not all rounds of one.
    for number in range(args.rounds):
        for stack in chosen:
            begun = time.monotonic()
            with made(stack, args.device) as target:
                lay_out(target, size)
                made_in = time.monotonic() - begun
                for workload in WORKLOADS:
                    figures = measure(workload, target, size, args.seconds)
                    best = stacks[stack.name].get(workload.name, figures)
                    stacks[stack.name][workload.name] = max(best, figures, key=lambda each: each["bytes_per_second"])
            took = time.monotonic() - begun
            print(f"round {number + 1}: {stack.name}: made in {made_in:.0f} s, all in {took:.0f} s", flush=True)
    known = {"machine": machine(args.device), "seconds": args.seconds, "rounds": args.rounds, "stacks": stacks}
    with open(args.out, "w") as file:
        json.dump(known, file, indent=1)


@contextmanager
def made(stack: Stack, device: str) -> Iterator[str]:
    """Make a stack on the device; yield what fio works on: a block device, or a file."""
    block = device
    if stack.profile is not None:
        block = f"/dev/mapper/{NAME}"
        open_volume(stack, device)
    try:
        if stack.file_system is None:
            yield block
        else:
            RUN.run([*MAKE[stack.file_system], block])
            os.makedirs(MOUNT, exist_ok=True)
            RUN.run(["mount", "-t", stack.file_system, block, MOUNT])
            try:
                yield f"{MOUNT}/file"
            finally:
                RUN.run(["umount", MOUNT])
    finally:
        if stack.profile is not None:
            RUN.run(["cryptsetup", "close", NAME])


def open_volume(stack: Stack, device: str) -> None:
    """Make the volume, write all of it once without a journal (what is not written has no tags), open it as wanted."""
    assert stack.profile is not None
    key, temporary = bytearray(os.urandom(stack.profile.volume_key_size)), bytearray(os.urandom(32))
    format_volume(
        RUN,
        device,
        volume_key=key,
        temporary_key=temporary,
        uuid=str(uuid.uuid4()),
        profile=stack.profile,
        journal=stack.journal,
        wipe=stack.profile.integrity is not None,
    )
    attach_with_key(RUN, NAME, device, header=device, volume_key=key)


def lay_out(target: str, size: int) -> None:
    """Write what will be read, and let the device forget that it has just done so."""
    words = ["fio", "--name=layout", f"--filename={target}", f"--size={size}", "--rw=write", "--bs=1M", "--direct=1"]
    RUN.run([*words, "--ioengine=psync", "--end_fsync=1"])
    os.sync()
    with open("/proc/sys/vm/drop_caches", "w") as file:
        file.write("3")


def measure(workload: Workload, target: str, size: int, seconds: float) -> Figures:
    """Run one workload; bytes and requests a second, latencies in microseconds, CPU seconds of the machine per GiB."""
    before = _busy()
    said = json.loads(RUN.run(workload.fio(target, size, seconds)).stdout)
    found = said["jobs"][0][workload.direction]
    latency = found["clat_ns"]
    os.sync()
    return {
        "bytes_per_second": found["bw_bytes"],
        "requests_per_second": found["iops"],
        "latency_mean": latency["mean"] / 1000,
        "latency_p99": latency["percentile"]["99.000000"] / 1000,
        "cpu_per_gib": (_busy() - before) / max(found["io_bytes"], 1) * (1 << 30),
    }


def _busy() -> float:
    """Seconds that the processors of this machine have worked."""
    with open("/proc/stat") as file:
        user, nice, system, _idle, _wait, irq, softirq = (int(word) for word in file.readline().split()[1:8])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def machine(device: str) -> dict[str, Any]:
    with open("/proc/crypto") as file:
        drivers = sorted({line.split(":")[1].strip() for line in file if line.startswith("driver")})
    return {
        "kernel": platform.release(),
        "processors": os.cpu_count(),
        "cryptsetup": RUN.run(["cryptsetup", "--version"]).stdout.decode().strip(),
        "fio": RUN.run(["fio", "--version"]).stdout.decode().strip(),
        "device": device,
        "size": _size(device),
        "ciphers": [name for name in drivers if any(word in name for word in ("aes", "sha256", "aegis"))],
    }


def _size(device: str) -> int:
    return int(RUN.run(["blockdev", "--getsize64", device]).stdout)


if __name__ == "__main__":
    main()
