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

import re
import struct
from dataclasses import dataclass, replace
from enum import Enum, IntEnum
from typing import Any, Mapping, Optional, Sequence

from ..errors import FdeError
from .esys import exists, nv_read, tss
from .policy import PolicyKey, SignedPolicy, bound_policy, bound_values, object_name, use
from .templates import ALG_SHA256

INDEX = 0x0180FDE0

_POLICYWRITE = 1 << 3
_OWNERREAD = 1 << 17
_AUTHREAD = 1 << 18
_NO_DA = 1 << 25
_WRITTEN = 1 << 29
_ATTRIBUTES = _POLICYWRITE | _AUTHREAD | _OWNERREAD | _NO_DA

_LAYOUT = struct.Struct(">4sBBHQIHH32s32s32s32s24s")
_MAGIC = b"CVFA"
_VERSION = 2
_COMPLETE = 1
SIZE = _LAYOUT.size
#: Of the name of a refusal, in bytes.
CODE_LIMIT = 24


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


class Obstacle(str, Enum):
    """Why the TPM does not make the index."""

    #: Its memory for indexes is used up.
    FULL = "full"
    #: Its owner hierarchy has a password, or is switched off.
    OWNED = "owned"
    #: The platform made an index at this place, which the owner cannot delete.
    PROTECTED = "protected"


#: TPM_RC_NV_SPACE; TPM_RC_BAD_AUTH, TPM_RC_AUTH_FAIL and TPM_RC_HIERARCHY; TPM_RC_NV_AUTHORIZATION, TPM_RC_ATTRIBUTES
#: and TPM_RC_NV_DEFINED, each without the number of the handle or session it is about (part 2, section 6.6).
_OBSTACLES = {
    0x14B: Obstacle.FULL,
    **dict.fromkeys((0xA2, 0x8E, 0x85), Obstacle.OWNED),
    **dict.fromkeys((0x149, 0x82, 0x14C), Obstacle.PROTECTED),
}


class AnchorError(FdeError):
    """The content of the index is not an anchor, or the index cannot be made; ``obstacle`` says why not."""

    def __init__(self, subject: str, cause: str, remedy: str, obstacle: Optional[Obstacle] = None) -> None:
        super().__init__(subject, cause, remedy)
        self.obstacle = obstacle


@dataclass(frozen=True)
class Anchor:
    """The content of the index; digests are 32 bytes, zero where nothing is pinned.

    ``header_next`` is pinned beside the current header while a change of it is under way; ``header_previous`` was the
    current one before. ``generation`` only rises: with every committed change of the header, with the completion of the
    volume (``complete``: nothing of it lies on the image's root any more), with a higher security version, and with
    every recovery. ``last_refusal`` is the code of the newest of so many ``refusals``. ``svn`` is the highest security
    version of an image that came up; its two bytes were once the upper ones of the number of refusals, and zero.
    """

    state: State
    header_current: bytes = bytes(32)
    header_next: bytes = bytes(32)
    header_previous: bytes = bytes(32)
    volume_key_id: bytes = bytes(32)
    generation: int = 0
    recoveries: int = 0
    refusals: int = 0
    last_refusal: str = ""
    complete: bool = False
    svn: int = 0

    def marshal(self) -> bytes:
        """Return the 176 bytes of the NV index, big endian."""
        return _LAYOUT.pack(
            _MAGIC,
            _VERSION,
            self.state,
            _COMPLETE if self.complete else 0,
            self.generation,
            self.recoveries,
            self.svn,
            self.refusals,
            self.header_current,
            self.header_next,
            self.header_previous,
            self.volume_key_id,
            self.last_refusal.encode("ascii"),
        )

    @classmethod
    def unmarshal(cls, content: bytes) -> Anchor:
        """Read the content of the index. Raises ``AnchorError`` when a bit of it is not as this version writes it."""
        if len(content) != SIZE:
            raise AnchorError("the anchor", f"it has {len(content)} bytes instead of {SIZE}", _START_OVER)
        magic, version, state, flags, generation, recoveries, svn, refusals, *digests, code = _LAYOUT.unpack(content)
        known = magic == _MAGIC and version == _VERSION and state in tuple(State) and not flags & ~_COMPLETE
        if not known or not _CODE.fullmatch(code):
            raise AnchorError("the anchor", "its content is not of a known version", _START_OVER)
        last_refusal = code.rstrip(b"\0").decode("ascii")
        current, following, previous, key = digests
        return cls(
            *(State(state), current, following, previous, key),
            *(generation, recoveries, refusals, last_refusal, bool(flags & _COMPLETE), svn),
        )

    @property
    def pinned(self) -> tuple[bytes, ...]:
        """The header digests that may be opened: the current one, and the next while a change is under way."""
        return tuple(digest for digest in (self.header_current, self.header_next) if any(digest))

    def ready(self, header: bytes, volume_key_id: bytes) -> Anchor:
        """Return this anchor once the volume is made."""
        return replace(
            self,
            state=State.READY,
            header_current=header,
            volume_key_id=volume_key_id,
            generation=self.generation + 1,
        )

    def changing(self, header: bytes) -> Anchor:
        """Return this anchor while the header becomes the one with this digest."""
        return replace(self, header_next=header)

    def changed(self) -> Anchor:
        """Return this anchor once the disk holds the next header."""
        return replace(
            self,
            header_current=self.header_next,
            header_next=bytes(32),
            header_previous=self.header_current,
            generation=self.generation + 1,
        )

    def unchanged(self) -> Anchor:
        """Return this anchor once a change of the header was given up."""
        return replace(self, header_next=bytes(32))

    def completed(self) -> Anchor:
        """Return this anchor once nothing of the volume lies on the image's root any more."""
        return self if self.complete else replace(self, complete=True, generation=self.generation + 1)

    def at_least(self, svn: int) -> Anchor:
        """Return this anchor once an image of that security version came up."""
        return self if svn <= self.svn else replace(self, svn=svn, generation=self.generation + 1)

    def refused(self, code: str) -> Anchor:
        """Return this anchor after a boot was refused."""
        known = code if _CODE.fullmatch(code.encode("ascii", "replace").ljust(CODE_LIMIT, b"\0")) else "unnamed"
        return replace(self, refusals=min(self.refusals + 1, 0xFFFF), last_refusal=known)


#: A code as ``Refusal`` has it, padded with zeros.
_CODE = re.compile(rb"(?=.{24}\Z)[a-z0-9-]*\0*", re.DOTALL)
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
    """Make the index, unwritten; an index that is there already is deleted first.

    Raises ``AnchorError`` with its obstacle where the TPM does not allow it. A TPM in lockout does: neither the owner
    nor an index like ours is subject to its protection against guessing.
    """
    area, _size = tss.TPMS_NV_PUBLIC.unmarshal(public_area(key, bound_values(esys), written=False))
    try:
        if exists(esys, INDEX):
            esys.nv_undefine_space(esys.tr_from_tpmpublic(INDEX))
        esys.nv_define_space(tss.TPM2B_AUTH(), tss.TPM2B_NV_PUBLIC(nvPublic=area))
    except tss.TSS2_Exception as error:
        # Errors of format one (bit 7) carry the number of what they are about in bits 8 to 11, and bit 6 says of what.
        code = int(error.rc)
        obstacle = _OBSTACLES.get(code & 0xBF if code & 0x80 else code)
        if obstacle is None:
            raise
        raise AnchorError("the anchor", f"the TPM does not make it: {error}", "Look into the TPM", obstacle) from error


def write(esys: Any, key: PolicyKey, policies: Sequence[SignedPolicy], anchor: Anchor) -> None:
    """Write the anchor and read it back.

    Raises ``PolicyError`` outside the signed boot phases, ``TpmError`` where the index was made under other values of
    ``BOUND_PCRS``, ``PcrsChanged`` where PCRs never keep still, ``AnchorError`` when the TPM did not keep what was
    written.
    """
    index = esys.tr_from_tpmpublic(INDEX)
    use(esys, key, policies, lambda session: esys.nv_write(index, anchor.marshal(), 0, index, session1=session))
    found = probe(esys, key)
    if found.anchor != anchor:
        raise AnchorError("the anchor", f"the TPM did not keep it: it is now {found.standing.value}", "Check the vTPM")
