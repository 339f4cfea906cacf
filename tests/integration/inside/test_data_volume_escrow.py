# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Recovery keys on their way into escrow: whatever is lost, something that the owner has opens the volume."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.cvm.fde.plugins.module_utils.errors import FdeError
from ansible_collections.cvm.fde.plugins.module_utils.luks2.method import Passphrase, Recovery
from ansible_collections.cvm.fde.plugins.module_utils.volume import boot
from ansible_collections.cvm.fde.plugins.module_utils.volume import pin as pins
from ansible_collections.cvm.fde.plugins.module_utils.volume.confirmation import confirm
from ansible_collections.cvm.fde.plugins.module_utils.volume.machine import Machine
from ansible_collections.cvm.fde.plugins.module_utils.volume.volumes import Interrupted, apply_all, plan_all
from ansible_collections.cvm.fde.plugins.module_utils.volume.wanted import Mount, State, UnlockWith, Wanted
from owner import NAME, Owner

SIZE = 48 << 20
PASSPHRASE = "one passphrase"


def recoverable(owner: Owner, device: str, **options: Any) -> Wanted:
    """Return a volume that nothing but a recovery key opens."""
    defaults = {"unlock": (Recovery(),), "certificates": (owner.certificate(),), "profile": "confidential"}
    return owner.wants(device, **{**defaults, **options})


def unheard(owner: Owner, wanted: Wanted) -> Mapping[str, Any]:
    """Run, and lose the connection before the control node knows anything of it."""
    machine = Machine(owner.runner, owner.machine.places)
    return apply_all(machine, plan_all(machine, [wanted]))[0]


def restarted(owner: Owner) -> None:
    """Close everything, as a reboot does when nothing opens the volume."""
    owner.runner.run(["umount", str(owner.mount_point)], ok=())
    owner.cut_power()


def actions(told: Mapping[str, Any]) -> list[str]:
    return [step["action"] for step in told["steps"]]


def opens(owner: Owner, device: str, key: str) -> bool:
    """Whether a key opens the volume as its header on the disk is now."""
    argv = ["cryptsetup", "open", "--test-passphrase", "--disable-external-tokens", "--key-file", "-", device]
    return owner.runner.run(argv, stdin=key.encode(), ok=()).status == 0


def test_a_connection_that_is_lost_before_the_escrow_costs_nothing(owner: Owner, disk: Callable[..., str]) -> None:
    device = disk(SIZE)
    wanted = recoverable(owner, device)
    first = unheard(owner, wanted)
    (owner.mount_point / "file").write_text("kept")
    assert first["escrow"]["confirmed"] is False
    # Nothing opens it but the key that is on its way, and nothing has to: the same envelope goes out again.
    again = owner.run(wanted)
    assert again["handover"] == first["handover"] and actions(again) == ["hand-over"]
    assert opens(owner, device, owner.recovery_key)
    assert owner.run(wanted)["steps"] == [] and not owner.machine.places.envelope(NAME).exists()
    owner.run(replace(wanted, state=State.CLOSED))
    owner.run(replace(wanted, unlock_with=UnlockWith(recovery_key=owner.recovery_key)))
    assert (owner.mount_point / "file").read_text() == "kept"


@pytest.mark.parametrize("method", ["recovery", "passphrase"])
def test_the_old_key_opens_the_volume_until_the_new_one_is_in_escrow(
    owner: Owner, disk: Callable[..., str], tmp_path: Path, method: str
) -> None:
    """A disk that moved to another machine is adopted with its old key, and gets a new one."""
    device = disk(SIZE)
    if method == "passphrase":
        wanted = owner.wants(device, unlock=(Passphrase(),), passphrase=PASSPHRASE, profile="confidential")
    else:
        wanted = recoverable(owner, device)
    owner.run(wanted)
    owner.run(replace(wanted, state=State.CLOSED))
    key = PASSPHRASE if method == "passphrase" else owner.recovery_key
    given = UnlockWith(passphrase=key) if method == "passphrase" else UnlockWith(recovery_key=key)
    new = Owner(owner.runner, tmp_path / "new-machine", owner.tcti)
    adopted = recoverable(new, device, adopt=True, unlock_with=given)
    told = unheard(new, adopted)
    assert actions(told) == ["adopt", "open", "change-keyslots", "store", "ready", "mount"]
    pinned = [pins.load(one.machine.places.pin(NAME)) for one in (owner, new)]
    assert len({pin.volume_key_id for pin in pinned if pin is not None} - {None}) == 1
    assert not list(new.machine.places.run.glob("key-*"))
    assert sorted(told["unlock"]) == sorted(["recovery", method]) and opens(new, device, key)
    assert f"({method}) once the recovery key is in escrow" in told["steps"][2]["subject"]
    # The envelope was lost on the way. The next run hands it over, and only then the old key goes.
    settled = replace(adopted, adopt=False, unlock_with=None)
    assert actions(new.run(settled)) == ["hand-over"]
    assert not opens(new, device, key) and opens(new, device, new.recovery_key)
    assert new.run(settled)["steps"] == []
    boot.header(new.machine, NAME)


def test_a_recovery_key_for_other_certificates_is_made_anew(
    owner: Owner, disk: Callable[..., str], tmp_path: Path
) -> None:
    wanted = recoverable(owner, disk(SIZE))
    unheard(owner, wanted)
    other = Owner(owner.runner, tmp_path / "other-owner", owner.tcti)
    changed = replace(wanted, certificates=(other.certificate(),))
    with pytest.raises(FdeError, match="name the escrow certificates again"):
        owner.run(changed)
    assert actions(owner.run(wanted)) == ["hand-over"]


@pytest.mark.parametrize("heard", [True, False], ids=["at once", "after a lost connection"])
def test_a_recovery_key_in_escrow_follows_a_change_of_certificates(
    owner: Owner, disk: Callable[..., str], tmp_path: Path, heard: bool
) -> None:
    device = disk(SIZE)
    wanted = replace(recoverable(owner, device), unlock=(Recovery(), Passphrase()), passphrase=PASSPHRASE)
    owner.run(wanted)
    old = owner.recovery_key
    other = Owner(owner.runner, tmp_path / "other-owner", owner.tcti)
    changed = replace(wanted, certificates=(other.certificate(),))
    told = owner.run(changed) if heard else unheard(owner, changed)
    assert actions(told) == ["change-keyslots", "store", "ready"]
    assert "(recovery) once the recovery key is in escrow" in told["steps"][0]["subject"]
    if not heard:
        assert opens(owner, device, old)
        assert actions(owner.run(changed)) == ["hand-over"]
    other.envelope.write_bytes(owner.envelope.read_bytes())
    assert not opens(owner, device, old) and opens(owner, device, other.recovery_key)
    settled = owner.run(changed)
    assert (settled["steps"], sorted(settled["unlock"])) == ([], ["passphrase", "recovery"])


def test_the_only_key_goes_out_although_nothing_opens_the_volume(owner: Owner, disk: Callable[..., str]) -> None:
    wanted = recoverable(owner, disk(SIZE))
    unheard(owner, wanted)
    (owner.mount_point / "file").write_text("kept")
    restarted(owner)
    with pytest.raises(Interrupted, match="nothing at hand opens"):
        owner.run(wanted)
    assert owner.run(replace(wanted, unlock_with=UnlockWith(recovery_key=owner.recovery_key)))["state"] == "mounted"
    assert (owner.mount_point / "file").read_text() == "kept"


def test_what_fails_after_a_recovery_key_was_made_still_hands_it_over(
    owner: Owner, disk: Callable[..., str], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("no directory")
    wanted = recoverable(owner, disk(SIZE), mount=Mount(str(tmp_path / "file")))
    with pytest.raises(Interrupted) as caught:
        owner.run(wanted)
    [told] = caught.value.reports
    assert told["steps"][-1]["action"] == "ready" and told["state"] == "open"
    envelope = base64.b64decode(told["handover"]["content"])
    owner.envelope.write_bytes(envelope)
    confirm(owner.machine, NAME, hashlib.sha256(envelope).hexdigest())
    assert opens(owner, wanted.device, owner.recovery_key)


def test_a_recovery_key_that_another_program_replaced_does_not_count_as_escrowed(
    owner: Owner, disk: Callable[..., str]
) -> None:
    device = disk(SIZE)
    wanted = replace(recoverable(owner, device), unlock=(Recovery(), Passphrase()), passphrase=PASSPHRASE)
    owner.run(wanted)
    owner.run(replace(wanted, state=State.CLOSED))
    old = owner.recovery_key
    slot = pins.load(owner.machine.places.pin(NAME))
    assert slot is not None and slot.escrow is not None
    owner.runner.run(
        ["systemd-cryptenroll", "--wipe-slot=recovery", "--recovery-key", f"--unlock-key-file={phrase(owner)}", device]
    )
    assert not opens(owner, device, old)
    adopting = replace(wanted, adopt=True, unlock_with=UnlockWith(passphrase=PASSPHRASE))
    told = owner.run(adopting)
    assert "add recovery" in told["steps"][2]["subject"] and owner.recovery_key != old
    assert opens(owner, device, owner.recovery_key) and sorted(told["unlock"]).count("recovery") == 2
    assert owner.run(wanted)["steps"] == [] and sorted(owner.run(wanted)["unlock"]) == ["passphrase", "recovery"]


def phrase(owner: Owner) -> str:
    """Return a file with the passphrase."""
    path = owner.root / "phrase"
    path.write_text(PASSPHRASE)
    path.chmod(0o600)
    return str(path)


def test_an_envelope_that_is_not_the_last_one_confirms_nothing(owner: Owner, disk: Callable[..., str]) -> None:
    wanted = recoverable(owner, disk(SIZE))
    told = unheard(owner, wanted)
    with pytest.raises(FdeError, match="another recovery key"):
        confirm(owner.machine, NAME, "00" * 32)
    for _time in range(2):
        pin = confirm(owner.machine, NAME, told["handover"]["digest"])
        assert pin.pending is None and pin.escrow is not None
