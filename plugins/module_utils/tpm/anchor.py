# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The anchor: what the TPM remembers about the volume, in one NV index.

Only a signed phase of the image, booted as it was first booted (PCR 7 and 12), can write it; anyone can read it. The
owner of the TPM can delete the index and make another at the same place, but not one with our Name that holds a content
we did not write: the Name covers the write policy, and a new index of that policy is unwritten.
Source: TPM 2.0 Library part 2, section 13.6 (TPMS_NV_PUBLIC).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from enum import Enum, IntEnum
from typing import Any, Mapping, Optional, Sequence

from ..errors import FdeError
from .esys import exists, nv_read, tss
from .policy import PolicyKey, SignedPolicy, authorized, bound_policy, bound_values, object_name
from .templates import ALG_SHA256

INDEX = 0x0180FDE0

_POLICYWRITE = 1 << 3
_OWNERREAD = 1 << 17
_AUTHREAD = 1 << 18
_NO_DA = 1 << 25
_WRITTEN = 1 << 29
_ATTRIBUTES = _POLICYWRITE | _AUTHREAD | _OWNERREAD | _NO_DA

_LAYOUT = struct.Struct(">4sBBHQQ32s32s32s32s")
_MAGIC = b"CVFA"
_VERSION = 1
_CLEAN = 1
_COMPLETE = 2
SIZE = _LAYOUT.size


class State(IntEnum):
    """How far the volume's creation went."""

    INITIALIZING = 1
    READY = 2


class Standing(str, Enum):
    """What is at the place of the anchor."""

    #: There is no such index.
    ABSENT = "absent"
    #: Our index, never written: a first boot ended right after it was defined.
    UNWRITTEN = "unwritten"
    #: Our index with a content.
    OURS = "ours"
    #: An index with another public area: another owner, another image key, or an attacker.
    FOREIGN = "foreign"
    #: Our index with a content that is not an anchor of a known version.
    UNREADABLE = "unreadable"


class AnchorError(FdeError):
    """The content of the index is not an anchor, or the index cannot be made."""


@dataclass(frozen=True)
class Anchor:
    """The content of the index; digests are 32 bytes, zero where nothing is pinned.

    ``complete`` says that everything of the image is in the volume: what it was made from is never asked again.
    """

    state: State
    header_current: bytes = bytes(32)
    header_next: bytes = bytes(32)
    volume_key_id: bytes = bytes(32)
    superblock: bytes = bytes(32)
    generation: int = 0
    reservation: int = 0
    clean: bool = False
    complete: bool = False

    def marshal(self) -> bytes:
        """Return the 152 bytes of the NV index, big endian."""
        return _LAYOUT.pack(
            _MAGIC,
            _VERSION,
            self.state,
            (_CLEAN if self.clean else 0) | (_COMPLETE if self.complete else 0),
            self.generation,
            self.reservation,
            self.header_current,
            self.header_next,
            self.superblock,
            self.volume_key_id,
        )

    @classmethod
    def unmarshal(cls, content: bytes) -> Anchor:
        """Read the content of the index. Raises ``AnchorError`` when a bit of it is not as this version writes it."""
        if len(content) != SIZE:
            raise AnchorError("the anchor", f"it has {len(content)} bytes instead of {SIZE}", _START_OVER)
        magic, version, state, flags, generation, reservation, current, following, superblock, key = _LAYOUT.unpack(
            content
        )
        if magic != _MAGIC or version != _VERSION or flags & ~(_CLEAN | _COMPLETE) or state not in tuple(State):
            raise AnchorError("the anchor", "its content is not of a known version", _START_OVER)
        clean, complete = bool(flags & _CLEAN), bool(flags & _COMPLETE)
        return cls(State(state), current, following, key, superblock, generation, reservation, clean, complete)

    def ready(self, header: bytes, volume_key_id: bytes) -> Anchor:
        """Return this anchor once the volume is complete."""
        return replace(self, state=State.READY, header_current=header, volume_key_id=volume_key_id)


_START_OVER = "Recover the volume with its recovery key, or delete the NV index and the volume to start over"


@dataclass(frozen=True)
class Found:
    """What a look at the index gave; ``name`` is the TPM's Name of it (algorithm and digest), where there is one."""

    standing: Standing
    anchor: Optional[Anchor] = None
    name: Optional[bytes] = None


def public_area(key: PolicyKey, values: Mapping[int, bytes], written: bool) -> bytes:
    """Return the TPMS_NV_PUBLIC of an anchor of the image with this policy key, made while the PCRs had ``values``."""
    attributes = _ATTRIBUTES | (_WRITTEN if written else 0)
    policy = bound_policy(key, values)
    return struct.pack(">IHIH", INDEX, ALG_SHA256, attributes, len(policy)) + policy + struct.pack(">H", SIZE)


def anchor_name(key: PolicyKey, values: Mapping[int, bytes], written: bool = True) -> bytes:
    """Return the Name of an anchor of the image with this policy key, made while the PCRs had ``values``."""
    return object_name(public_area(key, values, written))


def probe(esys: Any, key: PolicyKey) -> Found:
    """Look at the index and tell whose it is; changes nothing.

    One that was made under other values of ``BOUND_PCRS`` than the present ones is foreign.
    """
    if not exists(esys, INDEX):
        return Found(Standing.ABSENT)
    public, name_of_index = esys.nv_read_public(esys.tr_from_tpmpublic(INDEX))
    area, name = bytes(public.nvPublic.marshal()), bytes(name_of_index)
    values = bound_values(esys)
    if area == public_area(key, values, written=False):
        return Found(Standing.UNWRITTEN, name=name)
    if area != public_area(key, values, written=True):
        return Found(Standing.FOREIGN, name=name)
    try:
        return Found(Standing.OURS, Anchor.unmarshal(nv_read(esys, INDEX)), name)
    except AnchorError:
        return Found(Standing.UNREADABLE, name=name)


def define(esys: Any, key: PolicyKey) -> None:
    """Make the index, unwritten; an index that is there already is deleted first."""
    if exists(esys, INDEX):
        esys.nv_undefine_space(esys.tr_from_tpmpublic(INDEX))
    area, _size = tss.TPMS_NV_PUBLIC.unmarshal(public_area(key, bound_values(esys), written=False))
    esys.nv_define_space(tss.TPM2B_AUTH(), tss.TPM2B_NV_PUBLIC(nvPublic=area))


def write(esys: Any, key: PolicyKey, policies: Sequence[SignedPolicy], anchor: Anchor) -> None:
    """Write the anchor and read it back.

    Raises ``PolicyError`` outside the signed boot phases, ``TpmError`` where the index was made under other values of
    ``BOUND_PCRS``, ``AnchorError`` when the TPM did not keep what was written.
    """
    index = esys.tr_from_tpmpublic(INDEX)
    with authorized(esys, key, policies) as session:
        esys.nv_write(index, anchor.marshal(), 0, index, session1=session)
    found = probe(esys, key)
    if found.anchor != anchor:
        raise AnchorError("the anchor", f"the TPM did not keep it: it is now {found.standing.value}", "Check the vTPM")
