# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What judging costs: quotes, logs and whole hosts a second, beside one call of tpm2-tools' tpm2_checkquote for each.

After ``make setup``, from the checkout::

    python -m tests.bench.appraisal              # a table
    python -m tests.bench.appraisal --json -     # one JSON object, and nothing else

Quotes and logs are those of real machines where they are at hand (``FDE_TEST_VECTORS``), otherwise those of a software
TPM; which of both is said. Rates for one core are per second of processor time, so that other work on the machine does
not count; those for all cores are per second of the clock. Every call of ``tpm2_checkquote`` judges one quote of the
same kind; its time is its processor time as well.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Callable, Optional

CHECKOUT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(CHECKOUT / "build/collections"))

from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal import event_log  # noqa: E402
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.credential import make_credential  # noqa: E402
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.documents import parse_json  # noqa: E402
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.evidence import (  # noqa: E402
    parse_evidence,
    parse_identity,
)
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.judgement import Verdict, appraise  # noqa: E402
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.replay import LogCache, replay  # noqa: E402
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.structures import (  # noqa: E402
    PublicArea,
    parse_public,
)
from ansible_collections.cvm.fde.tests.fuzz.appraisal import JSON_LIMIT, honest  # noqa: E402
from ansible_collections.cvm.fde.tests.fuzz.target import SEEDS  # noqa: E402
from ansible_collections.cvm.fde.tests.unit.plugins.plugin_utils.appraisal.captured import (  # noqa: E402
    SAMPLES,
    Sample,
)
from ansible_collections.cvm.fde.tests.vectors import VECTORS  # noqa: E402
from cryptography.hazmat.primitives.serialization import (  # noqa: E402
    Encoding,
    PublicFormat,
    load_der_public_key,
)

#: Quotes a second on four cores, with the replay of logs cached: what a design without a process for each must reach.
GOAL, GOAL_CORES = 2000, 4
#: Well-formed logs of real machines that lead to SHA-256 banks.
LOGS = (
    "glinux-alex.bin",
    "ubuntu-1804-amd-sev.bin",
    "cos-85-amd-sev.bin",
    "ubuntu-2104-no-secure-boot.bin",
    "keylime-binary_bios_measurements-secureboot",
    "tpm2tools-event-arch-linux.bin",
    "tpm2tools-event-sd-boot-fedora37.bin",
)


@dataclass(frozen=True)
class Inputs:
    """What is judged: quotes with the encoded key that each is by, and logs."""

    real: bool
    quotes: tuple[tuple[bytes, Sample], ...]
    logs: tuple[bytes, ...]


@cache
def inputs() -> Inputs:
    """Read what there is, once a process."""
    real = VECTORS.is_dir()
    samples = [make(VECTORS) for make in SAMPLES.values()] if real else [_software_sample()]
    logs = [VECTORS / "eventlogs" / name for name in LOGS] if real else [SEEDS / "firmware_log/honest"]
    return Inputs(real, tuple((_encoded(sample), sample) for sample in samples), tuple(map(Path.read_bytes, logs)))


def _encoded(sample: Sample) -> bytes:
    """Return the sample's key as it comes from a machine: it is read anew for each quote."""
    if isinstance(sample.key, PublicArea):
        return sample.key.raw
    return sample.key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _software_sample() -> Sample:
    identity, evidence, challenge, _grounds = honest()
    quote = evidence.quote
    return Sample(
        parse_public(identity.attestation), quote.attest, quote.signature, challenge.nonce, evidence.values,
        challenge.selection,
    )  # fmt: skip


# --- what is measured
# ------------------------------------------------------------------------------------------------


def quotes(cold: bool = False) -> Callable[[int], object]:
    """Judge a quote of a machine, key and all, and explain its PCRs by a log that was seen before; or never."""
    found, warm = inputs(), LogCache()

    def judge(turn: int) -> None:
        encoded, sample = found.quotes[turn % len(found.quotes)]
        key = parse_public(encoded) if isinstance(sample.key, PublicArea) else load_der_public_key(encoded)
        assert replace(sample, key=key).verify().values == sample.values
        cache_ = LogCache() if cold else warm
        assert cache_.replay(found.logs[turn % len(found.logs)], b"", "sha256") is not None

    return judge


def logs() -> Callable[[int], object]:
    """Read and replay a log that was never seen before."""
    found = inputs()

    def read(turn: int) -> None:
        log = event_log.parse(found.logs[turn % len(found.logs)])
        assert log is not None
        replay(log, None, "sha256")

    return read


def hosts(cold: bool = False) -> Callable[[int], object]:
    """Hold the verifier's whole half of one host's attestation: credential, reading of both answers, every check.

    ``cold`` is a task of ``cvm.fde.attest``, which is a process of its own; an audit has seen most logs before.
    """
    _identity, _evidence, challenge, grounds = honest()
    first, second = ((SEEDS / name / "honest").read_bytes() for name in ("identity", "evidence"))

    def attest(_turn: int) -> None:
        identity = parse_identity(parse_json(first, "identity", JSON_LIMIT))
        attestation, endorsement = (parse_public(raw) for raw in (identity.attestation, identity.endorsement))
        make_credential(endorsement, attestation.name, challenge.secret)
        evidence = parse_evidence(parse_json(second, "evidence", JSON_LIMIT))
        judged_by = replace(grounds, cache=LogCache()) if cold else grounds
        assert appraise(identity, evidence, challenge, judged_by).verdict is Verdict.TRUSTED

    return attest


WORK: dict[str, Callable[[], Callable[[int], object]]] = {
    "quotes": quotes,
    "quotes_cold": partial(quotes, cold=True),
    "logs": logs,
    "hosts": hosts,
    "hosts_cold": partial(hosts, cold=True),
}


def on_one_core(name: str, seconds: float) -> float:
    """Return how often it is done in a second of this process's time."""
    work = WORK[name]()
    for turn in range(16):
        work(turn)
    turn, started = 0, time.process_time()
    while time.process_time() - started < seconds:
        for _time in range(16):
            work(turn)
            turn += 1
    return turn / (time.process_time() - started)


def _loop(name: str, seconds: float) -> int:
    work, turn, end = WORK[name](), 0, time.monotonic() + seconds
    while time.monotonic() < end:
        work(turn)
        turn += 1
    return turn


def on_all_cores(name: str, seconds: float, cores: int) -> float:
    """Return how often it is done in a second by a process on each core."""
    with ProcessPoolExecutor(cores, mp_context=get_context("fork")) as pool:
        list(pool.map(_loop, [name] * cores, [0.2] * cores))
        return sum(pool.map(_loop, [name] * cores, [seconds] * cores)) / seconds


# --- the peer
# --------------------------------------------------------------------------------------------------------


def checkquote(seconds: float) -> Optional[dict[str, float]]:
    """Return calls of ``tpm2_checkquote`` and our judgements a second of processor time, over the same quote."""
    folder = VECTORS / "quotes/keylime"
    if shutil.which("tpm2_checkquote") is None or not folder.is_dir():
        return None
    sample = SAMPLES["keylime"](VECTORS)
    with tempfile.TemporaryDirectory() as scratch:
        key = Path(scratch) / "key.pem"
        key.write_bytes(
            parse_public(_encoded(sample)).key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        )
        words = ["tpm2_checkquote", "--public", str(key), "--message", str(folder / "quote.out")]
        words += ["--signature", str(folder / "quotesig.out"), "--pcr", str(folder / "quotepcr.out")]
        words += ["--qualification", sample.nonce.hex(), "--hash-algorithm", "sha256"]
        calls, started = 0, _children()
        clock = time.monotonic()
        while time.monotonic() - clock < seconds or calls < 10:
            subprocess.run(words, check=True, capture_output=True)
            calls += 1
        theirs = calls / (_children() - started)
    encoded = _encoded(sample)
    times, started = 0, time.process_time()
    while time.process_time() - started < seconds / 2:
        replace(sample, key=parse_public(encoded)).verify()
        times += 1
    return {"theirs": theirs, "ours": times / (time.process_time() - started)}


def _children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


# --- results
# ---------------------------------------------------------------------------------------------------------


def measured(seconds: float) -> dict[str, Any]:
    """Measure all of it."""
    cores = len(os.sched_getaffinity(0))
    found: dict[str, Any] = {
        "evidence": "of real machines" if inputs().real else "of a software TPM",
        "cores": cores,
        "machine": platform.machine(),
        "python": platform.python_version(),
    }
    for name in WORK:
        found[f"{name}_per_s_core"] = round(on_one_core(name, seconds), 1)
        found[f"{name}_per_s_all"] = round(on_all_cores(name, seconds, cores), 1)
    found["host_cpu_ms"] = round(1000 / found["hosts_cold_per_s_core"], 3)
    found["host_warm_cpu_ms"] = round(1000 / found["hosts_per_s_core"], 3)
    found["goal_quotes_per_s_core"] = GOAL / GOAL_CORES
    found["goal_ratio"] = round(found["quotes_per_s_core"] / found["goal_quotes_per_s_core"], 2)
    peer = checkquote(seconds)
    found["checkquote_per_s_core"] = peer and round(peer["theirs"], 1)
    found["checkquote_same_quote_per_s_core"] = peer and round(peer["ours"], 1)
    found["checkquote_ratio"] = peer and round(peer["ours"] / peer["theirs"], 1)
    return found


def table(found: dict[str, Any]) -> str:
    """Return the results as text."""
    lines = [
        f"evidence {found['evidence']}; {found['cores']} cores, {found['machine']}, Python {found['python']}",
        f"{'':34}{'one core':>12}{'all cores':>12}   per second",
    ]
    what = {
        "quotes": "quotes, log seen before",
        "quotes_cold": "quotes, log never seen before",
        "logs": "logs never seen before",
        "hosts": "whole hosts, logs seen before",
        "hosts_cold": "whole hosts, logs never seen",
    }
    for name, text in what.items():
        lines.append(f"{text:34}{found[f'{name}_per_s_core']:>12,.0f}{found[f'{name}_per_s_all']:>12,.0f}")
    warm = f"{found['host_warm_cpu_ms']:.2f} where its logs were seen before"
    lines.append(f"one host costs {found['host_cpu_ms']:.2f} ms of processor time, {warm}")
    lines.append(f"goal: {found['goal_quotes_per_s_core']:.0f} quotes a core; ratio {found['goal_ratio']:.2f}")
    if found["checkquote_ratio"] is None:
        lines.append("tpm2_checkquote: not compared, for want of tpm2-tools or of real quotes")
    else:
        lines.append(
            f"tpm2_checkquote, a call each: {found['checkquote_per_s_core']:,.0f}; the same quote here: "
            f"{found['checkquote_same_quote_per_s_core']:,.0f}; ratio {found['checkquote_ratio']:.1f}"
        )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.bench.appraisal", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=2.0, help="how long each thing is measured (2)")
    parser.add_argument("--json", metavar="FILE", help="write the results there as JSON; - is standard output")
    options = parser.parse_args()
    found = measured(options.seconds)
    if options.json == "-":
        print(json.dumps(found))
        return 0
    if options.json:
        Path(options.json).write_text(json.dumps(found, indent=2) + "\n")
    print(table(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
