# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a header is expected to say, and the words for every deviation."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Iterable, Mapping, Optional, Sequence

from ..codes import Code, refuse
from ..tpm.policy import BOUND_PCRS
from .method import Method, Passphrase, Recovery, Tpm2
from .profile import AUTHENTICATED, LAYOUT, Layout, Profile

MAX_KEYSLOTS = 8
#: What a judgement keeps, and what a message names, of the violations that a hostile header has by the thousand.
MAX_VIOLATIONS = 48
_MAX_NAMED = 12
#: The persistent flag of a volume whose dm-integrity keeps no journal.
_NO_JOURNAL = frozenset({"no-journal"})


class Reason(str, Enum):
    """Why a sound header is refused."""

    UNKNOWN_FIELD = "unknown-field"
    MISSING_FIELD = "missing-field"
    MALFORMED_FIELD = "malformed-field"
    UUID = "uuid"
    LABEL = "label"
    METADATA_SIZE = "metadata-size"
    NULL_CIPHER = "null-cipher"
    KEYSLOT_COUNT = "keyslot-count"
    KEYSLOT_TYPE = "keyslot-type"
    KEYSLOT_KEY_SIZE = "keyslot-key-size"
    KEYSLOT_CIPHER = "keyslot-cipher"
    KEYSLOT_SPLITTER = "keyslot-splitter"
    REENCRYPTION = "reencryption"
    AREA_TYPE = "area-type"
    AREA_BOUNDS = "area-bounds"
    AREA_OVERLAP = "area-overlap"
    KDF_TYPE = "kdf-type"
    KDF_COST = "kdf-cost"
    SEGMENT_COUNT = "segment-count"
    SEGMENT_TYPE = "segment-type"
    SEGMENT_BOUNDS = "segment-bounds"
    SEGMENT_CIPHER = "segment-cipher"
    SEGMENT_SECTOR_SIZE = "segment-sector-size"
    SEGMENT_FLAGS = "segment-flags"
    INTEGRITY = "integrity"
    DIGEST_COUNT = "digest-count"
    DIGEST_TYPE = "digest-type"
    DIGEST_COVERAGE = "digest-coverage"
    REQUIREMENTS = "requirements"
    CONFIG_FLAGS = "config-flags"
    CONFIG_SIZES = "config-sizes"
    TOKEN_TYPE = "token-type"
    TOKEN_COUNT = "token-count"
    TOKEN_BINDING = "token-binding"
    TOKEN_POLICY = "token-policy"
    TOKEN_UNBOUND = "token-unbound"
    DEVICE_SIZE = "device-size"


class TokenType(str, Enum):
    """The tokens that are known here; the value is the type in the header."""

    TPM2 = "systemd-tpm2"
    RECOVERY = "systemd-recovery"
    EVIDENCE = "cvm-fde"


@dataclass(frozen=True)
class Tpm2Binding:
    """What a TPM keyslot must be bound to. ``public_key`` is PEM; None accepts any, where there are PCRs to sign."""

    pcrs: tuple[int, ...] = (7,)
    public_key_pcrs: tuple[int, ...] = (11,)
    public_key: Optional[bytes] = field(default=None, repr=False)
    pcrlock: bool = False


@dataclass(frozen=True)
class Expectation:
    """What the header of one volume must say.

    ``tokens`` gives the least and the most of each known type; a type that is not named must be absent.
    ``passphrases`` does the same for the keyslots without a token. Every TPM token must be bound as one of ``tpm2``
    says. The persistent ``flags`` must be set, ``optional_flags`` may be. None stands for "any": ``layout.offset`` has
    no such value, since the data must start where the caller's copy of the header area ended.
    """

    profile: Profile = AUTHENTICATED
    layout: Layout = LAYOUT
    uuid: Optional[str] = None
    tokens: Mapping[TokenType, tuple[int, int]] = field(default_factory=dict)
    passphrases: tuple[int, int] = (0, 0)
    tpm2: Optional[Sequence[Tpm2Binding]] = None
    flags: frozenset[str] = frozenset()
    optional_flags: frozenset[str] = frozenset()


def root_volume(
    *,
    uuid: Optional[str] = None,
    public_key: Optional[bytes] = None,
    further_keys: Sequence[bytes] = (),
    profile: Profile = AUTHENTICATED,
    layout: Layout = LAYOUT,
) -> Expectation:
    """Return what the root volume that the boot agent made must look like.

    One TPM keyslot, or two while one replaces the other, bound to ``public_key`` or one of ``further_keys``; the
    evidence of its creation, and that of a recovery; no recovery key, one, or two while one replaces the other.
    Its dm-integrity keeps a journal: every file system writes something in place, btrfs its superblock.
    """
    keys = (public_key, *further_keys)
    return Expectation(
        profile=profile,
        layout=layout,
        uuid=uuid,
        tokens={TokenType.TPM2: (1, 2), TokenType.EVIDENCE: (1, 2), TokenType.RECOVERY: (0, 2)},
        tpm2=tuple(Tpm2Binding(pcrs=BOUND_PCRS, public_key=key) for key in keys),
    )


def data_volume(
    *,
    uuid: Optional[str] = None,
    profile: Profile = AUTHENTICATED,
    layout: Layout = LAYOUT,
    methods: Optional[Sequence[Method]] = None,
    journal: Optional[bool] = None,
) -> Expectation:
    """Return what a data volume must look like.

    ``methods`` are all that it may be unlocked by, one keyslot each; None accepts any number of TPM keyslots, recovery
    keys and passphrases. ``journal`` is None where the header may say either.
    """
    return Expectation(
        profile=profile,
        layout=layout,
        uuid=uuid,
        tokens={TokenType.TPM2: _count(methods, Tpm2), TokenType.RECOVERY: _count(methods, Recovery)},
        passphrases=_count(methods, Passphrase),
        tpm2=None if methods is None else tuple(_binding(method) for method in methods if isinstance(method, Tpm2)),
        flags=_NO_JOURNAL if journal is False else frozenset(),
        optional_flags=_NO_JOURNAL if journal is None else frozenset(),
    )


def _count(methods: Optional[Sequence[Method]], kind: type) -> tuple[int, int]:
    if methods is None:
        return (0, MAX_KEYSLOTS)
    number = sum(isinstance(method, kind) for method in methods)
    return (number, number)


def _binding(method: Tpm2) -> Tpm2Binding:
    return Tpm2Binding(method.pcrs, method.public_key_pcrs, method.public_key, method.pcrlock)


@dataclass(frozen=True)
class Violation:
    """One deviation: why, where in the JSON, and what was found."""

    reason: Reason
    where: str
    found: str


@dataclass(frozen=True)
class Judgement:
    """The deviations of a header, in its order: at least one for each reason, and how many ``more`` there are."""

    violations: tuple[Violation, ...]
    more: int = 0

    @classmethod
    def of(cls, found: Iterable[Violation]) -> Judgement:
        """Return the judgement that keeps ``MAX_VIOLATIONS`` of what was found."""
        everything = list(found)
        kept = _some(everything, MAX_VIOLATIONS)
        return cls(kept, len(everything) - len(kept))

    @property
    def accepted(self) -> bool:
        return not self.violations

    @property
    def reasons(self) -> tuple[Reason, ...]:
        """The distinct reasons, in order."""
        return tuple(dict.fromkeys(violation.reason for violation in self.violations))

    def require(self, subject: str) -> None:
        """Raise ``Refusal`` with the code ``luks2-policy``, naming what is wrong, unless the header is accepted."""
        if self.violations:
            told = _some(self.violations, _MAX_NAMED)
            named = ", ".join(f"{violation.reason.value} at {violation.where}" for violation in told)
            more = len(self.violations) - len(told) + self.more
            named += f", and {more} more" if more else ""
            raise refuse(Code.LUKS2_POLICY, subject, named)


def _some(found: Sequence[Violation], most: int) -> tuple[Violation, ...]:
    """Return some violations in their order: the first of every reason, then the first of all."""
    firsts: dict[Reason, int] = {}
    for number, violation in enumerate(found):
        firsts.setdefault(violation.reason, number)
    chosen = list(dict.fromkeys([*firsts.values(), *range(min(len(found), most))]))[:most]
    return tuple(found[number] for number in sorted(chosen))
