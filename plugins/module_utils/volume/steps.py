# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The vocabulary of plans: what a step does, to what, and how a plan is told."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Optional, Sequence

from ..luks2 import enrolment
from ..luks2.method import Method, Recovery, Tpm2


class Action(str, Enum):
    """What a step does. Their order in a plan is the order of their doing."""

    UNMOUNT = "unmount"
    CLOSE = "close"
    PIN = "pin"
    CLEAR = "clear"
    FORMAT = "format"
    CHANGE_KEYSLOTS = "change-keyslots"
    OPEN = "open"
    MAKE_FILE_SYSTEM = "make-file-system"
    STORE = "store"
    READY = "ready"
    ADOPT = "adopt"
    REDO = "redo"
    SETTLE = "settle"
    CONFIGURE = "configure"
    HAND_OVER = "hand-over"
    MOUNT = "mount"
    REMOUNT = "remount"
    DESTROY = "destroy"
    DISCARD = "discard"
    FORGET = "forget"


@dataclass(frozen=True)
class Step:
    """One thing to do. ``subject`` says to people what it is done to; ``keyslots`` is what changes of them.

    ``retiring`` are keyslots that stay until the control node has stored the new recovery key, ``uuid`` is that of an
    unfinished volume which is made anew.
    """

    action: Action
    subject: str
    keyslots: Optional[enrolment.Plan] = None
    retiring: tuple[enrolment.Enrolled, ...] = ()
    uuid: Optional[str] = None


@dataclass(frozen=True)
class Plan:
    """The steps in order, and what the owner should know although nothing is wrong with it."""

    steps: tuple[Step, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def creates(self) -> bool:
        """Whether the volume is made anew."""
        return any(step.action is Action.FORMAT for step in self.steps)

    def with_warnings(self, *warnings: Optional[str]) -> Plan:
        return Plan(self.steps, (*self.warnings, *(one for one in warnings if one)))


def described(method: Optional[Method]) -> str:
    """Return an unlock method for people."""
    if method is None:
        return "temporary key"
    if isinstance(method, Tpm2):
        parts = [f"PCR {'+'.join(map(str, method.pcrs))}"] if method.pcrs else []
        parts += [f"signed PCR {'+'.join(map(str, method.public_key_pcrs))}"] if method.public_key else []
        parts += ["pcrlock"] if method.pcrlock else []
        return f"tpm2 ({', '.join(parts) or 'no policy'})"
    return "recovery" if isinstance(method, Recovery) else "passphrase"


def keyslot_step(planned: enrolment.Plan, retiring: Sequence[enrolment.Enrolled] = ()) -> Step:
    words = [f"add {described(method)}" for method in planned.adds]
    words += [f"remove {_slot(one)}" for one in planned.removes]
    words += _later(retiring)
    return Step(Action.CHANGE_KEYSLOTS, ", ".join(words), planned, tuple(retiring))


def handover_step(keyslot: int, retiring: Sequence[enrolment.Enrolled]) -> Step:
    """Return the handing over of a recovery key that was made before and never arrived."""
    words = [f"the recovery key of keyslot {keyslot}", *_later(retiring)]
    return Step(Action.HAND_OVER, ", ".join(words), retiring=tuple(retiring))


def _later(retiring: Sequence[enrolment.Enrolled]) -> list[str]:
    return [f"remove {_slot(one)} once the recovery key is in escrow" for one in retiring]


def _slot(one: enrolment.Enrolled) -> str:
    return f"keyslot {one.keyslot} ({described(one.method)})"
