# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One task of ``luks2_volume`` beside a play written by hand with the modules that there are elsewhere.

As root, after ``make setup``, from the checkout::

    python -m tests.bench.peer --hosts 1 --hosts 20

Both plays lead to the same: a LUKS2 volume without authentication (``luks_device`` has none) with ext4, mounted, in
crypttab and fstab, a keyslot that the TPM opens, and a recovery key that is escrowed encrypted to a certificate. Each
is run twice: to make the volumes, and to find them made.

Every host is a mount namespace of one guest of the lab, with a disk and an /etc of its own, so that hosts do not write
into one another's tables; processor, TPM and systemd are shared. So the wall time of many hosts is that of two emulated
processors doing all of their work. Tasks and the processor time of the control node do not depend on that.

The peers' collections come from the package ``ansible`` of the Python package index, unpacked under ``build/``.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.lab.ansible import SETTINGS, inventory
from tests.lab.cache import BUILD
from tests.lab.disks import MIB, DataDisk
from tests.lab.guest import Guest, boot
from tests.lab.images import base_image
from tests.lab.peers import peers
from tests.lab.process import LabError
from tests.lab.volumes import PACKAGES, escrow_certificate

FOLDER = BUILD / "bench"
HERE = Path(__file__).parent
PLAYS = {"luks2_volume": HERE / "peer_by_module.yml", "by hand": HERE / "peer_by_hand.yml"}
SIZE = 64 * MIB
#: How disks and hosts of the plays are told apart.
KINDS = "mh"
#: A mount namespace with an /etc of its own, kept by a bind mount, and a Python that runs in it. In /run/cvm-fde lie
#: the lock and the header copies of one host. A host of its own has a systemd of its own: the one of the guest is asked
#: by one host at a time, for it drops the connections of those who wait while it reads its tables for another.
NAMESPACE = """
set -eu
at=/run/hosts
if ! mountpoint -q $at; then
    mkdir -p $at && mount -t tmpfs -o mode=0700 hosts $at && mount --make-private $at
    cp /usr/bin/systemctl $at/systemctl.real
    printf '#!/bin/sh\nexec flock %s.lock %s.real "$@"\n' $at/systemctl $at/systemctl >$at/systemctl
    chmod 0755 $at/systemctl
fi
for host in "$@"; do
    cp -a /etc "$at/$host.etc" && touch "$at/$host.ns"
    mkdir -p /run/cvm-fde "$at/$host.run"
    unshare --mount="$at/$host.ns" --propagation slave \
        sh -ec 'mount --bind "$0.etc" /etc; mount --bind "$0.run" /run/cvm-fde; mount --bind "$1" /usr/bin/systemctl' \
        "$at/$host" "$at/systemctl"
    printf '#!/bin/sh\\nexec nsenter --mount=%s.ns /usr/bin/python3 "$@"\\n' "$at/$host" >"$at/$host.python"
    chmod 0755 "$at/$host.python"
done
"""
#: What every host must have at the end, whichever play was run.
SAME_RESULT = (
    'findmnt -n -o SOURCE,FSTYPE /srv/{volume} && grep -c "^{volume} " /etc/crypttab && '
    "grep -c /srv/{volume} /etc/fstab && cryptsetup luksDump --dump-json-metadata {device}"
)


@dataclass(frozen=True)
class Outcome:
    """What one run of one play cost. Times in seconds; ``processor`` is that of the control node."""

    play: str
    hosts: int
    run: str
    tasks: int
    wall: float
    processor: float
    changed: int


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.bench.peer", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--hosts", type=int, action="append", help="how many hosts (default: 1 and 20; repeat it)")
    parser.add_argument("--forks", type=int, default=10)
    args = parser.parse_args()
    try:
        outcomes = measure(sorted(set(args.hosts or (1, 20))), args.forks)
    except LabError as error:
        print(f"peer: {error}", file=sys.stderr)
        return 1
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / "peer.json").write_text(json.dumps([asdict(outcome) for outcome in outcomes], indent=1))
    print(table(outcomes))
    return 0


def measure(counts: list[int], forks: int) -> list[Outcome]:
    """Run both plays for every number of hosts, each on disks that were never used."""
    serials = [f"{kind}-{count}-{n}" for kind in KINDS for count in counts for n in range(count)]
    needed = [DataDisk(SIZE, "scsi", 512, serial) for serial in serials]
    guest = Guest.create("bench-peer", base_image(more=PACKAGES), cpus=2, memory=4096, disks=needed)
    work = guest.folder / "work"
    work.mkdir()
    certificate = escrow_certificate(work)
    outcomes = []
    try:
        boot(guest)
        for count in counts:
            for kind, (play, path) in zip(KINDS, PLAYS.items()):
                names = [f"{kind}{count}x{n}" for n in range(count)]
                guest.ssh(f"sh -s {' '.join(names)}", stdin=NAMESPACE.encode())
                disks = [disk for disk in needed if disk.serial.startswith(f"{kind}-{count}-")]
                hosts = inventory(work / "hosts.json", {"all": _hosts(guest, names, disks, certificate, work)})
                for what in ("make", "find made"):
                    outcomes.append(_run(play, path, hosts, count, what, forks, work))
                _check(guest, names, disks)
    finally:
        guest.power_off()
    guest.delete()
    return outcomes


def _hosts(
    guest: Guest, names: list[str], disks: list[DataDisk], certificate: Path, work: Path
) -> dict[str, dict[str, object]]:
    shared = {**guest.inventory(), "certificate": str(certificate), "escrow": str(work / "escrow")}
    return {
        name: {
            **shared,
            "volume": name,
            "device": disk.by_id,
            "ansible_python_interpreter": f"/run/hosts/{name}.python",
        }
        for name, disk in zip(names, disks)
    }


def _run(play: str, path: Path, hosts: Path, count: int, what: str, forks: int, work: Path) -> Outcome:
    log = work / f"{path.stem}-{count}-{what.replace(' ', '-')}.log"
    program = str(Path(sys.executable).with_name("ansible-playbook"))
    words = [program, "-i", str(hosts), "--forks", str(forks), str(path)]
    paths = f"{SETTINGS['ANSIBLE_COLLECTIONS_PATH']}:{peers()}"
    environment = {**os.environ, **SETTINGS, "ANSIBLE_COLLECTIONS_PATH": paths, "ANSIBLE_PIPELINING": "True"}
    before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    with open(log, "wb") as sink:
        status = subprocess.call(words, env=environment, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink)
    wall, after = time.monotonic() - begun, resource.getrusage(resource.RUSAGE_CHILDREN)
    said = log.read_text(errors="replace")
    if status:
        raise LabError(f"{path.name} ended with status {status}:\n{said[-3000:]}")
    changed = sum(int(number) for number in re.findall(r"changed=(\d+)", said))
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    outcome = Outcome(play, count, what, _tasks(path), wall, processor, changed)
    print(outcome, file=sys.stderr, flush=True)
    return outcome


def _tasks(path: Path) -> int:
    """Count the tasks that somebody had to write, those in blocks included."""

    def count(tasks: list[dict[str, Any]]) -> int:
        return sum(count(task["block"]) if "block" in task else 1 for task in tasks)

    return sum(count(play["tasks"]) for play in yaml.safe_load(path.read_text()))


def _check(guest: Guest, names: list[str], disks: list[DataDisk]) -> None:
    """Compare what the hosts have with what both plays are for; raises ``GuestError`` or ``LabError``."""
    for name, disk in zip(names, disks):
        inside = f"nsenter --mount=/run/hosts/{name}.ns sh -c '{SAME_RESULT.format(volume=name, device=disk.by_id)}'"
        said = guest.ssh(inside).stdout
        source, crypttab, fstab, header = said.split("\n", 3)
        known = json.loads(header)
        kinds = sorted(token["type"] for token in known["tokens"].values())
        if source.split() != [f"/dev/mapper/{name}", "ext4"] or (crypttab, fstab) != ("1", "1"):
            raise LabError(f"host {name} is not as it should be: {said}")
        if not {"systemd-recovery", "systemd-tpm2"} <= set(kinds) or len(known["keyslots"]) != 2:
            raise LabError(f"volume {name} is not unlocked as it should be: {kinds}, {sorted(known['keyslots'])}")


def table(outcomes: list[Outcome]) -> str:
    """Return a line for each run, and what the play by hand costs as a multiple of the module's."""
    lines = [f"{'play':14}{'hosts':>6}  {'run':10}{'tasks':>6}{'wall':>9}{'CPU of control node':>21}{'changed':>9}"]
    for one in outcomes:
        lines.append(
            f"{one.play:14}{one.hosts:>6}  {one.run:10}{one.tasks:>6}{one.wall:>7.0f} s{one.processor:>19.1f} s"
            f"{one.changed:>9}"
        )
    by_key = {(one.play, one.hosts, one.run): one for one in outcomes}
    ours, theirs = PLAYS
    for (play, hosts, what), one in by_key.items():
        if play == ours:
            other = by_key[theirs, hosts, what]
            lines.append(
                f"by hand / module, {hosts} host(s), {what}: tasks {other.tasks / one.tasks:.0f}, "
                f"wall {other.wall / one.wall:.1f}, CPU {other.processor / one.processor:.1f}"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
