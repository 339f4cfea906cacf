# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Boots on TPMs that are not as they should be, and what a first boot leaves behind."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import tpm2_pytss as tss
from ansible_collections.cvm.fde.plugins.module_utils.agent import anchoring, first_boot, upkeep, volume_key
from ansible_collections.cvm.fde.plugins.module_utils.agent.boot import boot
from ansible_collections.cvm.fde.plugins.module_utils.agent.decision import Action
from ansible_collections.cvm.fde.plugins.module_utils.agent.hydration import Ears
from ansible_collections.cvm.fde.plugins.module_utils.agent.process import SubprocessRunner
from ansible_collections.cvm.fde.plugins.module_utils.errors import Refusal
from ansible_collections.cvm.fde.plugins.module_utils.tpm import anchor as anchors
from ansible_collections.cvm.fde.plugins.module_utils.tpm.anchor import Standing, State
from ansible_collections.cvm.fde.plugins.module_utils.tpm.esys import TpmError, opened
from ansible_collections.cvm.fde.plugins.module_utils.tpm.policy import PolicyKey, bound_values
from ansible_collections.cvm.fde.tests.spelling import spelt
from instance import ENVIRONMENT, PLAINTEXT, Lab, mounted, refused


def index(handle: int, size: int, attributes: str) -> Any:
    area = tss.TPMS_NV_PUBLIC(
        nvIndex=handle, nameAlg=tss.TPM2_ALG.SHA256, attributes=tss.TPMA_NV.parse(attributes), dataSize=size
    )
    return tss.TPM2B_NV_PUBLIC(nvPublic=area)


def fill(esys: Any) -> None:
    handle = 0x01810000
    for size in (2048, 64):
        with pytest.raises(tss.TSS2_Exception, match="insufficient space"):
            while True:
                esys.nv_define_space(b"", index(handle, size, "ownerwrite|ownerread"))
                handle += 1


def own(esys: Any) -> None:
    esys.hierarchy_change_auth(tss.ESYS_TR.OWNER, b"password")


def switch_off(esys: Any) -> None:
    esys.hierarchy_control(tss.ESYS_TR.PLATFORM, tss.ESYS_TR.OWNER, False)


def protect(esys: Any) -> None:
    theirs = index(0x0180FDE0, 176, "ppwrite|ppread|authread|noda|platformcreate")
    esys.nv_define_space(b"", theirs, auth_handle=tss.ESYS_TR.PLATFORM)


def lock(esys: Any) -> None:
    esys.dictionary_attack_parameters(1, 1000, 1000)
    guarded = esys.nv_define_space(b"password", index(0x01810000, 64, "authwrite|authread"))
    esys.tr_set_auth(guarded, b"guess")
    with pytest.raises(tss.TSS2_Exception):
        esys.nv_write(guarded, b"x", 0, guarded)


@pytest.mark.parametrize(
    ("spoil", "code"),
    [(fill, "anchor-no-room"), (own, "tpm-owned"), (switch_off, "tpm-owned"), (protect, "anchor-foreign")],
)
def test_a_tpm_that_takes_no_anchor_ends_the_first_boot_before_anything_is_made(
    lab: Lab, spoil: Any, code: str
) -> None:
    with lab.booting() as machine:
        with opened(lab.tcti) as esys:
            spoil(esys)
        with pytest.raises(Refusal) as caught:
            boot(machine)
        assert caught.value.code == code
        assert not Path(lab.partition).exists()


def occupy(esys: Any, key: PolicyKey) -> None:
    """Make an index of the owner's in the place of the anchor, with what could be the content of one."""
    del key
    theirs = esys.nv_define_space(b"", index(anchors.INDEX, anchors.SIZE, "ownerwrite|ownerread|authread|no_da"))
    content = anchors.Anchor(State.READY, header_current=b"h" * 32, volume_key_id=b"k" * 32).marshal()
    esys.nv_write(theirs, content, 0, tss.ESYS_TR.OWNER)


def occupy_orderly(esys: Any, key: PolicyKey) -> None:
    """Make an index that is ours but for one attribute."""
    area, _size = tss.TPMS_NV_PUBLIC.unmarshal(anchors.public_area(key, bound_values(esys), written=False))
    area.attributes |= tss.TPMA_NV.ORDERLY
    esys.nv_define_space(b"", tss.TPM2B_NV_PUBLIC(nvPublic=area))


@pytest.mark.parametrize("theirs", [occupy, occupy_orderly])
def test_an_index_of_another_system_is_replaced_on_a_first_boot_and_refused_afterwards(
    lab: Lab, theirs: Callable[[Any, PolicyKey], None]
) -> None:
    with lab.booting() as machine:
        with opened(lab.tcti) as esys:
            theirs(esys, machine.key)
        assert lab.anchor().standing is Standing.FOREIGN
        assert boot(machine) is Action.FIRST_BOOT
        assert lab.anchored().state is State.READY
    with lab.booting() as machine:
        assert boot(machine) is Action.OPEN
        with opened(lab.tcti) as esys:
            esys.nv_undefine_space(esys.tr_from_tpmpublic(anchors.INDEX))
            theirs(esys, machine.key)
    assert refused(lab) == "anchor-foreign"


def test_a_later_boot_needs_the_owner_hierarchy_and_not_its_password(installed: Lab) -> None:
    with installed.booting() as machine:
        with opened(installed.tcti) as esys:
            switch_off(esys)
        with pytest.raises(TpmError, match="handle"):
            boot(machine)
        assert machine.mapper.find("fde-crypt") is None
    with installed.booting() as machine:
        with opened(installed.tcti) as esys:
            own(esys)
        assert boot(machine) is Action.OPEN


def test_a_tpm_in_lockout_opens_the_volume(installed: Lab) -> None:
    with installed.booting() as machine:
        with opened(installed.tcti) as esys:
            lock(esys)
        assert boot(machine) is Action.OPEN


@contextmanager
def worn_out() -> Iterator[None]:
    """Have the TPM take no write; a software TPM never wears out."""

    def refuse(*_: Any) -> None:
        raise TpmError("swtpm", "NV_RATE", 0x920)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(anchors, "write", refuse)
        yield


def test_a_complete_root_opens_with_a_tpm_that_takes_no_write(installed: Lab) -> None:
    with installed.booting() as machine, worn_out():
        assert boot(machine) is Action.OPEN
        with mounted() as root:
            upkeep.finish(machine, Ears(lambda _: None, lambda _: None), str(root))
    for takes in (False, True):
        with installed.booting() as machine, nullcontext() if takes else worn_out():
            assert boot(machine) is Action.OPEN
            with mounted() as root:
                assert (root / "plaintext").read_bytes() == PLAINTEXT
            assert installed.anchored().complete is takes


def test_a_change_of_the_header_that_is_over_waits_for_a_tpm_that_takes_a_write(installed: Lab) -> None:
    with installed.booting() as machine:
        anchoring.update(machine, lambda anchor: anchor.changing(bytes(range(32))))
    for takes in (False, True):
        with installed.booting() as machine, nullcontext() if takes else worn_out():
            assert boot(machine) is Action.OPEN
            assert any(installed.anchored().header_next) is not takes


def test_a_tpm_in_lockout_does_not_keep_a_machine_from_its_first_boot(lab: Lab) -> None:
    with lab.booting() as machine:
        with opened(lab.tcti) as esys:
            lock(esys)
        assert boot(machine) is Action.FIRST_BOOT
    with lab.booting() as machine:
        assert boot(machine) is Action.OPEN


class WatchedRunner(SubprocessRunner):
    """Keeps what programs are started with, and what they say."""

    def __init__(self) -> None:
        super().__init__(environment=ENVIRONMENT)
        self.seen = bytearray()

    def run(self, argv: Any, **options: Any) -> Any:
        done = super().run(argv, **options)
        self.seen += " ".join(argv).encode() + done.stdout + done.stderr
        return done


def test_a_first_boot_leaves_no_key_behind(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    secrets: list[bytes] = []
    held: list[bytearray] = []
    genuine_temporary, genuine_fresh = volume_key.temporary, volume_key.fresh

    def temporary() -> bytearray:
        held.append(genuine_temporary())
        secrets.append(bytes(held[-1]))
        return held[-1]

    @contextmanager
    def fresh(*arguments: Any) -> Any:
        with genuine_fresh(*arguments) as key:
            held.append(key)
            secrets.append(bytes(key))
            yield key

    monkeypatch.setattr(first_boot.volume_key, "temporary", temporary)
    monkeypatch.setattr(first_boot.volume_key, "fresh", fresh)
    with lab.booting() as machine:
        watched = WatchedRunner()
        object.__setattr__(machine, "runner", watched)
        assert boot(machine) is Action.FIRST_BOOT
        assert len(secrets) == 2 and all(len(set(secret)) > 16 for secret in secrets)
        assert [bytes(one) for one in held] == [bytes(len(one)) for one in held], "a key was not overwritten"
        said = bytes(watched.seen) + machine.runner.run(["dmesg"]).stdout
        places = {"the output of programs, their arguments and the kernel's log": said}
        for directory in ("/run", "/tmp", "/dev/shm", "/var/tmp"):
            for path in Path(directory).rglob("*"):
                # The disk and the TPM of the lab lie in memory here; both hold keys by design, wrapped or in the TPM.
                if path.is_file() and lab.directory not in path.parents and path.stat().st_size < 1 << 26:
                    places[str(path)] = path.read_bytes()
        for path in (lab.directory / "state").rglob("*"):
            places[str(path)] = path.read_bytes() if path.is_file() else b""
        places |= memory_files()
        places["the encrypted partition's header"] = Path(lab.partition).read_bytes()[: 8 << 20]
        leaks = [
            name for name, content in places.items() for one in secrets if any(s in content for s in spelt(one[:24]))
        ]
        assert leaks == []


def memory_files() -> dict[str, bytes]:
    """Return the content of every anonymous memory file that a process still holds."""
    found = {}
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if "memfd:" in os.readlink(link):
                found[str(link)] = link.read_bytes()
        except OSError:
            continue
    return found
