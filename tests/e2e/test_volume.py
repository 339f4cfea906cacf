# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Data volumes of a machine as anybody has one: made, unlocked by its TPM at boot, lost to a new TPM, and recovered.

One guest of each suite goes through four boots, with a volume of every kind of TPM policy: literal PCRs, PCRs whose
values are signed, and systemd-pcrlock's.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

import pytest
from ansible_collections.cvm.fde.tests.lab.ansible import inventory, playbook
from ansible_collections.cvm.fde.tests.lab.disks import GIB, MIB, DataDisk
from ansible_collections.cvm.fde.tests.lab.guest import Guest, boot
from ansible_collections.cvm.fde.tests.lab.images import base_image
from ansible_collections.cvm.fde.tests.lab.peers import peers
from ansible_collections.cvm.fde.tests.lab.progress import step
from ansible_collections.cvm.fde.tests.lab.trees import SUITES
from ansible_collections.cvm.fde.tests.lab.volumes import PACKAGES, escrow_certificate
from ansible_collections.cvm.fde.tests.spelling import spelt_recovery_key

HERE = Path(__file__).parent
DISKS = {
    "data": DataDisk(96 * MIB, "virtio", 512, "DATA"),
    "logs": DataDisk(192 * MIB, "nvme", 4096, "LOGS"),
    "vault": DataDisk(96 * MIB, "scsi", 512, "VAULT"),
}
FILE_SYSTEMS = {"data": "ext4", "logs": "btrfs", "vault": "ext4"}
#: What the TPM asks for before it unlocks each of them.
POLICIES: dict[str, dict[str, object]] = {
    "data": {"pcrs": [7]},
    # Where systemd's stub leaves what the kernel image carries.
    "logs": {"pcrs": [], "public_key": "/run/systemd/tpm2-pcr-public-key.pem", "public_key_pcrs": [11]},
    "vault": {"pcrs": [], "pcrlock": True},
}
#: What an operator does once for systemd-pcrlock, and again for a new TPM.
PREDICT = (
    "rm -f /var/lib/systemd/pcrlock.json; cd /usr/lib/systemd && ./systemd-pcrlock lock-secureboot-policy"
    " && ./systemd-pcrlock lock-secureboot-authority && ./systemd-pcrlock make-policy --pcr=7"
)
#: How systemd-cryptsetup of each suite says that the TPM is another one.
ANOTHER_TPM = {
    "forky": "most likely does not belong to this TPM",
    "trixie": "Failed to unseal secret using TPM2: State not recoverable",
}
LOOK = (
    "for volume in data logs vault; do findmnt --noheadings --output SOURCE,FSTYPE /srv/$volume; "
    "cat /srv/$volume/file; done 2>/dev/null"
)


def wanted(unlock_with: Mapping[str, str]) -> list[dict[str, object]]:
    """Return what the role is told; ``unlock_with`` names the environment variable with the key of each volume."""
    return [
        {
            "name": name,
            "device": disk.by_id,
            "profile": "confidential" if name == "vault" else "authenticated",
            "file_system": FILE_SYSTEMS[name],
            "mount": {"path": f"/srv/{name}"},
            "unlock": [{"method": "tpm2", **POLICIES[name]}, {"method": "recovery"}],
            **(
                {"unlock_with": {"recovery_key": f"{{{{ lookup('ansible.builtin.env', '{unlock_with[name]}') }}}}"}}
                if name in unlock_with
                else {}
            ),
        }
        for name, disk in DISKS.items()
    ]


@dataclass
class Story:
    """What a guest went through: what the role did, and what was mounted and failed after each boot."""

    suite: str
    guest: Guest
    folder: Path
    did: dict[str, dict[str, Any]] = field(default_factory=dict)
    changed: dict[str, int] = field(default_factory=dict)
    mounted: dict[str, list[str]] = field(default_factory=dict)
    failed: dict[str, set[str]] = field(default_factory=dict)
    policy: dict[str, Any] = field(default_factory=dict)
    journal: dict[str, str] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)
    peer: dict[str, Any] = field(default_factory=dict)

    def apply(self, when: str, unlock_with: Optional[Mapping[str, str]] = None, packages: bool = False) -> None:
        """Apply the role, and keep what it did. The packages are in the image; apt needs long to find that out."""
        variables = {
            "volume_list": wanted(unlock_with or {}),
            "volume_escrow": {
                "certificates": [str(self.folder / "escrow.pem")],
                "directory": str(self.folder / "escrow"),
            },
            "volume_packages": packages,
        }
        self._play("volume.yml", when, variables)
        self.did[when] = self._told(when)
        (changed,) = re.findall(r"changed=(\d+)", (self.folder / f"{when}.log").read_text())
        self.changed[when] = int(changed)

    def open_with_the_peer(self) -> None:
        self._play("volume_peer.yml", "peer", {"disk": DISKS["data"].by_id})
        self.peer = self._told("peer")

    def look(self, when: str) -> None:
        """Keep what is mounted with what content, and which units failed, once the boot has come to its end.

        It does not wait for such volumes before ssh answers.
        """
        self.guest.ssh("systemctl is-system-running --wait", check=False, timeout=1200)
        self.mounted[when] = self.guest.ssh(LOOK, check=False).stdout.split("\n")[:-1]
        failed = json.loads(self.guest.ssh("systemctl list-units --failed --output=json").stdout)
        self.failed[when] = {unit["unit"] for unit in failed}

    def _play(self, play: str, when: str, variables: Mapping[str, object]) -> None:
        hosts = inventory(self.folder / "hosts.json", {"guests": {self.guest.name: self.guest.inventory()}})
        with step(f"{self.guest.name}: {play}, {when}"):
            playbook(
                str(HERE / play),
                hosts,
                {**variables, "told": str(self.folder / f"{when}.json")},
                log=self.folder / f"{when}.log",
                env={f"RECOVERY_{name.upper()}": key for name, key in self.keys.items()},
                collections=peers() if play == "volume_peer.yml" else None,
            )

    def _told(self, when: str) -> dict[str, Any]:
        told = json.loads((self.folder / f"{when}.json").read_text())
        assert isinstance(told, dict)
        return told

    def read_envelopes(self) -> None:
        for envelope in (self.folder / "escrow").glob("*.cms"):
            words = ["openssl", "cms", "-decrypt", "-inform", "DER", "-in", envelope, "-inkey"]
            opened = subprocess.run([*words, self.folder / "escrow.key"], check=True, capture_output=True)
            content = json.loads(opened.stdout)
            self.keys[content["volume"]] = content["recovery_key"]


@pytest.fixture(scope="module", params=SUITES)
def story(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    suite = request.param
    folder = tmp_path_factory.mktemp("volume")
    image = base_image(suite, more=PACKAGES, measured=True)
    guest = Guest.create(f"e2e-volume-{suite}", image, size=3 * GIB, disks=list(DISKS.values()))
    escrow_certificate(folder)
    told = Story(suite, guest, folder)
    try:
        boot(guest)
        guest.ssh(PREDICT)
        told.policy = json.loads(guest.ssh("cat /var/lib/systemd/pcrlock.json").stdout)
        told.apply("made")
        guest.ssh("for volume in data logs vault; do echo kept >/srv/$volume/file; done")
        guest.reboot()
        told.look("rebooted")
        told.apply("again", packages=True)
        guest.ssh("tpm2_clear")
        guest.reboot()
        told.look("cleared")
        for name in DISKS:
            said = f"journalctl --boot --unit systemd-cryptsetup@{name} --output cat --no-pager"
            told.journal[name] = guest.ssh(said).stdout
        told.read_envelopes()
        told.open_with_the_peer()
        guest.ssh(PREDICT)
        told.apply("recovered", {name: f"RECOVERY_{name.upper()}" for name in DISKS})
        guest.reboot()
        told.look("recovered")
        told.journal["all"] = guest.ssh("journalctl --no-pager --output cat; dmesg").stdout
        yield told
    finally:
        guest.power_off()


#: What LOOK finds where all is well.
ALL = [line for name, kind in FILE_SYSTEMS.items() for line in (f"/dev/mapper/{name} {kind}", "kept")]


def test_the_role_makes_a_volume_for_every_kind_of_policy(story: Story) -> None:
    unlock = {volume["name"]: volume["unlock"] for volume in story.did["made"]["volumes"]}
    assert unlock == {
        "data": ["tpm2 (PCR 7)", "recovery"],
        "logs": ["tpm2 (signed PCR 11)", "recovery"],
        "vault": ["tpm2 (pcrlock)", "recovery"],
    }
    assert [entry["pcr"] for entry in story.policy["pcrValues"]] == [7], "a policy without PCRs always holds"


def test_the_tpm_unlocks_every_volume_at_boot_without_anyone(story: Story) -> None:
    assert story.mounted["rebooted"] == ALL
    assert story.failed["rebooted"] == set()


def test_the_same_role_after_a_boot_changes_nothing(story: Story) -> None:
    assert story.changed["made"] > 0
    assert story.changed["again"] == 0
    assert [volume["steps"] for volume in story.did["again"]["volumes"]] == [[], [], []]


def test_the_boot_goes_on_without_the_volumes_that_a_cleared_tpm_cannot_unlock(story: Story) -> None:
    assert story.mounted["cleared"] == []
    assert story.failed["cleared"] == {f"systemd-cryptsetup@{name}.service" for name in DISKS}


@pytest.mark.parametrize("name", DISKS)
def test_the_unit_says_why_a_volume_stayed_closed(story: Story, name: str) -> None:
    assert ANOTHER_TPM[story.suite] in story.journal[name], story.journal[name]


def test_another_collection_opens_a_volume_and_changes_nothing_of_it(story: Story) -> None:
    assert story.peer == {"changed": [False, True], "name": "peer", "content": "kept"}


def test_the_recovery_keys_out_of_the_envelopes_let_the_role_enrol_the_tpm_anew(story: Story) -> None:
    assert set(story.keys) == set(DISKS)
    for volume in story.did["recovered"]["volumes"]:
        done = [one["action"] for one in volume["steps"]]
        assert done == ["open", "change-keyslots", "store", "ready", "mount"], volume["name"]


def test_the_next_boot_unlocks_them_again(story: Story) -> None:
    assert story.mounted["recovered"] == ALL
    assert story.failed["recovered"] == set()


def test_no_recovery_key_is_in_a_log(story: Story) -> None:
    files = [*story.folder.glob("*.log"), *story.folder.glob("*.json"), story.guest.serial.path]
    logs = b"\n".join([story.journal["all"].encode(), *(path.read_bytes() for path in files)])
    assert [name for name, key in story.keys.items() if any(one in logs for one in spelt_recovery_key(key))] == []
