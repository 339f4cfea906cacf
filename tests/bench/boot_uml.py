# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The agent's first and later boot, and systemd's own first boot with a clone, timed in one guest of User-mode Linux.

python3 -m tests.bench.boot_uml         # inside of the guest; prints JSON, of each number the least of some rounds
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ansible_collections.cvm.fde.plugins.module_utils.agent import archive, initrd
from cryptography.hazmat.primitives.asymmetric import rsa

from tests.attacks import stock_inside
from tests.crash.machine import instance

CLONESETUP = "/usr/lib/systemd/systemd-clonesetup"
MIB = 1 << 20
#: Bytes of the native volume: room for the same root as the agent's; and sectors of its clone's record.
VOLUME, RECORD = 160 * MIB, 8 << 11
ROUNDS = 5
CORE = Path(__file__).resolve().parents[2] / "plugins/module_utils"
#: How the unit of the initrd runs Python, and what it runs: the command ``boot``, with the paths of the test's machine.
PYTHON = ("/usr/bin/python3", "-I", "-S", "-B")
AGENT = """
import sys
sys.path.insert(0, sys.argv[1])
from functools import partial
from pathlib import Path
from cvm_fde.agent import entry
from cvm_fde.agent.machine import Paths
at = Path(sys.argv[2])
paths = Paths(command_line=str(at / "cmdline"), public_key=str(at / "public.pem"),
              signatures=str(at / "signatures.json"), state=at / "state", secure_boot=str(at / "SecureBoot"))
entry.this_machine = partial(entry.this_machine, paths=paths, tcti=sys.argv[3])
environment = {"DM_DISABLE_UDEV": "1", "SYSTEMD_FORCE_MEASURE": "1"}
entry.SubprocessRunner = partial(entry.SubprocessRunner, environment=environment)
if entry.main(["boot"]) != 0:
    sys.exit("the boot is refused")
import json, resource
own = resource.getrusage(resource.RUSAGE_SELF)
peak = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
print("\\n" + json.dumps({"own": own.ru_utime + own.ru_stime, "peak": peak}))
"""


def installed(place: Path) -> Path:
    """Write the agent as it is in an initrd, by its own command, and return its directory."""
    program = place / "agent.pyz"
    program.write_bytes(archive.build(CORE))
    root = place / "initrd"
    for line in instance.run("python3", "-I", str(program), "initrd", str(root)).decode().splitlines():
        source, target = line.split("\t")
        if target.startswith(initrd.AGENT_DIRECTORY):
            shutil.copy(source, root / target.lstrip("/"))
    return root / initrd.AGENT_DIRECTORY.lstrip("/")


def agent(program: Path, machine: Any) -> dict[str, float]:
    """Run the agent once and return seconds, with and without the programs it starts, and its own MB at the peak."""
    begun = time.monotonic()
    words = [*PYTHON, "-c", AGENT, str(program), str(machine.directory), machine.tcti]
    process = subprocess.Popen(words, env={**os.environ, **instance.ENVIRONMENT}, stdout=subprocess.PIPE)
    assert process.stdout is not None
    # Its own word: what wait4 says counts what the process was forked from.
    told = process.stdout.read().splitlines()
    _pid, status, usage = os.wait4(process.pid, 0)
    assert status == 0, "the agent failed"
    itself = json.loads(told[-1])
    return {
        "wall": round(time.monotonic() - begun, 2),
        "cpu": round(usage.ru_utime + usage.ru_stime, 2),
        "own_cpu": round(itself["own"], 2),
        "memory": round(itself["peak"] * 1024 / 1e6, 1),
    }


@contextmanager
def timed(into: dict[str, dict[str, float]], name: str) -> Iterator[None]:
    """Note the wall and processor time of all programs that are run within."""
    before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    yield
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    into[name] = {"wall": round(time.monotonic() - begun, 2), "cpu": round(cpu, 2)}


def native(place: Path) -> dict[str, dict[str, float]]:
    """A partition of systemd-repart, opened by systemd-cryptsetup, and a clone of systemd-clonesetup in it.

    What clonetab wants as partitions, the slices of the volume, is made without being timed.
    """
    steps: dict[str, dict[str, float]] = {}
    with stock_inside.stock(place) as machine:
        machine.image.unlink()
        shutil.rmtree(machine.directory / "repart.d")
        definitions = machine.directory / "bench.d"
        definitions.mkdir()
        definition = f"[Partition]\nType=linux-generic\nEncrypt=tpm2\nSizeMinBytes={VOLUME}\n"
        (definitions / "50-bench.conf").write_text(definition)
        with machine.image.open("wb") as disk:
            disk.truncate(VOLUME + 32 * MIB)
        with timed(steps, "systemd-repart"):
            instance.run(
                *("systemd-repart", "--dry-run=no", "--empty=force", "--offline=yes", f"--definitions={definitions}"),
                *(f"--tpm2-device={machine.tpm.tcti}", str(machine.image)),
            )
        with machine.device() as device, loop(place / "source") as source:
            options = f"tpm2-device={machine.tpm.tcti},headless=yes"
            with timed(steps, "systemd-cryptsetup"):
                instance.run("/usr/bin/systemd-cryptsetup", "attach", stock_inside.NAME, device, "-", options)
            slices = cut_in_two(stock_inside.NAME)
            with timed(steps, "systemd-clonesetup"):
                instance.run(CLONESETUP, "add", "bench-root", source, *slices, "region-size=4K")
            instance.take_down()
    return steps


@contextmanager
def loop(path: Path) -> Iterator[str]:
    """Attach a new file as the image's root of the native clone."""
    with path.open("wb") as file:
        file.truncate(instance.ROOT_SIZE)
    device = instance.run("losetup", "--find", "--show", str(path)).decode().strip()
    try:
        yield device
    finally:
        instance.run("losetup", "--detach", device)


def cut_in_two(name: str) -> tuple[str, str]:
    """Make the two slices of an open volume that a clone wants, and return destination and record."""
    size = int(instance.run("blockdev", "--getsz", f"/dev/mapper/{name}"))
    for part, start, length in (("meta", 0, RECORD), ("dest", RECORD, size - RECORD)):
        instance.run("dmsetup", "create", f"bench-{part}", "--table", f"0 {length} linear /dev/mapper/{name} {start}")
    # What a new volume decrypts to is no empty record.
    with open("/dev/mapper/bench-meta", "r+b", buffering=0) as record:
        record.write(bytes(4096))
    return "/dev/mapper/bench-dest", "/dev/mapper/bench-meta"


def once(place: Path, program: Path) -> dict[str, Any]:
    """Make every boot once, in a new directory."""
    for name in ("sealed", "machine", "native"):
        (place / name).mkdir(parents=True)
    sealed = instance.make_sealed(place / "sealed")
    machine = instance.make_lab(place / "machine", sealed, rsa.generate_private_key(65537, 2048))
    result: dict[str, Any] = {}
    for name in ("first_boot", "later_boot"):
        with machine.booting():
            result[name] = agent(program, machine)
    return {**result, "native": native(place / "native")}


def least(results: Sequence[Any]) -> Any:
    """Return the least of each number: what the rest of the machine did meanwhile only makes them larger."""
    if isinstance(results[0], dict):
        return {name: least([each[name] for each in results]) for name in results[0]}
    return min(results)


def main() -> int:
    results = []
    with tempfile.TemporaryDirectory() as directory:
        program = installed(Path(directory))
        for number in range(ROUNDS):
            place = Path(directory) / f"round-{number}"
            results.append(once(place, program))
            shutil.rmtree(place)
    print(json.dumps({"rounds": ROUNDS, **least(results)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
