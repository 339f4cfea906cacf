# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The strategies beside ``clone``: what is written is kept and encrypted, or kept nowhere; a cut starts over."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
from ansible_collections.cvm.fde.plugins.module_utils.agent import masks, strategy_copy, upkeep
from ansible_collections.cvm.fde.plugins.module_utils.agent.boot import boot
from ansible_collections.cvm.fde.plugins.module_utils.agent.configuration import Strategy
from ansible_collections.cvm.fde.plugins.module_utils.agent.decision import Action
from ansible_collections.cvm.fde.plugins.module_utils.agent.hydration import Ears
from ansible_collections.cvm.fde.plugins.module_utils.agent.machine import Machine
from ansible_collections.cvm.fde.plugins.module_utils.agent.strategies import ROOTS
from ansible_collections.cvm.fde.plugins.module_utils.boot.command_line import ROOT_WORDS
from ansible_collections.cvm.fde.plugins.module_utils.disk import gpt
from ansible_collections.cvm.fde.plugins.module_utils.dm import edges
from ansible_collections.cvm.fde.plugins.module_utils.dm.table import Linear
from ansible_collections.cvm.fde.plugins.module_utils.errors import FdeError, Refusal
from ansible_collections.cvm.fde.plugins.module_utils.tpm.anchor import Standing, State
from ansible_collections.cvm.fde.tests.attacks.catalogue import Kind, attack
from cryptography.hazmat.primitives.asymmetric import rsa
from instance import (
    DISK_SIZE,
    MIB,
    PLAINTEXT,
    Content,
    CutRunner,
    Lab,
    PoorRunner,
    PowerCut,
    make_lab,
    make_sealed,
    mounted,
    put_below,
    run,
    seal_with,
    update,
)

SECRET = b"what an instance writes is for nobody else " * 100


@pytest.fixture
def make(tmp_path: Path, sealed: tuple[Path, str], signer: rsa.RSAPrivateKey) -> Any:
    return lambda strategy: make_lab(tmp_path, sealed, signer, strategy)


def holds(file: Path, content: bytes) -> bool:
    """Tell whether a large file has this content somewhere. A mapping would fill its holes, in memory."""
    with file.open("rb") as opened:
        end = b""
        while chunk := opened.read(MIB):
            if content in end + chunk:
                return True
            end = chunk[-len(content) :]
    return False


def digest(file: Path) -> str:
    return run("sha256sum", str(file)).decode().split()[0]


@contextlib.contextmanager
def overlaid(machine: Machine) -> Iterator[Path]:
    """Mount the root as systemd does, by the words of the signed command line."""
    words = dict(word.partition("=")[::2] for word in ROOT_WORDS[Strategy.OVERLAY])
    options = words["rootflags"].replace("/run/cvm-fde", str(machine.paths.state))
    root = Path("/run/overlaid-root")
    root.mkdir(exist_ok=True)
    run("mount", "-t", words["rootfstype"], "-o", options, words["root"], str(root))
    try:
        yield root
    finally:
        run("umount", str(root))


def test_an_overlay_keeps_what_is_written_in_an_encrypted_volume(make: Any) -> None:
    lab = make("overlay")
    with lab.booting() as machine:
        assert boot(machine) is Action.FIRST_BOOT
        anchor = lab.anchor().anchor
        assert anchor is not None and anchor.state is State.READY and anchor.complete
        first = machine.mapper.get("fde-upper").size
        [integrity] = machine.mapper.table("fde-crypt_dif")
        assert integrity.arguments.split()[3] == "J", "a power cut must not tear btrfs's superblock from its tag"
        with overlaid(machine) as root:
            assert (root / "plaintext").read_bytes() == PLAINTEXT
            (root / "secret").write_bytes(SECRET)
            (root / "plaintext").write_bytes(b"mine")
            upper = ROOTS[Strategy.OVERLAY].mount_point(machine)
            before = os.statvfs(upper).f_blocks
            with open(machine.paths.state / "hydrate.lock", "wb") as held:
                fcntl.flock(held, fcntl.LOCK_EX)
                with pytest.raises(FdeError, match="another process"):
                    upkeep.finish(machine, Ears(lambda _: None, lambda _: None), upper)
            upkeep.finish(machine, Ears(lambda _: None, lambda _: None), upper)
            assert os.statvfs(upper).f_blocks > before
        assert machine.mapper.get("fde-upper").size > first
        found = run("btrfs", "inspect-internal", "dump-super", machine.mapper.get("fde-upper").path).decode()
        assert "sha256" in next(line for line in found.splitlines() if line.startswith("csum_type"))
    assert not holds(lab.image, SECRET[:43])
    assert holds(lab.image, PLAINTEXT[:64]), "the image is public"
    with lab.booting() as machine:
        assert boot(machine) is Action.OPEN
        with overlaid(machine) as root:
            assert (root / "secret").read_bytes() == SECRET
            assert (root / "plaintext").read_bytes() == b"mine"


CUTS = {
    "overlay": (("mkfs.btrfs",), ("mount", "btrfs")),
    "copy": (("dmsetup", "create", "fde-root"),),
}


@pytest.mark.parametrize("strategy", list(CUTS))
def test_a_power_cut_in_the_first_boot_starts_it_over(make: Any, strategy: str) -> None:
    lab = make(strategy)
    for before in CUTS[strategy]:
        with lab.booting() as machine:
            with pytest.raises(PowerCut):
                boot(replace(machine, runner=CutRunner(*before)))
            found = lab.anchor()
            assert found.anchor is not None and found.anchor.state is State.INITIALIZING, before
    with lab.booting() as machine:
        assert boot(machine) is Action.FIRST_BOOT


def test_an_updated_image_shows_which_files_of_it_the_instance_hides(tmp_path: Path, signer: rsa.RSAPrivateKey) -> None:
    (tmp_path / "first").mkdir()
    (tmp_path / "lab").mkdir()
    older = make_sealed(tmp_path / "first", Content({"plaintext": b"older", "kept": b"kept", "gone": b"gone"}))
    lab = make_lab(tmp_path / "lab", older, signer, "overlay")
    told: list[str] = []
    with lab.booting() as machine:
        boot(machine)
        with overlaid(machine) as root:
            (root / "plaintext").write_bytes(b"mine")
            (root / "kept").write_bytes(b"mine too")
            (root / "new").write_bytes(b"made by the instance first")
            (root / "gone").unlink()
        record = masks.keep(machine, told.append)
        assert set(record.known) == {"plaintext", "kept", "gone"} and record.reported == {}
    newer = {"plaintext": b"newer", "kept": b"kept", "new": b"from the newer image"}
    lab = update(lab, tmp_path / "second", newer)
    with lab.booting() as machine:
        assert boot(machine) is Action.OPEN
        record = masks.keep(machine, told.append)
        assert record.reported == {"plaintext": masks.Why.CHANGED, "new": masks.Why.ADDED}
        assert any("/plaintext" in line and "changed" in line for line in told)
        assert masks.keep(machine, told.append) == record, "it is reported until it is mended"
        found = masks.report(machine.paths.state)
        assert found is not None and found["outdated"] == {"plaintext": "changed", "new": "added"}
        with overlaid(machine) as root:
            assert (root / "plaintext").read_bytes() == b"mine"
        (machine.paths.state / "upper/data/plaintext").unlink()
        assert masks.keep(machine, told.append).reported == {"new": masks.Why.ADDED}


@attack(
    kind=Kind.VERITY,
    does="Puts another image of the same builder below a volume, an older one perhaps, so that a clone goes on from it",
    promise="A root holds what one image and its own instance wrote, and nothing of another image",
    stops="The pinned header names the image that the volume was made from: refused, `image-changed`",
)
@pytest.mark.parametrize("complete", [False, True])
@pytest.mark.parametrize("strategy", ["clone", "copy"])
def test_another_image_of_the_same_builder_is_never_put_below_a_volume(
    tmp_path: Path, signer: rsa.RSAPrivateKey, strategy: str, complete: bool
) -> None:
    """Nor is a clone gone on with from it: nobody could tell afterwards which file is of which image."""
    (tmp_path / "first").mkdir()
    (tmp_path / "lab").mkdir()
    own = make_sealed(tmp_path / "first")
    lab = make_lab(tmp_path / "lab", own, signer, strategy)
    with lab.booting() as machine:
        assert boot(machine) is Action.FIRST_BOOT
        with mounted() as root:
            (root / "mine").write_bytes(SECRET)
            if complete:
                upkeep.finish(machine, Ears(lambda _: None, lambda _: None), str(root))
    other = update(lab, tmp_path / "second", {"plaintext": b"of the other image"})
    with other.booting() as machine:
        with pytest.raises(Refusal) as caught:
            boot(machine)
        assert caught.value.code == "image-changed" and "another root_hash" in caught.value.cause
        assert machine.mapper.find("fde-root") is None
    with put_below(other, own).booting() as machine:
        assert boot(machine) is Action.OPEN
        with mounted() as root:
            assert (root / "mine").read_bytes() == SECRET and (root / "plaintext").read_bytes() == PLAINTEXT
    lab.image.unlink()


@attack(
    kind=Kind.VERITY,
    does="Puts back, below an overlay, an image of the same builder that was replaced because of a hole",
    promise="What a newer image has closed stays closed",
    stops="The anchor has the highest security version of an image that came up: refused, `image-outdated`",
)
def test_an_image_that_was_replaced_for_cause_does_not_get_the_volume_any_more(
    tmp_path: Path, signer: rsa.RSAPrivateKey
) -> None:
    """The number rises only once the newer image came up: one that does not can be taken back."""
    (tmp_path / "first").mkdir()
    (tmp_path / "lab").mkdir()
    own = make_sealed(tmp_path / "first")
    lab = make_lab(tmp_path / "lab", own, signer, "overlay")
    seal_with(lab, svn=1)
    with lab.booting() as machine:
        assert boot(machine) is Action.FIRST_BOOT
        assert lab.anchored().svn == 1
    newer = update(lab, tmp_path / "second", {"plaintext": b"without the hole"})
    seal_with(newer, svn=2)
    for comes_up in (False, True):
        with newer.booting() as machine:
            assert boot(machine) is Action.OPEN
            if comes_up:
                with overlaid(machine):
                    upper = ROOTS[Strategy.OVERLAY].mount_point(machine)
                    upkeep.finish(machine, Ears(lambda _: None, lambda _: None), upper)
            assert lab.anchored().svn == 1 + comes_up
        older = put_below(newer, own)
        seal_with(older, svn=1)
        with older.booting() as machine:
            if comes_up:
                with pytest.raises(Refusal) as caught:
                    boot(machine)
                assert caught.value.code == "image-outdated"
                assert machine.mapper.find("fde-crypt") is None
            else:
                assert boot(machine) is Action.OPEN
        newer = put_below(older, (tmp_path / "second/disk", newer.root_hash))
        seal_with(newer, svn=2)
    with newer.booting() as machine:
        assert boot(machine) is Action.OPEN
    lab.image.unlink()


def test_an_image_that_is_sealed_for_another_strategy_does_not_open_the_volume(make: Any) -> None:
    lab = make("copy")
    with lab.booting() as machine:
        assert boot(machine) is Action.FIRST_BOOT
    retitle(lab, "fde.strategy=copy", "fde.strategy=clone")
    with lab.booting() as machine:
        with pytest.raises(Refusal) as caught:
            boot(machine)
        assert caught.value.code == "image-changed" and "another strategy" in caught.value.cause


def test_an_updated_image_shows_what_it_changed_below_directories_that_the_instance_hides(
    tmp_path: Path, signer: rsa.RSAPrivateKey
) -> None:
    (tmp_path / "first").mkdir()
    (tmp_path / "lab").mkdir()
    names = ("deleted/program", "deleted/lib/same", "anew/program", "anew/same", "file/program", "gone", "left")
    older = dict.fromkeys(names, b"older")
    lab = make_lab(tmp_path / "lab", make_sealed(tmp_path / "first", Content(older)), signer, "overlay")
    with lab.booting() as machine:
        boot(machine)
        with overlaid(machine) as root:
            for name in ("deleted", "anew", "file"):
                shutil.rmtree(root / name)
            (root / "anew").mkdir()
            (root / "anew/program").write_bytes(b"mine")
            (root / "file").write_bytes(b"mine")
            for name in ("gone", "left"):
                (root / name).unlink()
        assert masks.keep(machine, lambda _: None).reported == {}
    newer = {name: b"older" if name in ("deleted/lib/same", "anew/same", "left") else b"newer" for name in names}
    newer |= dict.fromkeys(("deleted/lib/added", "anew/added", "file/added"), b"newer")
    lab = update(lab, tmp_path / "second", newer)
    with lab.booting() as machine:
        assert boot(machine) is Action.OPEN
        assert masks.keep(machine, lambda _: None).reported == {
            **dict.fromkeys(("deleted/program", "anew/program", "file/program", "gone"), masks.Why.CHANGED),
            **dict.fromkeys(("deleted/lib/added", "anew/added", "file/added"), masks.Why.ADDED),
        }


def test_a_copy_holds_the_whole_image_before_it_is_used_and_grows(make: Any) -> None:
    lab = make("copy")
    with lab.booting() as machine:
        assert boot(machine) is Action.FIRST_BOOT
        assert all(isinstance(target, Linear) for target in machine.mapper.table("fde-root"))
        machine.mapper.remove("root")
        with mounted() as root:
            assert (root / "plaintext").read_bytes() == PLAINTEXT
            before = os.statvfs(root).f_blocks
            upkeep.finish(machine, Ears(lambda _: None, lambda _: None), str(root))
            assert os.statvfs(root).f_blocks > 3 * before
            (root / "large").write_bytes(SECRET * (48 * MIB // len(SECRET)))
    assert not holds(lab.image, SECRET[:43])
    with lab.booting() as machine:
        assert boot(machine) is Action.OPEN
        run("e2fsck", "-fn", "/dev/mapper/fde-root")
        with mounted() as root:
            assert (root / "large").stat().st_size > 47 * MIB
            assert (root / "plaintext").read_bytes() == PLAINTEXT


def test_a_copy_that_is_cut_off_or_reads_back_otherwise_is_made_anew(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = make("copy")
    real = edges.put
    written: list[int] = []

    def cut(device: int, content: bytes, sector: int) -> None:
        if len(written) == 2:
            raise PowerCut("in the middle")
        written.append(sector)
        real(device, content, sector)

    # What else is written with the same function, such as the partition table, stays as it is.
    monkeypatch.setattr(strategy_copy, "edges", SimpleNamespace(put=cut))
    with lab.booting() as machine, pytest.raises(PowerCut):
        boot(machine)
    zeros = SimpleNamespace(put=lambda device, content, sector: real(device, bytes(len(content)), sector))
    monkeypatch.setattr(strategy_copy, "edges", zeros)
    with lab.booting() as machine, pytest.raises(FdeError, match="reads back otherwise"):
        boot(machine)
    monkeypatch.undo()
    with lab.booting() as machine:
        found = lab.anchor()
        assert found.anchor is not None and found.anchor.state is State.INITIALIZING
        assert boot(machine) is Action.FIRST_BOOT
        with mounted() as root:
            assert (root / "plaintext").read_bytes() == PLAINTEXT


def test_an_ephemeral_instance_has_neither_volume_nor_anchor(make: Any) -> None:
    lab = make("ephemeral")
    before = digest(lab.image)
    with lab.booting() as machine:
        assert boot(machine) is Action.EPHEMERAL
        assert lab.anchor().standing is Standing.ABSENT
        assert machine.mapper.find("fde-crypt") is None
    assert digest(lab.image) == before


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda lab: (lab.directory / "SecureBoot").write_bytes(b"\x06\0\0\0\0"), "secure-boot-off"),
        (lambda lab: retitle(lab, lab.root_hash, "0" * 64), "verity-missing"),
    ],
)
def test_an_ephemeral_instance_is_refused_where_any_other_is(make: Any, change: Any, code: str) -> None:
    lab = make("ephemeral")
    with lab.booting():
        change(lab)
        with pytest.raises(Refusal) as caught:
            boot(lab.machine)
    assert caught.value.code == code


def retitle(lab: Lab, old: str, new: str) -> None:
    line = lab.directory / "cmdline"
    line.write_text(line.read_text().replace(old, new))


@pytest.mark.parametrize(("strategy", "lacks"), [("clone", "dm-clone"), ("overlay", "btrfs"), ("ephemeral", "overlay")])
def test_a_kernel_that_cannot_do_what_the_image_is_sealed_for_is_refused(make: Any, strategy: str, lacks: str) -> None:
    lab = make(strategy)
    with lab.booting() as machine:
        with pytest.raises(Refusal) as caught:
            boot(replace(machine, runner=PoorRunner(lacks)))
        assert caught.value.code == "strategy-unsupported" and lacks in caught.value.cause
        assert lab.anchor().standing is Standing.ABSENT, "nothing was begun"


def sectors(lab: Lab, size: int) -> None:
    """Give the disk of an instance sectors of another size: the partition table is what depends on it."""
    with lab.image.open("r+b") as disk:
        old = gpt.read_table(disk, DISK_SIZE, "disk")
        disk.seek(0)
        disk.write(bytes(34 * 512))
        for offset, block in gpt.encode_table(gpt.new_table(old.disk_id, DISK_SIZE, old.partitions, size)):
            disk.seek(offset)
            disk.write(block)
    lab.sector = size


def rooted(machine: Machine) -> contextlib.AbstractContextManager[Path]:
    """Mount the root of any strategy."""
    return overlaid(machine) if machine.configuration.strategy is Strategy.OVERLAY else mounted()


@pytest.mark.parametrize(("strategy", "sector"), [("clone", 512), ("copy", 512), ("overlay", 512), ("overlay", 4096)])
def test_the_volume_is_made_on_a_second_disk(make: Any, strategy: str, sector: int) -> None:
    lab = make(strategy)
    retitle(lab, f"fde.strategy={strategy}", f"fde.strategy={strategy} fde.disk=other")
    if sector != 512:
        sectors(lab, sector)
    lab.spare = lab.directory / "spare"
    with lab.spare.open("wb") as file:
        file.truncate(1024 * MIB)
    before = digest(lab.image)
    with lab.booting() as machine:
        assert boot(machine) is Action.FIRST_BOOT
        with rooted(machine) as root:
            assert (root / "plaintext").read_bytes() == PLAINTEXT
            (root / "secret").write_bytes(SECRET)
    assert digest(lab.image) == before, "the disk of the image stays as it is"
    assert not holds(lab.spare, SECRET[:43])
    with lab.booting() as machine:
        assert boot(machine) is Action.OPEN
        with rooted(machine) as root:
            assert (root / "secret").read_bytes() == SECRET
    kept = lab.spare
    lab.spare = None
    assert code_of(lab) == "volume-disk"
    lab.spare = lab.directory / "other"
    with lab.spare.open("wb") as file:
        file.truncate(1024 * MIB)
    assert code_of(lab) == "volume-missing"
    with lab.spare.open("r+b") as file:
        file.seek(300_000)
        file.write(b"somebody's data")
    assert code_of(lab) == "disk-foreign"
    run("cp", "--sparse=always", str(lab.image), str(lab.spare))
    assert code_of(lab) == "disk-ambiguous"
    lab.spare = kept
    with lab.booting() as machine:
        assert boot(machine) is Action.OPEN


#: What of the table of a second disk is written when the power is cut: where it goes on the disk, and how much of it.
TORN = {
    "the second copy without its header": (False, slice(None, -512)),
    "the second copy alone": (True, slice(0)),
    "the first copy without its header": (True, slice(512)),
    "the first copy without its entries": (True, slice(1024)),
}


@pytest.mark.parametrize("what", TORN)
def test_a_power_cut_in_the_table_of_a_second_disk_starts_the_first_boot_over(make: Any, what: str) -> None:
    lab = make("overlay")
    retitle(lab, "fde.strategy=overlay", "fde.strategy=overlay fde.disk=other")
    lab.spare = lab.directory / "spare"
    with lab.spare.open("wb") as file:
        file.truncate(1024 * MIB)
    at_the_front, arrived = TORN[what]

    def put(device: int, content: bytes, sector: int) -> None:
        if len(content) < MIB and (sector == 0) is at_the_front:
            written(device, content[arrived], sector)
            raise PowerCut(what)
        written(device, content, sector)

    written = edges.put
    with lab.booting() as machine, mock.patch.object(edges, "put", put), pytest.raises(PowerCut):
        boot(machine)
    with lab.booting() as machine:
        assert boot(machine) is Action.FIRST_BOOT
    with lab.booting() as machine:
        assert boot(machine) is Action.OPEN


def code_of(lab: Lab) -> str:
    with lab.booting() as machine, pytest.raises(Refusal) as caught:
        boot(machine)
    return caught.value.code


def test_a_root_disk_with_large_sectors_is_like_any_other(make: Any) -> None:
    lab = make("clone")
    sectors(lab, 4096)
    with lab.booting() as machine:
        assert boot(machine) is Action.FIRST_BOOT
    with lab.booting() as machine:
        assert boot(machine) is Action.OPEN
        with mounted() as root:
            assert (root / "plaintext").read_bytes() == PLAINTEXT


def test_no_secret_of_a_first_boot_is_left_behind(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from ansible_collections.cvm.fde.plugins.module_utils.agent import volume_key

    secrets: list[bytes] = []
    temporary, mixed = volume_key.temporary, volume_key.mixed
    monkeypatch.setattr(volume_key, "temporary", lambda: (secrets.append(bytes(key := temporary())), key)[1])
    monkeypatch.setattr(volume_key, "mixed", lambda *given: (secrets.append(bytes(key := mixed(*given))), key)[1])
    lab = make("overlay")
    with lab.booting() as machine:
        assert boot(machine) is Action.FIRST_BOOT
        assert len(secrets) == 2
        places = [Path("/run"), Path("/dev/shm"), machine.paths.state]
        files = [file for place in places for file in place.rglob("*") if file.is_file() and not file.is_symlink()]
        small = [file for file in files if file.stat().st_size < 16 * MIB and "lower" not in file.parts]
        assert small
        held = b"".join(file.read_bytes() for file in small) + run("dmesg")
        tables = json.dumps([machine.mapper.table(name)[0].arguments for name in ("fde-crypt", "fde-crypt_dif")])
        for secret in secrets:
            for form in (secret, secret.hex().encode()):
                assert form not in held
                assert form not in tables.encode()
    assert not any(holds(lab.image, secret) for secret in secrets)
