# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is known about the root of a running system, as plain values; reads only."""

from __future__ import annotations

import re
from typing import Any, Callable, Optional, TypeVar

from ..dm import clone, written
from ..dm import table as tables
from ..dm.device import DeviceMapper
from ..errors import FdeError
from ..luks2.area import HeaderArea, read_area
from ..luks2.volume import underlying
from ..runner import Runner
from ..tpm.anchor import INDEX, Found
from ..tpm.esys import DEFAULT_TCTI
from . import anchoring, masks, refusals
from .hydration import percent
from .machine import IMAGE, PATHS, VOLUME, Paths, this_machine
from .strategy_overlay import UPPER_DEVICE

_T = TypeVar("_T")


def status(runner: Runner, paths: Paths = PATHS, tcti: str = DEFAULT_TCTI) -> dict[str, Any]:
    """Return what is known about the root: strategy, mappings, progress, volume, anchor and the last refusal.

    What cannot be found out is None; ``problems`` then says why.
    """
    problems: list[str] = []
    mapper = DeviceMapper(runner)
    machine = _told(lambda: this_machine(runner, paths, tcti), problems)
    found = _told(lambda: anchoring.look(machine), problems) if machine else None
    device = _told(lambda: underlying(mapper, VOLUME), problems)
    header = _told(lambda: read_area(device), problems) if device else None
    return {
        "strategy": machine.configuration.strategy.value if machine else None,
        "root_hash": machine.configuration.root_hash.hex() if machine else None,
        "mappings": _mappings(mapper, problems),
        "hydration": _hydration(mapper, problems),
        "written": _written(mapper, problems),
        "overlay": masks.report(paths.state),
        "device": device,
        "luks_uuid": _luks_uuid(mapper, problems),
        "header_digest": header.digest.hex() if header else None,
        "anchor": {**described(found), "matches": matches(found, header)} if found else None,
        "refusal": _told(lambda: refusals.recall(machine), problems) if machine else None,
        "problems": list(dict.fromkeys(problems)),
    }


def _told(look: Callable[[], _T], problems: list[str]) -> Optional[_T]:
    """Return what a look gives, or None after saying why it failed."""
    try:
        return look()
    except (FdeError, OSError) as error:
        problems.append(str(error))
        return None


def matches(found: Found, header: Optional[HeaderArea]) -> Optional[bool]:
    """Tell whether the next boot accepts the header that is on the disk now; None where that cannot be told."""
    return None if header is None or found.anchor is None else header.digest in found.anchor.pinned


def _mappings(mapper: DeviceMapper, problems: list[str]) -> dict[str, list[str]]:
    """Return the active tables of our devices by name; keys are not in them."""
    found = {}
    for name in (IMAGE, VOLUME, clone.NAMES.destination, clone.NAMES.metadata, clone.NAMES.root, UPPER_DEVICE):
        try:
            if mapper.find(name) is not None:
                found[name] = tables.render(mapper.table(name)).splitlines()
        except FdeError as error:
            problems.append(str(error))
    return found


def _hydration(mapper: DeviceMapper, problems: list[str]) -> Optional[dict[str, Any]]:
    """Return the progress in regions; a root that is no clone any more is complete."""
    try:
        if mapper.find(clone.NAMES.root) is None:
            return None
        if not clone.is_clone(mapper):
            return {"hydrated": 1, "total": 1, "percent": 100.0, "running": False}
        state = clone.status(mapper)
    except FdeError as error:
        problems.append(str(error))
        return None
    return {
        "hydrated": state.hydrated,
        "total": state.total,
        "percent": percent(state),
        "running": state.background and not state.complete,
    }


def _written(mapper: DeviceMapper, problems: list[str]) -> Optional[dict[str, int]]:
    """Return how many bytes of the volume the root has or will have when it is hydrated, and how many there are."""
    try:
        volume = mapper.find(VOLUME)
        for name in (clone.NAMES.destination, clone.NAMES.root, UPPER_DEVICE):
            if volume is None or mapper.find(name) is None:
                continue
            for target in mapper.table(name):
                if isinstance(target, tables.Linear) and target.device == volume.number:
                    room = written.room(volume, target.offset)
                    return {"bytes": target.length * tables.SECTOR, "of": room * tables.SECTOR}
    except FdeError as error:
        problems.append(str(error))
    return None


def _luks_uuid(mapper: DeviceMapper, problems: list[str]) -> Optional[str]:
    """Return the UUID of the volume as libcryptsetup put it into the mapping's own id."""
    try:
        device = mapper.find(VOLUME)
    except FdeError as error:
        problems.append(str(error))
        return None
    match = re.fullmatch(rf"CRYPT-LUKS2-([0-9a-f]{{32}})-{VOLUME}", device.uuid) if device else None
    return re.sub("(.{8})(.{4})(.{4})(.{4})(.{12})", r"\1-\2-\3-\4-\5", match[1]) if match else None


def described(found: Found) -> dict[str, Any]:
    """Return an anchor as plain values; ``standing`` is "ours" when its Name is the one of this image's key."""
    result: dict[str, Any] = {
        "nv_index": f"{INDEX:#010x}",
        "standing": found.standing.value,
        "name": found.name.hex() if found.name else None,
    }
    if found.anchor is not None:
        result.update(
            state=found.anchor.state.name.lower(),
            complete=found.anchor.complete,
            generation=found.anchor.generation,
            recoveries=found.anchor.recoveries,
            refusals=found.anchor.refusals,
            svn=found.anchor.svn,
            last_refusal=found.anchor.last_refusal or None,
            header_current=found.anchor.header_current.hex(),
            header_next=found.anchor.header_next.hex(),
            header_previous=found.anchor.header_previous.hex(),
            volume_key_id=found.anchor.volume_key_id.hex(),
        )
    return result
