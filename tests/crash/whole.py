# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Power cuts of whole machines: real firmware, real systemd, from power on to a root that is complete.

    python -m tests.crash.whole [--cuts NUMBER] [--strategy NAME] [--keep]

One guest lives its first boot in QEMU, while its user has files promised to it. QEMU logs every write of the root disk
with the flushes among them (blklogwrites, the format of dm-log-writes), and what the TPM keeps is copied whenever it
changes, with the length of that log. Then, for each cut, a machine is put together as a power cut would have left it,
with what was flushed, a part of what was not, and the TPM of that moment; and boots to login. The last line is the
result as JSON; the exit status is 1 when something was lost.
"""

from __future__ import annotations

import argparse
import collections
import json
import math
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..lab.guest import GIB, Guest, GuestError, boot
from ..lab.process import run
from ..lab.progress import say
from ..lab.sealed import Sealed, sealed_image
from ..lab.upkeep import LIMIT, settled
from . import log_writes
from .matrix import spread

LOG = "writes.log"
#: Where swtpm keeps what survives a power cut, below the folder of its state.
KEPT = "tpm2-00.permall"
#: A pause between two looks at the TPM's file, in seconds; the agent needs longer from its answer to the next write.
_GLANCE = 0.001
SIZE = 5 * GIB
#: The least number of promises in a recording.
FEW = 3
#: A promise: a file, and the directory entry that leads to it.
_PROMISE = "cd /srv && seq {n} 20000 > promised-{n} && sync promised-{n} . && sha256sum promised-{n}"


@dataclass
class Recording:
    """What a guest's first boot left: the writes of its disk, and beside them what became durable elsewhere.

    ``tpm`` and ``promised`` hold, in the order of time, the length of the log at that moment.
    """

    guest: Guest
    tpm: list[tuple[int, bytes]] = field(default_factory=list)
    promised: list[tuple[int, str]] = field(default_factory=list)
    volume_key: str = ""

    @property
    def log(self) -> Path:
        return self.guest.folder / LOG

    def now(self) -> int:
        """Return how long the log is."""
        return self.log.stat().st_size

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Keep every state of the TPM."""
        stop, path = threading.Event(), self.guest.tpm_state / KEPT
        self.tpm.append((0, path.read_bytes()))

        def watch() -> None:
            seen = path.stat()
            while not stop.wait(_GLANCE):
                try:
                    found = path.stat()
                    if (found.st_ino, found.st_mtime_ns) != (seen.st_ino, seen.st_mtime_ns):
                        self.tpm.append((self.now(), path.read_bytes()))
                        seen = found
                except FileNotFoundError:
                    continue

        watching = threading.Thread(target=watch)
        watching.start()
        try:
            yield
        finally:
            stop.set()
            watching.join()

    def cuts(self) -> list[Moment]:
        """Return every cut that can be made."""
        return list(moments(self.log, [at for at, _ in self.tpm], [at for at, _ in self.promised]))


@dataclass(frozen=True)
class Moment:
    """A cut, the number of the TPM's state at that moment, and how many promises had been made."""

    cut: log_writes.Cut
    tpm: int
    promised: int


def moments(log: Path, tpm: Sequence[int], promised: Sequence[int]) -> Iterator[Moment]:
    """Yield the cuts of a log; ``tpm`` and ``promised`` are its lengths when the TPM changed and a promise was made."""
    listed = tuple(log_writes.entries(log))
    for cut in log_writes.cuts(listed):
        length = _end(listed[cut.after - 1])
        state = sum(at <= length for at in tpm)
        # What was written after the TPM changed cannot be there before it.
        before = tpm[state] if state < len(tpm) else math.inf
        stray = tuple(number for number in cut.stray if _end(listed[number]) <= before)
        if cut.stray and not stray:
            continue
        torn = cut.torn if stray == cut.stray else None
        yield Moment(replace(cut, stray=stray, torn=torn), state - 1, sum(at <= length for at in promised))


def _end(entry: log_writes.Entry) -> int:
    """Return how long the log is once it has this entry."""
    return entry.data + (0 if entry.discard else entry.length)


def record(sealed: Sealed, name: str) -> Recording:
    """Let a new guest of the image live until its root fills its volume, and has made a few promises."""
    recording = Recording(Guest.create(name, sealed.image, size=SIZE, log=LOG))
    try:
        _live(recording)
    finally:
        recording.guest.power_off()
    return recording


def _live(recording: Recording) -> None:
    guest = recording.guest
    with recording.watched():
        boot(guest)
        end = time.monotonic() + LIMIT
        while time.monotonic() < end:
            told = guest.ssh(_PROMISE.format(n=len(recording.promised) + 1)).stdout
            recording.promised.append((recording.now(), told))
            if len(recording.promised) >= FEW and settled(guest):
                break
            time.sleep(10)
        else:
            raise GuestError(guest, f"is not complete after {LIMIT} s")
        recording.volume_key = _anchor(guest)["volume_key_id"]
        guest.shut_down()


def _anchor(guest: Guest) -> dict[str, Any]:
    anchor = json.loads(guest.ssh("/usr/lib/cvm-fde/agent.pyz status").stdout)["anchor"]
    assert isinstance(anchor, dict)
    return anchor


def replay(recording: Recording, sealed: Sealed, chosen: Sequence[Moment]) -> Iterator[dict[str, Any]]:
    """Put a machine together for each of the cuts, boot it, and yield what became of it."""
    listed = tuple(log_writes.entries(recording.log))
    twin = Guest.create(f"{recording.guest.name}-cut", sealed.image, size=SIZE)
    forward = twin.folder / "forward.raw"
    run(["cp", "--sparse=always", "--reflink=auto", twin.disk, forward])
    disk = log_writes.Disk(recording.log, listed, forward)
    variables = twin.variables.read_bytes()
    try:
        for one in chosen:
            cut = one.cut
            disk.advance(cut.after)
            run(["cp", "--sparse=always", "--reflink=auto", forward, twin.disk])
            disk.stray(cut, twin.disk)
            twin.variables.write_bytes(variables)
            (twin.tpm_state / KEPT).write_bytes(recording.tpm[one.tpm][1])
            outcome, why = _outcome(twin, recording, one.promised)
            twin.power_off()
            say(f"cut after entry {cut.after} of {len(listed)}: {outcome} {why}".rstrip())
            yield {"after": cut.after, "outcome": outcome, "why": why}
    finally:
        twin.delete()


def _outcome(twin: Guest, recording: Recording, promised: int) -> tuple[str, str]:
    """Boot the machine, and return whether it continued, restarted or lost something, and what."""
    try:
        boot(twin)
        for number, (_, told) in enumerate(recording.promised[:promised], 1):
            found = twin.ssh(f"cd /srv && sha256sum promised-{number}", check=False).stdout
            if found != told:
                return "lost", f"what was promised as promised-{number} is not there: {found!r}"
        if failed := twin.ssh("systemctl --failed --no-legend --plain").stdout:
            return "lost", f"units failed: {failed}"
        return ("continued" if _anchor(twin)["volume_key_id"] == recording.volume_key else "restarted"), ""
    except GuestError as error:
        return "lost", str(error)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.crash.whole", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--cuts", type=int, default=12, help="try so many cuts, evenly spread (12)")
    parser.add_argument("--strategy", choices=("clone", "copy", "overlay"), default="clone")
    parser.add_argument("--keep", action="store_true", help="keep the guest that was recorded")
    options = parser.parse_args(arguments)
    begun = time.monotonic()
    sealed = sealed_image(strategy=None if options.strategy == "clone" else options.strategy)
    recording = record(sealed, f"crash-{options.strategy}")
    try:
        cuts = recording.cuts()
        say(f"{len(cuts)} moments to cut at, {len(recording.tpm)} states of the TPM")
        results = list(replay(recording, sealed, spread(cuts, options.cuts)))
    finally:
        if not options.keep:
            recording.guest.delete()
    counted = collections.Counter(one["outcome"] for one in results)
    for one in results:
        if one["outcome"] == "lost":
            print(f"lost: after entry {one['after']}:\n{one['why']}")
    outcomes = {outcome: counted[outcome] for outcome in ("continued", "restarted", "lost")}
    print(json.dumps({"cut_points": len(results), **outcomes, "seconds": round(time.monotonic() - begun)}))
    return 1 if counted["lost"] or not results else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
