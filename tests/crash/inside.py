# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The part of the crash matrix that runs inside the guest: record a scenario, and try power cuts of a recording.

python3 -m tests.crash.inside record SCENARIO DIRECTORY
python3 -m tests.crash.inside replay SCENARIO DIRECTORY CUTS RESULTS
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from ansible_collections.cvm.fde.plugins.module_utils.agent import strategy, strategy_overlay
from ansible_collections.cvm.fde.plugins.module_utils.dm import edges
from cryptography.hazmat.primitives.asymmetric import rsa

from . import log_writes, scenarios
from .aftermath import RECOVERY_KEY
from .machine import STATE, Lab, Log, instance, teardown_at_the_end
from .user import Outcome

#: What a partition of these sizes needs beside its file system, in bytes; the agent asks for what one of a TiB does.
_OVERHEAD = 8 << 20
#: What an instance has beside its disk and its TPM; not every one has a recovery key.
_FILES = ("cmdline", "public.pem", "SecureBoot", "signatures.json", RECOVERY_KEY)


def record(name: str, target: Path) -> None:
    """Record a scenario into ``target``: the disk at the start, the log, the states of the TPM."""
    scenario = scenarios.SCENARIOS[name]
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        (place / "sealed").mkdir()
        sealed = instance.make_sealed(place / "sealed", scenario.content)
        (place / "instance").mkdir()
        made = instance.make_lab(place / "instance", sealed, rsa.generate_private_key(65537, 2048), scenario.strategy)
        shutil.rmtree(place / "sealed")
        if scenario.prepare is not None:
            scenario.prepare(made.image)
        if scenario.before is not None:
            scenario.before(made)
        if (made.directory / STATE).exists():
            shutil.copyfile(made.directory / STATE, target / "tpm-0")
        _copy(made.image, target / "disk")
        _copy_files(made.directory, target)
        (target / "root-hash").write_text(made.root_hash)
        lab = scenario.recorded(made.directory, made.root_hash, recording=target)
        with lab.recorded() as log, filling_named(log):
            scenario.run(lab, log)
        _copy(made.directory / "log", target / "log")


def replay(name: str, recording: Path, chosen: Path, results: Path) -> None:
    """Try the cuts listed in ``chosen`` (JSON, in the order of time) and append a line to ``results`` for each."""
    scenario = scenarios.SCENARIOS[name]
    entries = tuple(log_writes.entries(recording / "log"))
    with tempfile.TemporaryDirectory() as directory:
        current = Path(directory) / "current"
        _copy(recording / "disk", current)
        disk = log_writes.Disk(recording / "log", entries, current)
        for line in json.loads(chosen.read_text()):
            cut = log_writes.Cut(line["after"], tuple(line["stray"]), line["torn"])
            begun = time.monotonic()
            disk.advance(cut.after)
            with tempfile.TemporaryDirectory(dir=directory) as place, teardown_at_the_end():
                lab = _instance(scenario, recording, Path(place), line["tpm"])
                _copy(current, lab.image)
                disk.stray(cut, lab.image)
                outcome, why = _one(scenario, lab, line["promised"], line["phase"])
            seconds = round(time.monotonic() - begun, 1)
            with results.open("a") as file:
                file.write(json.dumps({**line, "outcome": outcome, "why": why, "seconds": seconds}) + "\n")
            print(f"{line['phase']} {cut.after}+{len(cut.stray)}: {outcome} {seconds} s", flush=True)


def _instance(scenario: scenarios.Scenario, recording: Path, place: Path, tpm: int) -> Lab:
    """Return the machine of a recording, with the TPM as the power cut left it, and still without a disk."""
    lab = scenario.machine(place, (recording / "root-hash").read_text())
    _copy_files(recording, place)
    state = recording / f"tpm-{tpm}"
    if state.exists():
        shutil.copyfile(state, place / STATE)
    return lab


def _one(scenario: scenarios.Scenario, lab: Lab, promised: int, phase: str) -> tuple[str, str]:
    try:
        return scenario.after(lab, promised, phase).value, ""
    except Exception:  # whatever it is, the machine did not come up
        return Outcome.LOST.value, traceback.format_exc()


def _copy_files(source: Path, target: Path) -> None:
    for each in _FILES:
        if (source / each).exists():
            shutil.copyfile(source / each, target / each)


def _copy(source: Path, target: Path) -> None:
    instance.run("cp", "--sparse=always", str(source), str(target))


@contextlib.contextmanager
def filling_named(log: Log) -> Iterator[None]:
    """Name the time in which zeros are written in the log; they are written as ever."""

    def zero(*arguments: Any) -> None:
        log.label(log_writes.FILLING)
        written(*arguments)
        log.label("filled")

    written = edges.zero
    with mock.patch.object(edges, "zero", zero):
        yield


@contextlib.contextmanager
def small_volumes() -> Iterator[None]:
    """Let the agent be content with a disk on which a volume has little to spare."""
    with mock.patch.object(strategy, "OVERHEAD", _OVERHEAD), mock.patch.object(strategy_overlay, "OVERHEAD", _OVERHEAD):
        yield


def main() -> None:
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("record")
    one.add_argument("scenario", choices=scenarios.SCENARIOS)
    one.add_argument("directory", type=Path)
    two = commands.add_parser("replay")
    two.add_argument("scenario", choices=scenarios.SCENARIOS)
    for name in ("directory", "cuts", "results"):
        two.add_argument(name, type=Path)
    options = parser.parse_args()
    with small_volumes():
        if options.command == "record":
            record(options.scenario, options.directory)
        else:
            replay(options.scenario, options.directory, options.cuts, options.results)


if __name__ == "__main__":
    sys.exit(main())
