# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A first boot as systemd makes it by itself, timed step by step. Runs in the guest: python3 - DISK."""

import json
import resource
import subprocess
import sys
import time
from pathlib import Path

DEFINITIONS = Path("/run/bench-repart.d")
RECORD = 8 << 11  # sectors of the clone's record, at the front of the volume


def timed(*argv: str) -> dict[str, float]:
    """Run a program and return its wall and processor time in seconds, with all that it waited for."""
    before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"wall": round(time.monotonic() - begun, 2), "cpu": round(cpu, 2)}


def sealed_partition() -> Path:
    """The image's root partition, named by the first half of the root hash."""
    words = Path("/proc/cmdline").read_text().split()
    root_hash = next(word.partition("=")[2] for word in words if word.startswith("roothash="))
    half = root_hash[:32]
    name = "-".join((half[:8], half[8:12], half[12:16], half[16:20], half[20:]))
    return Path(f"/dev/disk/by-partuuid/{name}")


def main(disk: str) -> None:
    DEFINITIONS.mkdir()
    definition = "[Partition]\nType=linux-generic\nLabel=bench\nEncrypt=tpm2\nSizeMinBytes=2G\n"
    (DEFINITIONS / "50-bench.conf").write_text(definition)
    steps = {
        "systemd-repart": timed(
            *("systemd-repart", "--dry-run=no", "--empty=force", f"--definitions={DEFINITIONS}", "--tpm2-device=auto"),
            *("--discard=no", disk),
        )
    }
    subprocess.run(["udevadm", "settle"], check=True)
    options = "tpm2-device=auto,headless=yes"
    steps["systemd-cryptsetup"] = timed("systemd-cryptsetup", "attach", "bench", f"{disk}-part1", "-", options)
    size = int(subprocess.run(["blockdev", "--getsz", "/dev/mapper/bench"], check=True, capture_output=True).stdout)
    for name, start, length in (("bench-meta", 0, RECORD), ("bench-dest", RECORD, size - RECORD)):
        table = f"0 {length} linear /dev/mapper/bench {start}"
        subprocess.run(["dmsetup", "create", name, "--table", table], check=True, stdout=subprocess.DEVNULL)
    # What a new volume decrypts to is no empty record.
    with open("/dev/mapper/bench-meta", "r+b", buffering=0) as record:
        record.write(bytes(4096))
    devices = [f"/dev/mapper/{name}" for name in ("bench-dest", "bench-meta")]
    clonesetup = "/usr/lib/systemd/systemd-clonesetup"
    steps["systemd-clonesetup"] = timed(
        *(clonesetup, "add", "bench-root", str(sealed_partition()), *devices, "region-size=4K")
    )
    subprocess.run([clonesetup, "remove", "bench-root"], check=True, stdout=subprocess.DEVNULL)
    for name in ("bench-dest", "bench-meta"):
        subprocess.run(["dmsetup", "remove", name], check=True, stdout=subprocess.DEVNULL)
    subprocess.run(["systemd-cryptsetup", "detach", "bench"], check=True, stdout=subprocess.DEVNULL)
    print(json.dumps(steps))


if __name__ == "__main__":
    main(sys.argv[1])
