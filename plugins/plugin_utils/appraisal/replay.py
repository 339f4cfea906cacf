# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Do the logs explain the PCRs: both logs are replayed, one after the other, and compared with what was quoted."""

from __future__ import annotations

import hashlib
import hmac
from collections import OrderedDict
from dataclasses import dataclass
from typing import Callable, Mapping, Optional, TypeVar, cast

from . import event_log, userspace_log
from .event_log import FirmwareLog, initial_value
from .secure_boot import SecureBoot
from .secure_boot import judge as judge_secure_boot
from .userspace_log import UserspaceLog

_T = TypeVar("_T")
#: What an event's objects take in CPython, at most, without its payload.
_EVENT_SIZE = 768


@dataclass(frozen=True)
class Replay:
    """Both logs, and the PCRs of one bank that they lead to."""

    bank: str
    firmware: FirmwareLog
    userspace: Optional[UserspaceLog]
    values: Mapping[int, bytes]

    def secure_boot(self) -> SecureBoot:
        """Read the state of Secure Boot; call it only after PCR 7 was found explained. Raises ``AppraisalError``."""
        return judge_secure_boot(self.firmware, self.bank)


def replay(firmware: FirmwareLog, userspace: Optional[UserspaceLog], bank: str) -> Replay:
    """Replay both logs from a TPM reset on. Raises ``AppraisalError`` when one of them does not record ``bank``."""
    initial = {pcr: initial_value(bank, pcr, firmware.startup_locality) for pcr in range(event_log.PCR_LIMIT)}
    values = {**initial, **firmware.values(bank)}
    if userspace is not None:
        values = userspace.replay(bank, values, initial)
    return Replay(bank, firmware, userspace, values)


def unexplained(replayed: Mapping[int, bytes], quoted: Mapping[int, bytes]) -> tuple[int, ...]:
    """Return the quoted PCRs whose value the logs do not lead to.

    A PCR without events must still hold its value after reset, so a register that something extends without a record
    of it (IMA in PCR 10, a boot loader, an attacker) is named here instead of being passed over.
    """
    return tuple(pcr for pcr in sorted(quoted) if not hmac.compare_digest(replayed.get(pcr, b""), quoted[pcr]))


def _weight(made: object) -> int:
    """Return how much memory (bytes) a parsed log takes beside its payloads; those of small events take far less.

    A replay keeps both of its logs alive, also when their own entries are gone: it counts as much as they do.
    """
    if isinstance(made, Replay):
        return _weight(made.firmware) + _weight(made.userspace)
    if isinstance(made, FirmwareLog):
        return _EVENT_SIZE * len(made.events)
    return _EVENT_SIZE * len(made.records) if isinstance(made, UserspaceLog) else 0


class LogCache:
    """Remembers parsed logs and their replay by digest: machines of one image and platform share a firmware log.

    What is kept is bounded by the number of entries and by ``size_limit``, in bytes of memory by `_weight`. One
    cache may serve any number of appraisals after one another: nothing in it belongs to a machine, and nothing in it is
    changed.
    """

    def __init__(self, limit: int = 256, size_limit: int = 32 * 1024 * 1024) -> None:
        self._limit, self._size_limit = limit, size_limit
        self._known: OrderedDict[bytes, object] = OrderedDict()
        self._sizes: dict[bytes, int] = {}
        self._size = 0

    def firmware(self, raw: bytes) -> Optional[FirmwareLog]:
        """Parse a firmware log, or return None when it has no bytes. Raises ``AppraisalError``."""
        return self._remembered(b"firmware", (raw,), lambda: event_log.parse(raw))

    def userspace(self, raw: bytes) -> Optional[UserspaceLog]:
        """Parse systemd's log, or return None when it has no bytes. Raises ``AppraisalError``."""
        return self._remembered(b"userspace", (raw,), lambda: userspace_log.parse(raw))

    def replay(self, firmware: bytes, userspace: bytes, bank: str) -> Optional[Replay]:
        """Parse and replay two raw logs, or return None when the firmware's has no bytes. Raises ``AppraisalError``."""

        def make() -> Optional[Replay]:
            parsed = self.firmware(firmware)
            return None if parsed is None else replay(parsed, self.userspace(userspace), bank)

        return self._remembered(b"replay", (firmware, userspace, bank.encode()), make)

    def _remembered(self, kind: bytes, parts: tuple[bytes, ...], make: Callable[[], _T]) -> _T:
        key = kind + b"".join(hashlib.sha256(part).digest() for part in parts)
        if key in self._known:
            self._known.move_to_end(key)
            return cast(_T, self._known[key])
        made = make()
        self._keep(key, made, sum(map(len, parts)) + _weight(made))
        return made

    def _keep(self, key: bytes, made: object, size: int) -> None:
        """Keep an entry, and forget those that were not asked for the longest until all fit."""
        if size > self._size_limit:
            return
        self._known[key], self._sizes[key] = made, size
        self._size += size
        while len(self._known) > self._limit or self._size > self._size_limit:
            oldest, _forgotten = self._known.popitem(last=False)
            self._size -= self._sizes.pop(oldest)
