# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The first boot: a volume of its own for this instance, with a proof of where its key was made.

The anchor says ``initializing`` before anything is created and ``ready`` after everything is; a boot that ends between
these two starts over, because nothing of value was ever in the volume.
"""

from __future__ import annotations

import json
import uuid
from typing import Union

from ..disk.gpt import Partition
from ..luks2.area import read_area
from ..luks2.digest import volume_key_id
from ..luks2.profile import AUTHENTICATED, LAYOUT
from ..luks2.secret import wipe
from ..luks2.volume import enrol_tpm2, format_volume, import_token
from ..tpm import anchor as anchors
from ..tpm.anchor import Anchor, State
from ..tpm.esys import opened
from ..tpm.policy import BOUND_PCRS, bound_values
from . import anchoring, evidence, partition, volume_key
from .console import say
from .decision import Decision
from .disks import Bare, Disk
from .machine import VOLUME, Machine
from .opening import open_volume
from .strategies import ROOTS


def first_boot(machine: Machine, disk: Union[Disk, Bare], decision: Decision) -> None:
    """Make the volume on ``disk``, open it, put the root together and anchor it. Raises ``FdeError``."""
    root = ROOTS[machine.configuration.strategy]
    minimum, replace = root.minimum(machine), decision.volume is not None
    partition.require_room(disk, minimum, replace=replace)
    anchoring.start(machine, Anchor(State.INITIALIZING))
    say("first boot: making the encrypted volume of this instance")
    made, device = partition.create(machine.runner, disk, replace=replace)
    key_id = _make_volume(machine, made, device)
    area = read_area(device)
    open_volume(machine, area, key_id)
    complete = root.first(machine)
    anchoring.ready(machine, area.digest, key_id, complete)
    say(f"first boot: complete, volume key id {key_id.hex()}")


def _make_volume(machine: Machine, made: Partition, device: str) -> bytes:
    """Make the LUKS2 volume with its TPM keyslot and its evidence, and return the volume key id."""
    luks_uuid = uuid.uuid4()
    temporary = volume_key.temporary()
    try:
        with opened(machine.tcti) as esys, volume_key.fresh(esys) as key:
            key_id = bytes.fromhex(volume_key_id(key, VOLUME, str(luks_uuid)))
            format_volume(
                machine.runner,
                device,
                volume_key=key,
                temporary_key=temporary,
                uuid=str(luks_uuid),
            )
        enrol_tpm2(
            machine.runner,
            device,
            unlock_key=temporary,
            tpm2_device=machine.tcti,
            public_key=machine.paths.public_key,
            pcrs=BOUND_PCRS,
        )
    finally:
        wipe(temporary)
    creation = evidence.Creation(
        volume=VOLUME,
        volume_key_id=key_id,
        luks_uuid=luks_uuid,
        partition_uuid=made.id,
        cipher=AUTHENTICATED.encryption,
        integrity=str(AUTHENTICATED.integrity),
        sector_size=LAYOUT.sector_size,
    )
    with opened(machine.tcti) as esys:
        anchor = anchors.anchor_name(machine.key, bound_values(esys))
        claims = evidence.claims(creation, machine.configuration, anchor)
        import_token(machine.runner, device, json.loads(evidence.token(esys, claims)))
    return key_id
