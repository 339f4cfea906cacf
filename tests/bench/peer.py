# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One task of ``luks2_volume`` beside a play written by hand with the modules that there are elsewhere.

As root, after ``make setup``, from the checkout::

    python -m tests.bench.peer --hosts 1 --hosts 20

Both plays lead to the same: a LUKS2 volume without authentication (``luks_device`` has none) with ext4, mounted, in
crypttab and fstab, a keyslot that the TPM opens, and a recovery key that is escrowed encrypted to a certificate. Each
is run twice: to make the volumes, and to find them made.

Every host is a mount namespace of one User-mode Linux guest, with a disk, a TPM and an /etc of its own, so that hosts
do not write into one another's tables; systemd does not run there, and neither play asks it to read them. They share
one processor. So the wall time of many hosts is that of one processor doing all of their work. Tasks and the processor
time of the control node do not depend on that; commands go to the guest by files, which costs it less than ssh does.

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
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.bench.peer_files import ask
from tests.integration import uml
from tests.lab.ansible import SETTINGS, inventory
from tests.lab.cache import BUILD
from tests.lab.disks import MIB
from tests.lab.peers import peers
from tests.lab.process import LabError
from tests.lab.volumes import escrow_certificate

FOLDER = BUILD / "bench"
HERE = Path(__file__).parent
PLAYS = {"luks2_volume": HERE / "peer_by_module.yml", "by hand": HERE / "peer_by_hand.yml"}
SIZE = 64 * MIB
#: How the hosts of the plays are told apart.
KINDS = "mh"
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
    names = {(kind, count): [f"{kind}{count}x{n}" for n in range(count)] for kind in KINDS for count in counts}
    outcomes = []
    with (
        tempfile.TemporaryDirectory(prefix="fde-peer-") as work,
        running([name for some in names.values() for name in some]) as guest,
    ):
        certificate = escrow_certificate(Path(work))
        for count in counts:
            for kind, (play, path) in zip(KINDS, PLAYS.items()):
                some = names[kind, count]
                hosts = _hosts(guest, some, certificate, Path(work))
                listed = inventory(Path(work) / "hosts.json", {"all": hosts})
                for what in ("make", "find made"):
                    outcomes.append(_run(play, path, listed, count, what, forks, Path(work)))
                _check(guest, some)
    return outcomes


@contextmanager
def running(names: list[str]) -> Iterator[Path]:
    """Let a guest with these hosts run; yield the directory that reaches it. Raises ``LabError``."""
    if why := uml.missing():
        raise LabError(why)
    tree = uml.tools_tree()
    assert tree is not None
    command = ["python3", "-m", "tests.bench.peer_inside", str(SIZE), *names]
    with tempfile.TemporaryDirectory(prefix="fde-exchange-") as place, ThreadPoolExecutor(1) as pool:
        exchange = Path(place)
        guest = uml.Guest(tree, memory="4096M", idle=7200, limit=7200)
        end = pool.submit(guest.run, command, exchange=exchange)
        try:
            while not (exchange / "ready").exists():
                _still_there(end)
                time.sleep(0.5)
            yield exchange
        finally:
            (exchange / "end").touch()


def _still_there(end: Future[uml.Outcome]) -> None:
    if end.done():
        raise LabError(f"the guest ended: {end.exception() or end.result().output[-3000:]}")


def _hosts(guest: Path, names: list[str], certificate: Path, work: Path) -> dict[str, dict[str, object]]:
    return {
        name: {
            "ansible_connection": "by_files",
            "ansible_host": str(guest),
            "ansible_python_interpreter": f"/run/hosts/{name}.python",
            "certificate": str(certificate),
            "escrow": str(work / "escrow"),
            "volume": name,
            "device": _device(name),
            "systemd_runs": False,
            "tpm2_device": f"swtpm:path=/run/hosts/{name}.tpm/socket",
        }
        for name in names
    }


def _device(name: str) -> str:
    return f"/dev/disk/by-id/bench-{name}"


def _run(play: str, path: Path, hosts: Path, count: int, what: str, forks: int, work: Path) -> Outcome:
    log = work / f"{path.stem}-{count}-{what.replace(' ', '-')}.log"
    program = str(Path(sys.executable).with_name("ansible-playbook"))
    words = [program, "-i", str(hosts), "--forks", str(forks), str(path)]
    paths = f"{SETTINGS['ANSIBLE_COLLECTIONS_PATH']}:{peers()}"
    environment = {**os.environ, **SETTINGS, "ANSIBLE_COLLECTIONS_PATH": paths}
    environment |= {"ANSIBLE_CONNECTION_PLUGINS": str(HERE / "peer_connection")}
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


def _check(guest: Path, names: list[str]) -> None:
    """Compare what the hosts have with what both plays are for; raises ``LabError``."""
    for name in names:
        asked = SAME_RESULT.format(volume=name, device=_device(name))
        status, out, err = ask(guest, f"nsenter --mount=/run/hosts/{name}.ns sh -c '{asked}'")
        if status:
            raise LabError(f"host {name} is not as it should be: {err.decode()}")
        said = out.decode()
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
