# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The options of the module, and how they become what is wanted of each volume."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Mapping, Optional, Sequence

from ..errors import FdeError
from ..luks2.method import Method, Passphrase, Recovery, Tpm2
from ..luks2.profile import PROFILES
from .wanted import FileSystemType, Mount, State, UnlockWith, Wanted

_WHEN = ["auto", "always", "never"]

UNLOCK = {
    "method": {"choices": ["tpm2", "recovery", "passphrase"], "required": True},
    "pcrs": {"type": "list", "elements": "int", "default": [7]},
    "public_key": {"type": "path"},
    "public_key_pcrs": {"type": "list", "elements": "int", "default": [11]},
    "pcrlock": {"type": "bool", "default": False},
    "passphrase": {"no_log": True},
}
UNLOCK_WITH = {
    "recovery_key": {"no_log": True},
    "passphrase": {"no_log": True},
    "key_file": {"type": "path", "no_log": False},
}
VOLUME = {
    "name": {"required": True},
    "device": {"type": "path", "required": True},
    "state": {"choices": [one.value for one in State], "default": "mounted"},
    "profile": {"choices": sorted(PROFILES), "default": "authenticated"},
    "file_system": {"choices": [one.value for one in FileSystemType], "default": "ext4"},
    "label": {"default": ""},
    "format_options": {"type": "list", "elements": "str", "default": []},
    "journal": {"choices": _WHEN, "default": "auto"},
    "wipe": {"choices": _WHEN, "default": "auto"},
    "size": {"type": "bytes", "default": "0"},
    "mount": {
        "type": "dict",
        "options": {
            "path": {"type": "path", "required": True},
            "options": {"type": "list", "elements": "str", "default": []},
        },
    },
    "unlock": {"type": "list", "elements": "dict", "options": UNLOCK, "default": [], "no_log": False},
    "unlock_with": {
        "type": "dict",
        "options": UNLOCK_WITH,
        "required_one_of": [sorted(UNLOCK_WITH)],
        "mutually_exclusive": [sorted(UNLOCK_WITH)],
    },
    "boot": {"type": "bool", "default": True},
    "nofail": {"type": "bool", "default": True},
    "force": {},
    "adopt": {"type": "bool", "default": False},
}
ESCROW = {
    "certificates": {"type": "list", "elements": "path", "required": True},
    "directory": {"type": "path"},
    "store_with": {},
    "options": {"type": "dict", "default": {}},
}
ARGUMENTS: Mapping[str, Any] = {
    "volumes": {"type": "list", "elements": "dict", "options": VOLUME, "required": True},
    "tpm2_device": {"default": "auto"},
    "escrow": {
        "type": "dict",
        "options": ESCROW,
        "required_one_of": [["directory", "store_with"]],
        "mutually_exclusive": [["directory", "store_with"]],
    },
    # What the action plugin brings.
    "agent": {"type": "path"},
    "host": {},
    "certificates": {"type": "list", "elements": "str", "default": []},
    "escrowed": {"type": "dict", "default": {}},
}


def wanted_volumes(parameters: Mapping[str, Any]) -> tuple[Wanted, ...]:
    """Return what is wanted of every volume. Raises ``FdeError`` for options that cannot be meant."""
    return tuple(_wanted(volume, parameters) for volume in parameters["volumes"])


def _wanted(volume: Mapping[str, Any], parameters: Mapping[str, Any]) -> Wanted:
    kind = FileSystemType(volume["file_system"])
    profile = PROFILES[volume["profile"]]
    mount, given = volume["mount"], volume["unlock_with"]
    state = State(volume["state"])
    if kind is FileSystemType.NONE and state is State.MOUNTED:
        # There is nothing to mount; the default state of a volume is then to be open.
        state = State.OPEN
    try:
        unlock = tuple(_method(one) for one in volume["unlock"])
    except ValueError as error:
        raise FdeError(f"volume {volume['name']!r}", str(error), "Correct its unlock methods") from error
    phrases = [one["passphrase"] for one in volume["unlock"] if one["passphrase"]]
    return Wanted(
        name=volume["name"],
        device=volume["device"],
        state=state,
        profile=profile,
        # Without it a write that a crash tears makes a sector unreadable, and btrfs too writes its superblock in place.
        journal=_when(volume["journal"], True),
        # A sector of an authenticated volume that was never written cannot be read, and somebody will try.
        wipe=_when(volume["wipe"], profile.integrity is not None),
        file_system=kind,
        label=volume["label"],
        format_options=tuple(volume["format_options"]),
        mount=None if mount is None else Mount(mount["path"], tuple(mount["options"])),
        unlock=unlock,
        passphrase=phrases[0] if phrases else None,
        unlock_with=None if given is None else UnlockWith(**given),
        force=volume["force"],
        adopt=volume["adopt"],
        least_size=volume["size"],
        boot=volume["boot"],
        nofail=volume["nofail"],
        tpm2_device=parameters["tpm2_device"],
        certificates=tuple(one.encode() for one in parameters["certificates"]),
        host=parameters["host"] or "localhost",
    )


def _when(choice: str, automatic: bool) -> bool:
    return automatic if choice == "auto" else choice == "always"


def _method(one: Mapping[str, Any]) -> Method:
    if one["method"] == "recovery":
        return Recovery()
    if one["method"] == "passphrase":
        return Passphrase()
    return Tpm2(tuple(one["pcrs"]), _public_key(one["public_key"]), tuple(one["public_key_pcrs"]), one["pcrlock"])


def _public_key(path: Optional[str]) -> Optional[bytes]:
    if path is None:
        return None
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise FdeError(path, f"the public key cannot be read: {error.strerror}", "Correct public_key") from error


def secrets_of(volumes: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return every secret in the options of volumes, to be kept out of results."""
    found = [one.get("passphrase") for volume in volumes for one in volume.get("unlock") or ()]
    for volume in volumes:
        given = volume.get("unlock_with") or {}
        found += [given.get("passphrase"), given.get("recovery_key")]
    return [secret for secret in found if secret]
