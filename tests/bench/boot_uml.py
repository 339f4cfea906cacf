# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The agent's first and later boot, and a first boot as systemd makes it, timed in one User-mode Linux guest.

python3 -m tests.bench.boot_uml         # inside of the guest; prints JSON
"""

from __future__ import annotations

import compileall
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ansible_collections.cvm.fde.plugins.module_utils.agent import archive
from cryptography.hazmat.primitives.asymmetric import rsa

from tests.attacks import stock_inside
from tests.crash.machine import ENVIRONMENT, instance

CORE = Path(__file__).resolve().parents[2] / "plugins/module_utils"
#: What the unit of the initrd runs, with the paths of the test's machine.
AGENT = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from cvm_fde.agent.boot import boot
from cvm_fde.agent.machine import Paths, this_machine
from cvm_fde.agent.process import SubprocessRunner
at = Path(sys.argv[2])
paths = Paths(command_line=str(at / "cmdline"), public_key=str(at / "public.pem"),
              signatures=str(at / "signatures.json"), state=at / "state", secure_boot=str(at / "SecureBoot"))
environment = {"DM_DISABLE_UDEV": "1", "SYSTEMD_FORCE_MEASURE": "1"}
boot(this_machine(SubprocessRunner(environment=environment), paths, sys.argv[3]))
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def compiled(target: Path) -> Path:
    """Write the agent's modules compiled, as the initrd has them."""
    for name, content in archive.unpack(archive.build(CORE)).items():
        path = target / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    compileall.compile_dir(target, quiet=1)
    return target


def agent(program: Path, machine: Any) -> dict[str, float]:
    """Run the agent once and return seconds, and MB of memory at its peak."""
    begun = time.monotonic()
    words = ["python3", "-B", "-c", AGENT, str(program), str(machine.directory), machine.tcti]
    process = subprocess.Popen(words, env={**os.environ, **ENVIRONMENT}, stdout=subprocess.PIPE)
    assert process.stdout is not None
    # Its own word: what wait4 says counts what the process was forked from.
    peak = int(process.stdout.read() or b"0")
    _pid, status, usage = os.wait4(process.pid, 0)
    assert status == 0, "the agent failed"
    return {
        "wall": round(time.monotonic() - begun, 2),
        "cpu": round(usage.ru_utime + usage.ru_stime, 2),
        "memory": round(peak * 1024 / 1e6, 1),
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
    """A partition of systemd-repart, opened by systemd-cryptsetup; with the clone it would be one program more."""
    steps: dict[str, dict[str, float]] = {}
    with stock_inside.stock(place) as machine:
        machine.image.unlink()
        (machine.directory / "repart.d/50-data.conf").unlink()
        (machine.directory / "repart.d").rmdir()
        with timed(steps, "systemd-repart"):
            machine.make()
        with timed(steps, "systemd-cryptsetup"), machine.opened() as done:
            assert done
    return steps


def main() -> int:
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        for name in ("sealed", "machine", "native"):
            (place / name).mkdir()
        program = compiled(place / "agent")
        sealed = instance.make_sealed(place / "sealed")
        machine = instance.make_lab(place / "machine", sealed, rsa.generate_private_key(65537, 2048))
        result: dict[str, Any] = {}
        for name in ("first_boot", "later_boot"):
            with machine.booting():
                result[name] = agent(program, machine)
        result["native"] = native(place / "native")
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
