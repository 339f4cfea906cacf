# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A sample of the crash matrix, and that the matrix itself would notice a loss. The whole: ``make crash-matrix``."""

from __future__ import annotations

import ast
import json
import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.cvm.fde.tests.crash import log_writes, matrix, whole
from ansible_collections.cvm.fde.tests.integration import uml

#: The phases of each scenario. One cut of each is tried: the limit is the time that all tests may take.
PHASES = {
    "life": ("first-boot", "hydration", "swap", "growth", "grown", "second-boot"),
    "copy": ("first-boot", "used", "second-boot"),
    "overlay": ("first-boot", "used", "second-boot"),
    "header": ("open", "add-key", "remove-key"),
    "commit": ("open", "foreign-change", "commit", "committed", "second-boot"),
    "recovery": ("recovery", "anchored", "second-boot"),
    "data-volume": ("create", "rebind", "close"),
}


def write_log(path: Path, *entries: tuple[int, bytes, int, str]) -> None:
    """Write a log as the kernel does: (sector, data, flags, mark) for each entry."""
    content = struct.pack("<QQQI", 0x6A736677736872, 1, len(entries), 512).ljust(512, b"\0")
    for sector, data, flags, mark in entries:
        text = mark.encode() + b"\0" if mark else b""
        content += (struct.pack("<QQQQ", sector, len(data) // 512, flags, len(text)) + text).ljust(512, b"\0") + data
    path.write_bytes(content)


FLUSH, FUA, DISCARD, MARK = 1, 2, 4, 8
A, B, C, D = (letter * 1024 for letter in (b"a", b"b", b"c", b"d"))


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "log"
    write_log(
        path,
        (0, A, 0, ""),
        (0, b"", FLUSH, ""),
        (0, b"", MARK, "label:next"),
        (2, B, 0, ""),
        (4, C, 0, ""),
        (0, b"", MARK, "tpm_1"),
        (6, D, FUA, ""),
    )
    return path


def test_a_cut_is_made_behind_every_barrier_and_among_what_follows_it(log: Path) -> None:
    cuts = list(log_writes.cuts(tuple(log_writes.entries(log))))
    assert [cut.after for cut in cuts if not cut.stray] == [2, 6, 7]
    stray = [cut for cut in cuts if cut.stray]
    assert [cut.after for cut in stray] == [2, 6]
    assert set(stray[0].stray) <= {3, 4}, "what was written after the TPM changed cannot be there before"
    assert stray[1].stray == (6,) and stray[1].torn == 1


def test_the_disk_at_a_cut_has_what_was_flushed_and_the_strays_in_part(log: Path, tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(4096))
    disk = log_writes.Disk(log, tuple(log_writes.entries(log)), image)
    disk.advance(2)
    assert image.read_bytes() == A + bytes(3072)
    disk.stray(log_writes.Cut(2, (4,), torn=1), image)
    assert image.read_bytes() == A + bytes(1024) + C[:512] + bytes(1536)
    disk.advance(7)
    assert image.read_bytes() == A + B + C + D
    with pytest.raises(ValueError, match="does not go back"):
        disk.advance(2)


def test_something_else_is_no_log(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(bytes(1024))
    with pytest.raises(log_writes.LogError):
        tuple(log_writes.entries(tmp_path / "log"))


def test_each_cut_knows_its_moment(log: Path, tmp_path: Path) -> None:
    cuts = list(matrix.listed(tmp_path))
    assert [(cut["after"], cut["step"], cut["tpm"]) for cut in cuts if not cut["stray"]] == [
        (2, "", 0),
        (6, "next", 1),
        (7, "next", 1),
    ]


@pytest.mark.parametrize(
    ("wanted", "chosen"),
    [
        (0, [2, 6, 9]),
        (3, [2, 6, 9]),
        (4, [2, 4, 6, 9]),
        (5, [1, 2, 6, 7, 9]),
        (10, list(range(10))),
        (99, list(range(10))),
    ],
)
def test_a_sample_has_a_cut_of_every_phase_and_spreads_the_others(wanted: int, chosen: list[int]) -> None:
    phases = ["", "boot", "boot", "boot", "use", "use", "use", "use", "use", "end"]
    cuts = [{"after": number, "phase": phase} for number, phase in enumerate(phases)]
    assert [cut["after"] for cut in matrix.sample(cuts, wanted)] == chosen


def test_cuts_of_no_phase_are_spread_evenly() -> None:
    assert matrix.spread(range(10), 3) == [1, 5, 8]
    assert matrix.spread(range(10), 11) == list(range(10))


def test_a_cut_of_a_whole_machine_has_the_tpm_and_the_promises_of_its_moment(tmp_path: Path) -> None:
    write_log(tmp_path / "log", (0, A, 0, ""), (0, b"", FLUSH, ""), (2, B, 0, ""), (0, b"", FLUSH, ""))
    behind_first, behind_second = 512 + 512 + 1024 + 512, 512 + 2 * (512 + 1024 + 512)
    found = list(whole.moments(tmp_path / "log", [0, behind_first + 1, behind_second + 1], [behind_second]))
    assert [(one.cut.after, bool(one.cut.stray), one.tpm, one.promised) for one in found] == [
        (2, False, 0, 0),
        (4, False, 1, 1),
    ], "what was written after the TPM changed cannot be there before it"
    earlier = list(whole.moments(tmp_path / "log", [0, behind_first], []))
    assert [(one.cut.after, bool(one.cut.stray)) for one in earlier] == [(2, False), (2, True), (4, False)]


def test_the_names_of_the_scenarios_are_those_that_the_guest_knows() -> None:
    source = ast.parse(Path(matrix.__file__).with_name("scenarios.py").read_text())
    (table,) = (
        node.value
        for node in source.body
        if isinstance(node, ast.AnnAssign) and getattr(node.target, "id", "") == "SCENARIOS"
    )
    assert isinstance(table, ast.Dict)
    assert tuple(ast.literal_eval(key) for key in table.keys if key) == matrix.SCENARIOS == tuple(PHASES)


@pytest.mark.parametrize(("cuts", "words", "status"), [(500, [], 0), (499, [], 2), (9, ["--sample", "9"], 0)])
def test_a_whole_matrix_has_cuts_enough(
    cuts: int, words: list[str], status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(uml, "missing", lambda: None)
    counted = {"cut_points": cuts, "continued": cuts, "restarted": 0, "recovered": 0, "lost": 0, "again": 0}
    monkeypatch.setattr(matrix, "run", lambda _options, _directory: {**counted, "failures": []})
    assert matrix.main(words) == status
    assert json.loads(capsys.readouterr().out.splitlines()[-1]).items() >= counted.items()


def test_a_recovery_is_counted_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def replay(*_arguments: Any) -> list[dict[str, Any]]:
        lost = {"after": 1, "step": "", "why": "it is refused", "phase": "second-boot", "outcome": "lost"}
        recovered = {"phase": "refused", "outcome": "recovered"}
        return [lost, recovered, recovered, {"phase": "second-boot", "outcome": "continued"}]

    monkeypatch.setattr(uml, "missing", lambda: None)
    monkeypatch.setattr(matrix, "record_all", lambda _scenarios, _directory: None)
    monkeypatch.setattr(matrix, "listed", lambda _recording: iter(()))
    monkeypatch.setattr(matrix, "replay", replay)
    assert matrix.main(["--scenario", "recovery", "--keep", str(tmp_path)]) == 1
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    told.pop("seconds")
    assert list(told.items()) == [
        ("cut_points", 4),
        ("continued", 1),
        ("restarted", 0),
        ("recovered", 2),
        ("lost", 1),
        ("again", 0),
    ]


def test_a_cut_in_which_a_guest_fell_silent_is_tried_once_more_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second cut's guest is silent once, the third's always."""
    tried: list[int] = []

    def guest(command: list[str], _shares: dict[Path, bool]) -> None:
        cuts, results = (Path(word) for word in command[-2:])
        for cut in json.loads(cuts.read_text()):
            tried.append(cut["after"])
            if cut["after"] == 3 or tried.count(2) == 1 and cut["after"] == 2:
                raise matrix.Hung("the guest said nothing")
            with results.open("a") as file:
                file.write(json.dumps({**cut, "outcome": "continued"}) + "\n")

    monkeypatch.setattr(matrix, "_guest", guest)
    found = matrix.replay(tmp_path, [{"after": number} for number in (1, 2, 3, 4)], guests=1)
    assert tried == [1, 2, 2, 3, 3, 4]
    assert [(one["after"], one["outcome"], "again" in one) for one in found] == [
        (1, "continued", False),
        (2, "continued", True),
        (3, "lost", True),
        (4, "continued", False),
    ]


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the scenarios are recorded."""
    if why := uml.missing():
        pytest.skip(why)
    return tmp_path_factory.mktemp("recordings")


@pytest.fixture(scope="module")
def results(recordings: Path) -> dict[str, list[dict[str, Any]]]:
    """What became of a cut of each phase, two scenarios at a time."""

    def tried(scenario: str) -> list[dict[str, Any]]:
        matrix.record(scenario, recordings / scenario)
        cuts = list(matrix.listed(recordings / scenario))
        return matrix.replay(recordings / scenario, matrix.sample(cuts, 0), guests=1)

    with ThreadPoolExecutor(matrix.GUESTS) as pool:
        return dict(zip(PHASES, pool.map(tried, PHASES)))


@pytest.mark.parametrize("scenario", PHASES)
def test_nothing_is_lost_at_a_cut_of_each_phase(scenario: str, results: dict[str, list[dict[str, Any]]]) -> None:
    found = results[scenario]
    assert tuple(one["phase"] for one in found) == PHASES[scenario]
    lost = [f"{one['phase']}, after {one['after']}: {one['why']}" for one in found if one["outcome"] == "lost"]
    assert not lost, "\n\n".join(lost)
    promised = {"continued", "recovered"} if scenario in ("commit", "recovery") else {"continued", "restarted"}
    assert {one["outcome"] for one in found} <= promised


def test_a_refusal_is_recovered_where_that_is_promised_and_a_loss_elsewhere(
    recordings: Path, results: dict[str, list[dict[str, Any]]]
) -> None:
    outcomes = {one["phase"]: one["outcome"] for one in results["recovery"]}
    assert outcomes == {"recovery": "recovered", "anchored": "continued", "second-boot": "continued"}
    refused = next(cut for cut in matrix.listed(recordings / "recovery") if cut["phase"] == "recovery")
    (elsewhere,) = matrix.replay(recordings / "recovery", [{**refused, "phase": "anchored"}], guests=1)
    assert elsewhere["outcome"] == "lost" and "Refusal" in elsewhere["why"]


def test_a_loss_is_noticed(recordings: Path, results: dict[str, list[dict[str, Any]]]) -> None:
    """The disk goes back to before a promise, the promise stays: what a write that was lost looks like."""
    cuts = [cut for cut in matrix.listed(recordings / "life") if not cut["stray"]]
    before = next(cut for cut in cuts if cut["promised"] == 1)
    (result,) = matrix.replay(recordings / "life", [{**before, "promised": 3}], guests=1)
    assert result["outcome"] == "lost" and "promised-2 is not there" in result["why"]
