# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Hydrates one volume as the boot agent does, and one by systemd-clonesetup. Runs in a guest:

python3 - DISK DISK            # a guest of the lab, its own image as the source
python3 FILE --memory          # User-mode Linux, with disks in memory
python3 FILE --latency         # the same, but a request takes a millisecond
"""

import importlib
import json
import os
import subprocess
import sys
import time
import uuid
from pathlib import Path

AGENT = "/usr/lib/cvm-fde/agent.pyz"
sys.path.insert(0, AGENT)
CORE = "cvm_fde" if Path(AGENT).exists() else "ansible_collections.cvm.fde.plugins.module_utils"


def core(name: str):
    """A module of the agent as the guest has it, or of the checkout."""
    return importlib.import_module(f"{CORE}.{name}")


volume_key, clone, tables = core("agent.volume_key"), core("dm.clone"), core("dm.table")
SubprocessRunner, DeviceMapper = core("agent.process").SubprocessRunner, core("dm.device").DeviceMapper
queue_of = core("dm.queue").queue_of
read_area, volumes = core("luks2.area").read_area, core("luks2.volume")
Linear = tables.Linear

#: Sectors: what is copied, and the place of systemd's record in its volume.
SOURCE = 384 << 11
RECORD = 16 << 11
#: Bytes of the disks in memory, and nanoseconds that a request takes to those with latency, as on a cloud's network.
DISK = 256 << 20
LATENCY = 1_000_000
#: Seconds that one measurement takes at most.
LIMIT = 180.0
NAMES = clone.Names("bench-root", "bench-dest", "bench-meta")


def volume(runner: SubprocessRunner, name: str, device: str) -> None:
    """Make and open a volume of the root's kind."""
    key = bytearray(os.urandom(96))
    volumes.format_volume(runner, device, volume_key=key, temporary_key=volume_key.temporary(), uuid=str(uuid.uuid4()))
    header = Path(f"/run/{name}.header")
    header.unlink(missing_ok=True)
    read_area(device).store(str(header))
    volumes.attach_with_key(runner, name, device, header=str(header), volume_key=key)


def sealed_partition() -> str:
    """The image's root partition, named by the first half of the root hash."""
    words = Path("/proc/cmdline").read_text().split()
    root_hash = next(word.partition("=")[2] for word in words if word.startswith("roothash="))
    half = root_hash[:32]
    name = "-".join((half[:8], half[8:12], half[12:16], half[16:20], half[20:]))
    return os.path.realpath(f"/dev/disk/by-partuuid/{name}")


def rate(mapper: DeviceMapper, names: clone.Names) -> dict[str, float]:
    """Watch a clone until it is complete, or for so long, and return how fast it went."""
    first, begun = clone.status(mapper, names), time.monotonic()
    while True:
        time.sleep(0.2)
        now, took = clone.status(mapper, names), time.monotonic() - begun
        if now.complete or took > LIMIT:
            break
    done = (now.hydrated - first.hydrated) * now.region * 512
    return {
        "mb_per_second": round(done / took / 1e6, 2),
        "mb": round(done / 1e6, 1),
        "seconds": round(took, 1),
        "region_kib": now.region // 2,
        "complete": now.complete,
    }


def ours(runner: SubprocessRunner, mapper: DeviceMapper, device: str) -> dict[str, float]:
    volume(runner, "bench", device)
    state = clone.assemble(mapper, "bench", "bench-source", fresh=True, names=NAMES)
    queue = queue_of(mapper.get(NAMES.destination).minor)
    tuning = clone.tuning(state.total * state.region, queue)
    clone.hydrate(mapper, NAMES, threshold=tuning.threshold, batch=tuning.batch)
    found = rate(mapper, NAMES)
    clone.disassemble(mapper, NAMES)
    volumes.detach(runner, "bench")
    return found


def systemds(runner: SubprocessRunner, mapper: DeviceMapper, device: str) -> dict[str, float]:
    volume(runner, "bench2", device)
    below = mapper.get("bench2")
    mapper.create("bench2-meta", (Linear(0, RECORD, below.number, 0),))
    mapper.create("bench2-dest", (Linear(0, below.size - RECORD, below.number, RECORD),))
    with open(mapper.get("bench2-meta").path, "wb", buffering=0) as record:
        record.write(bytes(RECORD * 512))
        os.fsync(record.fileno())
    command = ["/usr/lib/systemd/systemd-clonesetup", "add", "bench2-root"]
    command += [f"/dev/mapper/{name}" for name in ("bench-source", "bench2-dest", "bench2-meta")]
    # The default, spelled out: without a word the program wants none at all.
    subprocess.run([*command, "region-size=4K"], check=True, stdout=subprocess.DEVNULL)
    subprocess.run(["dmsetup", "mknodes"], check=True)
    names = clone.Names("bench2-root", "bench2-dest", "bench2-meta")
    found = rate(mapper, names)
    clone.disassemble(mapper, names)
    volumes.detach(runner, "bench2")
    return found


def in_memory() -> str:
    """A loop device over a file in memory."""
    path = Path(f"/tmp/bench-{time.monotonic_ns()}")
    with path.open("wb") as file:
        file.truncate(DISK)
    found = subprocess.run(["losetup", "--find", "--show", path], check=True, capture_output=True)
    return found.stdout.decode().strip()


def with_latency(count: int) -> list[str]:
    """Disks of the kernel's SCSI simulator: their content is in memory, and a timer ends each request."""
    subprocess.run(["modprobe", "sd_mod"], check=True)
    # A host of its own for each, or they would share one content.
    words = [f"add_host={count}", "per_host_store=1", f"dev_size_mb={DISK >> 20}"]
    subprocess.run(["modprobe", "scsi_debug", *words, "delay=0", f"ndelay={LATENCY}"], check=True)
    simulated = Path("/sys/bus/pseudo/drivers/scsi_debug").glob("adapter*/host*/target*/*/block/*")
    found = [f"/dev/{disk.name}" for disk in simulated]
    if len(found) != count:
        raise RuntimeError(f"the kernel made {found} of {count} disks")
    return found


def main(words: list[str]) -> None:
    global SOURCE
    alone = words in (["--memory"], ["--latency"])
    runner = SubprocessRunner(environment={"DM_DISABLE_UDEV": "1"} if alone else None)
    mapper = DeviceMapper(runner)
    if alone:
        SOURCE = 128 << 11
        disks = with_latency(3) if words == ["--latency"] else [in_memory() for _number in range(3)]
        source, first, second = disks
        with open(source, "r+b", buffering=0) as disk:
            disk.write(os.urandom(SOURCE * 512))
            os.fsync(disk.fileno())
    else:
        source, first, second = sealed_partition(), *map(os.path.realpath, words)
    stat = os.stat(source)
    number = f"{os.major(stat.st_rdev)}:{os.minor(stat.st_rdev)}"
    mapper.create("bench-source", (Linear(0, SOURCE, number, 0),), read_only=True)
    result = {"cvm.fde": ours(runner, mapper, first), "systemd-clonesetup": systemds(runner, mapper, second)}
    mapper.remove("bench-source")
    print(json.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1:])
