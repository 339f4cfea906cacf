# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The crash matrix: cut the power behind every write barrier of a scenario, and see that the machine comes back.

    python -m tests.crash.matrix [--sample CUTS] [--scenario NAME]... [--keep DIRECTORY]

Each scenario is recorded once in a User-mode Linux guest. Then, for each cut, the disk and the TPM are put together as
the power cut would have left them, and the machine boots again; two guests share the cuts. The last line of the output
is the result as JSON; the exit status is 1 when something was lost, and 2 when a run of the whole matrix found too few
moments to cut at: then the recordings are not what they were.
"""

from __future__ import annotations

import argparse
import collections
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from ..integration import uml
from . import log_writes

#: Also in scenarios.py, which only a guest can import.
SCENARIOS = ("life", "copy", "overlay", "header", "commit", "recovery", "data-volume")
#: Also in user.py.
OUTCOMES = ("continued", "restarted", "recovered", "lost")
GUESTS = 2
#: Fewer cuts are not the whole matrix.
LEAST = 500
#: Of the cuts while zeros are written where nothing is yet, one in so many is made: dm-integrity's journal, which is
#: small on a small volume, flushes a dozen times a MiB there, and all of these moments are alike. Odd, for cuts
#: behind a barrier and among what follows it take turns.
ZEROS = 7
_T = TypeVar("_T")


class MatrixError(Exception):
    """The matrix itself could not be made; it says nothing about the machine."""


class Died(MatrixError):
    """A guest hung or died: that can be what is tested."""


class Hung(Died):
    """A guest fell silent."""


def listed(recording: Path) -> Iterator[dict[str, Any]]:
    """Yield the cuts of a recording, each with what is known of its moment."""
    entries = tuple(log_writes.entries(recording / "log"))
    marks = {"phase": "", "step": "", "tpm": 0, "promised": 0}
    position = alike = 0
    for cut in log_writes.cuts(entries):
        for entry in entries[position : cut.after]:
            marks |= _meaning(entry.mark or "")
        position = cut.after
        alike = alike + 1 if marks["step"] == log_writes.FILLING else 0
        if alike % ZEROS == 0:
            yield {"after": cut.after, "stray": cut.stray, "torn": cut.torn, **marks}


def _meaning(mark: str) -> dict[str, Any]:
    if mark.startswith(log_writes.LABEL):
        label = mark.removeprefix(log_writes.LABEL)
        return {"phase": label.removeprefix("phase_"), "step": ""} if label.startswith("phase_") else {"step": label}
    name, _line, number = mark.partition("_")
    return {name: int(number)} if name in ("tpm", "promised") and number.isdigit() else {}


def sample(cuts: Sequence[dict[str, Any]], wanted: int) -> list[dict[str, Any]]:
    """Return ``wanted`` of the cuts in their order: the middle one of each phase, the others spread evenly.

    There are more of them where there are more phases. What comes before the first phase is none.
    """
    phases = collections.defaultdict(list)
    for number, cut in enumerate(cuts):
        phases[cut["phase"]].append(number)
    phases.pop("", None)
    middle = {numbers[len(numbers) // 2] for numbers in phases.values()}
    others = [number for number in range(len(cuts)) if number not in middle]
    return [cuts[number] for number in sorted({*middle, *spread(others, max(0, wanted - len(middle)))})]


def spread(cuts: Sequence[_T], wanted: int) -> list[_T]:
    """Return ``wanted`` of the cuts, spread evenly."""
    if wanted >= len(cuts):
        return list(cuts)
    return [cuts[(2 * number + 1) * len(cuts) // (2 * wanted)] for number in range(wanted)]


def record_all(scenarios: Sequence[str], directory: Path) -> None:
    """Record scenarios, each into a directory of its name. Raises ``MatrixError``."""
    with ThreadPoolExecutor(GUESTS) as pool:
        list(pool.map(lambda name: record(name, directory / name), scenarios))


def record(scenario: str, directory: Path) -> None:
    """Record a scenario into a new directory. Raises ``MatrixError``."""
    command = ["python3", "-m", "tests.crash.inside", "record", scenario, str(directory)]
    try:
        directory.mkdir()
        # Disk and log are in memory there, every write of the volume twice: dm-integrity has a journal.
        _guest(command, {directory: True}, memory="6144M")
    except Hung as error:
        print(f"recording {scenario} again: {error}", flush=True)
        shutil.rmtree(directory)
        directory.mkdir()
        _guest(command, {directory: True}, memory="6144M")


def replay(recording: Path, chosen: Sequence[dict[str, Any]], guests: int = GUESTS) -> list[dict[str, Any]]:
    """Try the cuts in that many guests and return their results. Raises ``MatrixError``."""
    parts = [list(chosen[number::guests]) for number in range(guests)]
    with ThreadPoolExecutor(guests) as pool:
        return [one for results in pool.map(lambda part: _replay(recording, part), parts) for one in results]


def _replay(recording: Path, chosen: list[dict[str, Any]]) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory(prefix="fde-crash-") as name:
        results, cuts = Path(name) / "results.jsonl", Path(name) / "cuts.json"
        done: list[dict[str, Any]] = []
        again: list[int] = []
        while len(done) < len(chosen):
            cuts.write_text(json.dumps(chosen[len(done) :]))
            command = [
                "python3",
                "-m",
                "tests.crash.inside",
                "replay",
                recording.name,
                str(recording),
                str(cuts),
                str(results),
            ]
            try:
                _guest(command, {recording: False, Path(name): True})
            except Died as error:
                # The machine that hung or died is the one under test: that cut is lost, the others go on.
                found = _lines(results)
                if len(found) == len(chosen):
                    done = found
                    break
                if isinstance(error, Hung) and len(found) not in again:
                    again.append(len(found))
                    print(f"trying {chosen[again[-1]]} again: {error}", flush=True)
                    done = found
                    continue
                with results.open("a") as file:
                    failed = {**chosen[len(found)], "outcome": "lost", "why": str(error), "seconds": 0}
                    file.write(json.dumps(failed) + "\n")
            if len(found := _lines(results)) == len(done):
                raise MatrixError("a guest ended without any result")
            done = found
    for number in again:
        done[number]["again"] = True
    return done


def _lines(results: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []


def _guest(command: list[str], shares: dict[Path, bool], memory: str = "2048M") -> None:
    tree = uml.tools_tree()
    assert tree is not None
    # A recording says nothing until it is complete.
    guest = uml.Guest(tree, shares=shares, idle=900.0, limit=6 * 3600.0, memory=memory)
    with tempfile.TemporaryDirectory(prefix="fde-exchange-") as exchange:
        try:
            outcome = guest.run(command, exchange=Path(exchange), echo=True)
        except uml.Silent as error:
            raise Hung(str(error)) from error
        except uml.GuestError as error:
            raise Died(str(error)) from error
    if outcome.status != 0:
        raise MatrixError(f"{' '.join(command)} ended with status {outcome.status}:\n{outcome.output[-4000:]}")


def run(options: argparse.Namespace, directory: Path) -> dict[str, Any]:
    """Record and try the scenarios; return the numbers, with what was lost under ``failures``."""
    scenarios = options.scenario or SCENARIOS
    record_all(scenarios, directory)
    results = []
    for name in scenarios:
        cuts = [cut for cut in listed(directory / name) if options.phase in (None, cut["phase"])]
        chosen = cuts if options.sample is None else sample(cuts, options.sample // len(scenarios))
        found = replay(directory / name, chosen, options.guests)
        phases = collections.Counter((one["phase"], one["outcome"]) for one in found)
        for (phase, outcome), count in sorted(phases.items()):
            print(f"{name:14} {phase:16} {outcome:10} {count:5}", flush=True)
        results += [{"scenario": name, **one} for one in found]
    counted = collections.Counter(one["outcome"] for one in results)
    return {
        "cut_points": len(results),
        **{outcome: counted[outcome] for outcome in OUTCOMES},
        # Of these, cuts that were tried twice, because a guest fell silent.
        "again": sum("again" in one for one in results),
        "failures": [one for one in results if one["outcome"] == "lost"],
    }


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.crash.matrix", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--sample", type=int, metavar="CUTS", help="try only so many cuts, but one of each phase")
    parser.add_argument("--scenario", action="append", choices=SCENARIOS, help="only this scenario")
    parser.add_argument("--keep", type=Path, help="a new directory that keeps the recordings and what was lost")
    parser.add_argument("--guests", type=int, default=GUESTS, help="guests that share the cuts")
    parser.add_argument("--phase", help="only cuts of this phase")
    options = parser.parse_args(arguments)
    if why := uml.missing():
        parser.error(why)
    directory = options.keep or Path(tempfile.mkdtemp(prefix="fde-crash-"))
    directory.mkdir(exist_ok=True)
    begun = time.monotonic()
    try:
        result = run(options, directory)
    finally:
        if options.keep is None:
            shutil.rmtree(directory)
    failures = result.pop("failures")
    if options.keep is not None:
        (directory / "lost.json").write_text(json.dumps(failures, indent=1))
    for one in failures:
        print(
            f"lost: {one['scenario']} {one['phase']}, after entry {one['after']}, during {one['step']}:\n{one['why']}"
        )
    whole = options.sample is None and options.scenario is None and options.phase is None
    if too_few := whole and result["cut_points"] < LEAST:
        print(f"only {result['cut_points']} cuts were found, {LEAST} are the least that count as all")
    print(json.dumps({**result, "seconds": round(time.monotonic() - begun)}))
    return 1 if failures else 2 if too_few else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
