# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is known about the root of a running system, as plain values; reads only."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Optional

from ..dm import clone
from ..dm import table as tables
from ..dm.device import DeviceMapper
from ..errors import FdeError
from ..tpm import anchor as anchors
from ..tpm.anchor import INDEX, Found
from ..tpm.esys import DEFAULT_TCTI, opened
from ..tpm.policy import PolicyKey
from .configuration import ConfigurationError, parse
from .console import REFUSAL_FILE
from .hydration import percent
from .machine import IMAGE, PATHS, VOLUME, Paths


def status(mapper: DeviceMapper, paths: Paths = PATHS, tcti: str = DEFAULT_TCTI) -> dict[str, Any]:
    """Return what is known about the root: strategy, mappings, progress, volume, anchor and the last refusal.

    What cannot be found out is None; ``problems`` then says why.
    """
    problems: list[str] = []
    root_hash = strategy = None
    try:
        configuration = parse(_text(paths.command_line) or "")
        root_hash, strategy = configuration.root_hash.hex(), configuration.strategy.value
    except ConfigurationError as error:
        problems.append(str(error))
    return {
        "strategy": strategy,
        "root_hash": root_hash,
        "mappings": _mappings(mapper, problems),
        "hydration": _hydration(mapper, problems),
        "luks_uuid": _luks_uuid(mapper, problems),
        "anchor": _anchor(paths, tcti, problems),
        "refusal": _refusal(paths),
        "problems": list(dict.fromkeys(problems)),
    }


def _mappings(mapper: DeviceMapper, problems: list[str]) -> dict[str, list[str]]:
    """Return the active tables of our devices by name; keys are not in them."""
    found = {}
    for name in (IMAGE, VOLUME, clone.NAMES.destination, clone.NAMES.metadata, clone.NAMES.root):
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


def _luks_uuid(mapper: DeviceMapper, problems: list[str]) -> Optional[str]:
    """Return the UUID of the volume as libcryptsetup put it into the mapping's own id."""
    try:
        device = mapper.find(VOLUME)
    except FdeError as error:
        problems.append(str(error))
        return None
    match = re.fullmatch(rf"CRYPT-LUKS2-([0-9a-f]{{32}})-{VOLUME}", device.uuid) if device else None
    return re.sub("(.{8})(.{4})(.{4})(.{4})(.{12})", r"\1-\2-\3-\4-\5", match[1]) if match else None


def _anchor(paths: Paths, tcti: str, problems: list[str]) -> Optional[dict[str, Any]]:
    try:
        with open(paths.public_key, "rb") as file:
            key = PolicyKey.from_pem(file.read(1 << 16), paths.public_key)
        with opened(tcti) as esys:
            return described(anchors.probe(esys, key))
    except OSError as error:
        problems.append(f"{paths.public_key}: {error.strerror}")
    except FdeError as error:
        problems.append(str(error))
    return None


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
            clean=found.anchor.clean,
            generation=found.anchor.generation,
            reservation=found.anchor.reservation,
            header_current=found.anchor.header_current.hex(),
            header_next=found.anchor.header_next.hex(),
            superblock=found.anchor.superblock.hex(),
            volume_key_id=found.anchor.volume_key_id.hex(),
        )
    return result


def _refusal(paths: Paths) -> Optional[dict[str, str]]:
    content = _text(str(paths.state / REFUSAL_FILE))
    loaded = json.loads(content) if content else None
    return loaded if isinstance(loaded, dict) else None


def _text(path: str) -> Optional[str]:
    try:
        return Path(path).read_text()
    except OSError:
        return None
