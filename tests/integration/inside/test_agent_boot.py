# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The boot agent on a real disk image, a real device-mapper and a software TPM (see instance.py)."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.cvm.fde.plugins.module_utils.agent import console, disks, evidence, first_boot, upkeep
from ansible_collections.cvm.fde.plugins.module_utils.agent.boot import boot
from ansible_collections.cvm.fde.plugins.module_utils.agent.decision import Action
from ansible_collections.cvm.fde.plugins.module_utils.agent.hydration import Ears, hydrate
from ansible_collections.cvm.fde.plugins.module_utils.agent.measuring import measure
from ansible_collections.cvm.fde.plugins.module_utils.agent.status import status
from ansible_collections.cvm.fde.plugins.module_utils.disk import gpt
from ansible_collections.cvm.fde.plugins.module_utils.dm.table import Linear
from ansible_collections.cvm.fde.plugins.module_utils.errors import FdeError, Refusal
from ansible_collections.cvm.fde.plugins.module_utils.luks2.area import read_area
from ansible_collections.cvm.fde.plugins.module_utils.tpm import anchor as anchors
from ansible_collections.cvm.fde.plugins.module_utils.tpm.anchor import Standing, State
from ansible_collections.cvm.fde.plugins.module_utils.tpm.esys import opened
from cryptography.hazmat.primitives.asymmetric import rsa
from instance import (
    PLAINTEXT,
    CutRunner,
    Lab,
    PcrRunner,
    PowerCut,
    make_lab,
    mounted,
    power_cut_at,
    write_file,
)


def test_agent_first_boot_then_later_boots(lab: Lab) -> None:
    with lab.booting() as machine:
        assert boot(machine) is Action.FIRST_BOOT
        write_file("written", b"first boot")
        ready = lab.anchor()
        assert ready.standing is Standing.OURS and ready.anchor is not None
        assert ready.anchor.state is State.READY
        known = status(machine.runner, machine.paths, lab.tcti)
        assert known["problems"] == []
        assert known["anchor"]["header_current"] == read_area(lab.partition).digest.hex()
    with lab.booting() as machine:
        assert boot(machine) is Action.OPEN
        with mounted() as root:
            assert (root / "written").read_bytes() == b"first boot"
            assert (root / "plaintext").read_bytes() == PLAINTEXT
        assert lab.anchor() == ready
        told = status(machine.runner, machine.paths, lab.tcti)
        assert (told["luks_uuid"], told["device"]) == (known["luks_uuid"], lab.partition)


def test_every_instance_has_a_partition_id_of_its_own_which_its_evidence_names(
    tmp_path: Path, sealed: tuple[Path, str], signer: rsa.RSAPrivateKey
) -> None:
    ids = []
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        instance = make_lab(tmp_path / name, sealed, signer)
        with instance.booting() as machine:
            assert boot(machine) is Action.FIRST_BOOT
            creation = evidence.found(read_area(instance.partition).header())[evidence.CREATION]
        with instance.image.open("rb") as disk:
            [volume] = gpt.read_table(disk, instance.image.stat().st_size, "disk").of_type(gpt.FDE)
        instance.image.unlink()
        assert creation.claims["partition_uuid"] == str(volume.id)
        ids.append(volume.id)
    assert ids[0] != ids[1]


def test_hydration_ends_and_leaves_no_plaintext_on_the_partition(installed: Lab) -> None:
    told: list[str] = []
    with installed.booting() as machine:
        assert boot(machine) is Action.OPEN
        with mounted() as root:
            ears = Ears(told.append, lambda _: None)
            state = hydrate(machine.mapper, ears, interval=0.1)
            assert state is not None and state.complete
            assert (root / "plaintext").read_bytes() == PLAINTEXT
        assert status(machine.runner, machine.paths, installed.tcti)["hydration"]["percent"] == 100.0
        assert PLAINTEXT[:64] not in Path(installed.partition).read_bytes()
        assert PLAINTEXT[:64] in Path(f"{installed.device}p2").read_bytes()
    assert told[-1].startswith("100.0 %")
    with installed.booting() as machine:
        assert boot(machine) is Action.OPEN
        with mounted() as root:
            assert (root / "plaintext").read_bytes() == PLAINTEXT


def test_a_complete_clone_reads_nothing_of_the_image_but_wants_it_there(installed: Lab) -> None:
    with installed.booting() as machine:
        assert boot(machine) is Action.OPEN
        with mounted() as root:
            upkeep.finish(machine, Ears(lambda _: None, lambda _: None), str(root))
        found = installed.anchor().anchor
        assert found is not None and found.complete
    with installed.image.open("r+b") as disk:
        [data] = gpt.read_table(disk, installed.image.stat().st_size, "disk").of_type(gpt.ROOT_X86_64)
        disk.seek(data.offset)
        disk.write(bytes(data.size))
    with installed.booting() as machine:
        assert boot(machine) is Action.OPEN
        assert all(isinstance(target, Linear) for target in machine.mapper.table("fde-root"))
        with mounted() as root:
            assert (root / "plaintext").read_bytes() == PLAINTEXT
    with installed.booting() as machine:
        machine.mapper.remove("root")
        with pytest.raises(Refusal) as caught:
            boot(machine)
        assert caught.value.code == "verity-missing"


CUTS = (
    ("cryptsetup", "luksFormat"),
    ("systemd-cryptenroll",),
    ("cryptsetup", "token"),
    ("systemd-cryptsetup", "attach"),
    ("dmsetup", "create", "fde-clone-dest"),
    ("dmsetup", "create", "fde-root"),
)


def test_a_power_cut_between_any_two_steps_of_the_first_boot_starts_it_over(lab: Lab) -> None:
    with lab.booting() as machine, power_cut_at(first_boot.partition, "create"):
        boot(machine)
    for before in CUTS:
        with lab.booting() as machine:
            cut = CutRunner(*before)
            with pytest.raises(PowerCut):
                boot(replace(machine, runner=cut))
            found = lab.anchor()
            assert found.anchor is not None and found.anchor.state is State.INITIALIZING, before
    # The last step: everything is there, only the anchor does not say so yet.
    with lab.booting() as machine, power_cut_at(first_boot.anchoring, "ready"):
        boot(machine)
    with lab.booting() as machine:
        assert boot(machine) is Action.FIRST_BOOT
        [disk] = [disk for disk in disks.disks() if disk.device == lab.device]
        partitions = {one.id for one in disk.table.of_type(gpt.FDE)}
        assert len(partitions) == 1
        with mounted() as root:
            assert (root / "plaintext").read_bytes() == PLAINTEXT


def test_a_power_cut_before_the_anchor_exists_starts_over(lab: Lab) -> None:
    with lab.booting() as machine:
        with opened(lab.tcti) as esys:
            anchors.define(esys, machine.key)
        assert lab.anchor().standing is Standing.UNWRITTEN
    with lab.booting() as machine:
        assert boot(machine) is Action.FIRST_BOOT


def test_a_second_power_cut_finds_the_anchor_still_there(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    with lab.booting() as machine:
        cut = CutRunner("systemd-cryptenroll")
        with pytest.raises(PowerCut):
            boot(replace(machine, runner=cut))

    def deleted(*_: Any) -> None:
        raise AssertionError("the anchor was taken away while a volume stood on the disk")

    monkeypatch.setattr(anchors, "define", deleted)
    with lab.booting() as machine:
        assert boot(machine) is Action.FIRST_BOOT


def test_what_systemd_passes_over_with_success_was_not_measured(installed: Lab) -> None:
    with installed.booting() as machine:
        log = machine.paths.measurements
        quiet, loud = PcrRunner(installed, forced=False), PcrRunner(installed)
        assert quiet.run(["systemd-pcrextend", "--pcr=11", "a word"]).status == 0
        with pytest.raises(FdeError, match="'a word' was not measured"):
            measure(quiet, 11, "a word", log)
        measure(loud, 11, "a word", log)
        with pytest.raises(FdeError, match="'a word' was not measured"):
            measure(quiet, 11, "a word", log)


def test_a_refusal_closes_the_tpm_until_the_next_reset(installed: Lab) -> None:
    with installed.booting() as machine:
        console.refuse(
            Refusal("header-mismatch", "/dev/x", "it differs", "stop"), PcrRunner(installed), machine.paths.state
        )
        assert json.loads((machine.paths.state / console.REFUSAL_FILE).read_text())["code"] == "header-mismatch"
        with pytest.raises(Refusal) as caught:
            boot(machine)
        assert caught.value.code == "key-unavailable"
    with installed.booting() as machine:
        assert boot(machine) is Action.OPEN
