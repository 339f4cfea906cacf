# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The part of the crash matrix that runs inside the guest: record a scenario, and try power cuts of a recording.

python3 -m tests.crash.inside record SCENARIO DIRECTORY
python3 -m tests.crash.inside replay DIRECTORY CUTS RESULTS
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
import traceback
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import rsa

from tests.crash import log_writes, scenarios
from tests.crash.machine import STATE, Lab, RecordedLab, instance, teardown_at_the_end

#: What an instance has beside its disk and its TPM.
_FILES = ("cmdline", "public.pem", "SecureBoot", "signatures.json")


def record(name: str, target: Path) -> None:
    """Record a scenario into ``target``: the disk at the start, the log, the states of the TPM."""
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        (place / "sealed").mkdir()
        sealed = instance.make_sealed(place / "sealed", scenarios.CONTENT)
        (place / "instance").mkdir()
        signer = rsa.generate_private_key(65537, 2048)
        made = instance.make_lab(place / "instance", sealed, signer)
        _copy(made.image, target / "disk")
        for each in _FILES:
            shutil.copyfile(made.directory / each, target / each)
        (target / "root-hash").write_text(made.root_hash)
        lab = RecordedLab(made.directory, made.root_hash, recording=target)
        with lab.recorded() as log:
            scenarios.SCENARIOS[name](lab, log)
        _copy(made.directory / "log", target / "log")


def replay(recording: Path, chosen: Path, results: Path) -> None:
    """Try the cuts listed in ``chosen`` (JSON, in the order of time) and append a line to ``results`` for each."""
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
                outcome, why = _one(
                    _instance(recording, Path(place), disk, cut, current, line["tpm"]), line["promised"]
                )
            seconds = round(time.monotonic() - begun, 1)
            with results.open("a") as file:
                file.write(json.dumps({**line, "outcome": outcome, "why": why, "seconds": seconds}) + "\n")
            print(f"{line['phase']} {cut.after}+{len(cut.stray)}: {outcome} {seconds} s", flush=True)


def _instance(recording: Path, place: Path, disk: log_writes.Disk, cut: log_writes.Cut, current: Path, tpm: int) -> Lab:
    """Return the machine as the power cut left it."""
    lab = Lab(place, (recording / "root-hash").read_text())
    _copy(current, lab.image)
    disk.stray(cut, lab.image)
    for each in _FILES:
        shutil.copyfile(recording / each, place / each)
    if tpm:
        shutil.copyfile(recording / f"tpm-{tpm}", place / STATE)
    return lab


def _one(lab: Lab, promised: int) -> tuple[str, str]:
    try:
        return scenarios.after_the_cut(lab, promised).value, ""
    except Exception:  # whatever it is, the machine did not come up
        return scenarios.Outcome.LOST.value, traceback.format_exc()


def _copy(source: Path, target: Path) -> None:
    instance.run("cp", "--sparse=always", str(source), str(target))


def main() -> None:
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("record")
    one.add_argument("scenario", choices=scenarios.SCENARIOS)
    one.add_argument("directory", type=Path)
    two = commands.add_parser("replay")
    for name in ("directory", "cuts", "results"):
        two.add_argument(name, type=Path)
    options = parser.parse_args()
    if options.command == "record":
        record(options.scenario, options.directory)
    else:
        replay(options.directory, options.cuts, options.results)


if __name__ == "__main__":
    sys.exit(main())
