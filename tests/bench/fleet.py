# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What attesting a fleet costs the control node, beside the same asked for in ten tasks of stock modules.

After ``make setup``, from the checkout::

    python -m tests.bench.fleet --hosts 100

Every host is a software TPM of its own behind Ansible's local connection. So both sides of the connection share the
processors, and their time is told apart: what runs for a host, where its Python is started, is the host's; all other
processor time is the control node's. Hosts a minute are what two cores would do for the control node alone, besides
what the clock showed for both sides on this machine.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parents[2]
COLLECTIONS = CHECKOUT / "build/collections"
sys.path.insert(0, str(COLLECTIONS))

from ansible_collections.cvm.fde.tests.hostile.watch import MIB, watched  # noqa: E402
from ansible_collections.cvm.fde.tests.unit.plugins.conftest import Image, Machine, make_authority  # noqa: E402

#: Hosts a minute and two cores for one phase: the goal, and what one task of a stock module reaches.
GOAL, STOCK = 1000, 225
CORES = 2
_PYTHON = """#!/bin/sh
{python} "$@"
status=$?
times >> {spent}
exit $status
"""


def make_fleet(folder: Path, count: int, image: Image) -> list[Machine]:
    """Make the machines and boot them for the first time."""
    authority = make_authority(folder / "authority")

    def make(number: int) -> Machine:
        place = folder / f"m{number}"
        place.mkdir()
        machine = Machine(place, authority, name=f"machine {number}")
        machine.boot(image, first=True)
        machine.write_header()
        return machine

    # The first one alone: the authority's list of serial numbers is made by it.
    first = make(0)
    with ThreadPoolExecutor(2 * (os.cpu_count() or 1)) as pool:
        return [first, *pool.map(make, range(1, count))]


def inventory(folder: Path, machines: list[Machine], spent: Path) -> Path:
    """Write an inventory whose hosts keep account of their processor time in ``spent``."""
    python = folder / "python"
    python.write_text(_PYTHON.format(python=sys.executable, spent=spent))
    python.chmod(0o755)
    hosts = {
        machine.folder.name: {
            "ansible_connection": "local",
            "ansible_python_interpreter": str(python),
            "attest_tcti": machine.tcti,
            "attest_firmware_log": str(machine.firmware_log),
            "attest_userspace_log": str(machine.userspace_log),
            "attest_header": str(machine.folder / "header"),
            "there": str(machine.folder),
        }
        for machine in machines
    }
    path = folder / "inventory.json"
    path.write_text(json.dumps({"machines": {"hosts": hosts}}))
    return path


def _seconds(text: str) -> float:
    """Return what a shell's ``times`` prints, 1m2.5s, in seconds."""
    minutes, rest = text.split("m")
    return 60 * float(minutes) + float(rest.rstrip("s"))


def measured(playbook: Path, hosts: int, words: list[Any], spent: Path, log: Path) -> dict[str, Any]:
    """Run a playbook and say what it cost each side."""
    spent.write_text("")
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    environment = {"ANSIBLE_COLLECTIONS_PATH": str(COLLECTIONS), "ANSIBLE_HOME": str(log.parent / "home")}
    program = Path(sys.executable).with_name("ansible-playbook")
    run = watched([program, playbook, *words], environment, log)
    clock, after = time.monotonic() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    total = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    theirs = sum(_seconds(part) for line in spent.read_text().splitlines() for part in line.split())
    if run.status != 0:
        raise RuntimeError(f"{playbook.name} failed:\n{run.output[-4000:]}")
    ours = total - theirs
    return {
        "clock_s": round(clock, 1),
        "clock_ms_per_host": round(1000 * clock / hosts, 1),
        "hosts_per_minute_here": round(60 * hosts / clock, 1),
        "control_node_cpu_s": round(ours, 1),
        "hosts_cpu_s": round(theirs, 1),
        "control_node_cpu_ms_per_host": round(1000 * ours / hosts, 1),
        "hosts_cpu_ms_per_host": round(1000 * theirs / hosts, 1),
        "hosts_per_minute": round(60 * CORES * hosts / ours),
        "memory_mib": round(run.together / MIB),
        "main_mib": round(run.main / MIB),
    }


def compared(count: int, forks: int, folder: Path, part: int) -> dict[str, Any]:
    """Make a fleet, attest it, and ask the first ``part`` of its hosts by hand."""
    image = Image()
    machines = make_fleet(folder, count, image)
    try:
        spent = folder / "spent"
        common = ["-i", inventory(folder, machines, spent), "--forks", forks]
        manifest, key = image.signed_manifest(folder)
        values = {
            "fde_manifest": str(manifest),
            "fde_manifest_key": str(key),
            "fde_endorsement_ca": [str(folder / "authority/ca.pem")],
            "kept": str(folder / "kept"),
        }
        common += ["-e", json.dumps(values)]
        found: dict[str, Any] = {
            "hosts": count,
            "by_hand_hosts": part,
            "forks": forks,
            "goal_hosts_per_minute": GOAL,
            "stock_task": STOCK,
        }
        attest, by_hand = CHECKOUT / "playbooks/attest.yml", Path(__file__).with_name("fleet_by_hand.yml")
        found["attest"] = measured(attest, count, common, spent, folder / "attest.log")
        chosen = ["--limit", ",".join(machine.folder.name for machine in machines[:part])]
        found["by_hand"] = measured(by_hand, part, [*common, *chosen], spent, folder / "by_hand.log")
    finally:
        for machine in machines:
            machine.stop()
    ours, theirs = found["attest"], found["by_hand"]
    for name in ("clock_ms_per_host", "control_node_cpu_ms_per_host", "memory_mib"):
        found[f"{name}_ratio"] = round(theirs[name] / ours[name], 2)
    return found


def table(found: dict[str, Any]) -> str:
    """Return the results as text."""
    rows = {
        "hosts/min, two cores of the control node": "hosts_per_minute",
        "hosts/min, both sides on this machine": "hosts_per_minute_here",
        "control node, CPU ms a host": "control_node_cpu_ms_per_host",
        "hosts, CPU ms a host": "hosts_cpu_ms_per_host",
        "control node, memory MiB": "memory_mib",
        "of that the main process": "main_mib",
    }
    lines = [
        f"{found['hosts']} hosts ({found['by_hand_hosts']} by hand), {found['forks']} forks "
        f"(goal {GOAL} hosts/min on two cores, one stock task: {STOCK})",
        f"{'':44}{'attest.yml':>12}{'ten tasks':>12}",
    ]
    for text, name in rows.items():
        lines.append(f"{text:44}{found['attest'][name]:>12,}{found['by_hand'][name]:>12,}")
    lines.append(
        f"ten tasks cost {found['control_node_cpu_ms_per_host_ratio']} times the processor time, "
        f"{found['clock_ms_per_host_ratio']} times the time by the clock, and check less"
    )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.bench.fleet", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--hosts", type=int, default=100)
    parser.add_argument("--by-hand", type=int, metavar="HOSTS", help="how many to ask by hand (default: all)")
    parser.add_argument("--forks", type=int, default=50)
    parser.add_argument("--json", metavar="FILE", help="write the results there as JSON; - is standard output")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="fde-fleet-"))
    try:
        found = compared(options.hosts, options.forks, folder, min(options.by_hand or options.hosts, options.hosts))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if options.json == "-":
        print(json.dumps(found))
        return 0
    if options.json:
        Path(options.json).write_text(json.dumps(found, indent=2) + "\n")
    print(table(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
