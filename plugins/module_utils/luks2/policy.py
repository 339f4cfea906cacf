# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The allow-list: what a sound LUKS2 header may contain before anything opens it.

A header is not authenticated. Whoever writes to the disk can name a cipher that encrypts nothing, hide a second
segment, or ask for an hour of key derivation (CVE-2025-59054, CVE-2025-58356, CVE-2021-4122). So nothing is searched
for that is bad: everything must be as our own volumes have it, field by field, and every deviation is reported under
a named reason.
"""

from __future__ import annotations

import re
from typing import Any, Iterator, Mapping

from . import fields, stretching
from .deviation import (
    argon2_deviations,
    cipher_deviation,
    evidence_deviations,
    pbkdf2_deviations,
    shape_deviations,
    tpm2_deviations,
    tpm2_flaws,
)
from .expectation import (
    MAX_KEYSLOTS,
    Expectation,
    Judgement,
    Reason,
    TokenType,
    Tpm2Binding,
    Violation,
    data_volume,
    root_volume,
)
from .fields import is_decimal, listed, shown
from .header import Header

__all__ = [
    "Expectation",
    "Judgement",
    "Reason",
    "TokenType",
    "Tpm2Binding",
    "Violation",
    "data_volume",
    "judge",
    "root_volume",
]

#: Bytes of a stretched keyslot are a multiple of this, as are the places of areas.
_BLOCK = 4096
_STRIPES = 4000
_HASHES = ("sha256", "sha512")


def judge(header: Header, expectation: Expectation) -> Judgement:
    """Return how a header deviates from what is expected of it. Never raises."""
    return Judgement.of(_Judge(header, expectation).violations())


_TOKENS = {
    TokenType.TPM2: fields.TPM2_TOKEN,
    TokenType.RECOVERY: fields.RECOVERY_TOKEN,
    TokenType.EVIDENCE: fields.EVIDENCE_TOKEN,
}


class _Judge:
    """One pass over a header; every method yields the deviations of one part."""

    def __init__(self, header: Header, expectation: Expectation) -> None:
        self._binary = header.binary
        self._metadata = header.metadata
        self._expected = expectation
        self._areas: list[tuple[int, int, str]] = []

    def violations(self) -> Iterator[Violation]:
        yield from self._binary_header()
        yield from self._config(self._metadata["config"])
        yield from self._segments(self._metadata["segments"])
        yield from self._keyslots(self._metadata["keyslots"])
        yield from self._digests(self._metadata["digests"])
        yield from self._tokens(self._metadata["tokens"])

    def _binary_header(self) -> Iterator[Violation]:
        if self._expected.uuid is not None and self._binary.uuid != self._expected.uuid:
            yield Violation(Reason.UUID, "uuid", self._binary.uuid)
        if not re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", self._binary.uuid):
            yield Violation(Reason.UUID, "uuid", self._binary.uuid)
        for name in ("label", "subsystem"):
            if getattr(self._binary, name):
                yield Violation(Reason.LABEL, name, getattr(self._binary, name))
        if self._binary.size != self._expected.layout.metadata_size:
            yield Violation(Reason.METADATA_SIZE, "hdr_size", str(self._binary.size))

    def _config(self, config: Mapping[str, Any]) -> Iterator[Violation]:
        shape = list(shape_deviations("config", config, fields.CONFIG))
        yield from shape
        if "requirements" in config:
            yield Violation(Reason.REQUIREMENTS, "config.requirements", shown(config["requirements"]))
        if shape:
            return
        if int(config["json_size"]) != self._binary.size - 4096:
            yield Violation(Reason.CONFIG_SIZES, "config.json_size", config["json_size"])
        end = 2 * self._binary.size + int(config["keyslots_size"])
        if int(config["keyslots_size"]) % _BLOCK or end > self._expected.layout.offset:
            yield Violation(Reason.CONFIG_SIZES, "config.keyslots_size", config["keyslots_size"])
        flags, needed = config.get("flags", []), self._expected.flags
        found = set(flags)
        if len(flags) != len(found):
            yield Violation(Reason.CONFIG_FLAGS, "config.flags", shown(flags))
        for flag in sorted(found - needed - self._expected.optional_flags):
            yield Violation(Reason.CONFIG_FLAGS, "config.flags", shown(flag))
        for flag in sorted(needed - found):
            yield Violation(Reason.CONFIG_FLAGS, "config.flags", f"no {flag}")

    def _segments(self, segments: Mapping[str, Any]) -> Iterator[Violation]:
        if list(segments) != ["0"]:
            yield Violation(Reason.SEGMENT_COUNT, "segments", listed(segments))
        for name, segment in segments.items():
            yield from self._segment(f"segments.{name}", segment)

    def _segment(self, where: str, segment: Mapping[str, Any]) -> Iterator[Violation]:
        profile = self._expected.profile
        shape = list(shape_deviations(where, segment, fields.SEGMENT))
        yield from shape
        if segment.get("type") != "crypt":
            yield Violation(Reason.SEGMENT_TYPE, f"{where}.type", shown(segment.get("type")))
        if segment.get("flags"):
            yield Violation(Reason.SEGMENT_FLAGS, f"{where}.flags", shown(segment["flags"]))
        yield from cipher_deviation(f"{where}.encryption", segment, profile.encryption, Reason.SEGMENT_CIPHER)
        yield from self._integrity(f"{where}.integrity", segment.get("integrity"))
        if shape:
            return
        for name, value in (("offset", str(self._expected.layout.offset)), ("size", "dynamic"), ("iv_tweak", "0")):
            if segment[name] != value:
                yield Violation(Reason.SEGMENT_BOUNDS, f"{where}.{name}", shown(segment[name]))
        if segment["sector_size"] != self._expected.layout.sector_size:
            yield Violation(Reason.SEGMENT_SECTOR_SIZE, f"{where}.sector_size", str(segment["sector_size"]))

    def _integrity(self, where: str, integrity: Any) -> Iterator[Violation]:
        profile = self._expected.profile
        if integrity is None or profile.integrity is None:
            if (integrity is None) != (profile.integrity is None):
                yield Violation(Reason.INTEGRITY, where, shown(integrity))
            return
        if not isinstance(integrity, dict):
            return
        yield from shape_deviations(where, integrity, fields.INTEGRITY)
        expected = {"type": profile.integrity, "journal_encryption": "none", "journal_integrity": "none"}
        for name, value in expected.items():
            if integrity.get(name) != value:
                yield Violation(Reason.INTEGRITY, f"{where}.{name}", shown(integrity.get(name)))
        if integrity.get("key_size", profile.integrity_key_size) != profile.integrity_key_size:
            yield Violation(Reason.INTEGRITY, f"{where}.key_size", shown(integrity["key_size"]))

    @property
    def _keyslots_end(self) -> int:
        """Where the part for keyslot areas ends, as far as the header says so."""
        size = self._metadata["config"].get("keyslots_size")
        return self._expected.layout.offset if not is_decimal(size) else 2 * self._binary.size + int(size)

    def _keyslots(self, keyslots: Mapping[str, Any]) -> Iterator[Violation]:
        if not 1 <= len(keyslots) <= MAX_KEYSLOTS:
            yield Violation(Reason.KEYSLOT_COUNT, "keyslots", str(len(keyslots)))
        for name, keyslot in keyslots.items():
            yield from self._keyslot(name, keyslot)
        last = ("", 2 * self._binary.size)
        for start, end, where in sorted(self._areas):
            if start < last[1]:
                yield Violation(Reason.AREA_OVERLAP, where, last[0] or "headers")
            last = (where, max(last[1], end))

    def _keyslot(self, name: str, keyslot: Mapping[str, Any]) -> Iterator[Violation]:
        where = f"keyslots.{name}"
        if keyslot["type"] == "reencrypt":
            yield Violation(Reason.REENCRYPTION, f"{where}.type", "reencrypt")
        elif keyslot["type"] != "luks2":
            yield Violation(Reason.KEYSLOT_TYPE, f"{where}.type", shown(keyslot["type"]))
        yield from shape_deviations(where, keyslot, fields.KEYSLOT)
        if keyslot.get("key_size") != self._expected.profile.volume_key_size:
            yield Violation(Reason.KEYSLOT_KEY_SIZE, f"{where}.key_size", shown(keyslot.get("key_size")))
        if isinstance(splitter := keyslot.get("af"), dict):
            yield from self._splitter(f"{where}.af", splitter)
        if isinstance(area := keyslot.get("area"), dict):
            yield from self._area(f"{where}.area", area)
        if isinstance(kdf := keyslot.get("kdf"), dict):
            yield from self._kdf(f"{where}.kdf", kdf, bound=self._is_bound(name))

    def _splitter(self, where: str, splitter: Mapping[str, Any]) -> Iterator[Violation]:
        yield from shape_deviations(where, splitter, fields.SPLITTER)
        sound = splitter.get("type") == "luks1" and splitter.get("stripes") == _STRIPES
        if not sound or splitter.get("hash") not in _HASHES:
            yield Violation(Reason.KEYSLOT_SPLITTER, where, shown(splitter))

    def _area(self, where: str, area: Mapping[str, Any]) -> Iterator[Violation]:
        shape = list(shape_deviations(where, area, fields.AREA))
        yield from shape
        if area.get("type") != "raw":
            yield Violation(Reason.AREA_TYPE, f"{where}.type", shown(area.get("type")))
        yield from cipher_deviation(f"{where}.encryption", area, "aes-xts-plain64", Reason.KEYSLOT_CIPHER)
        if area.get("key_size") != 64:
            yield Violation(Reason.KEYSLOT_CIPHER, f"{where}.key_size", shown(area.get("key_size")))
        if shape:
            return
        start, size = int(area["offset"]), int(area["size"])
        needed = -(-self._expected.profile.volume_key_size * _STRIPES // _BLOCK) * _BLOCK
        limit = min(self._expected.layout.offset, self._keyslots_end)
        if start % _BLOCK or start < 2 * self._binary.size or size != needed or start + size > limit:
            yield Violation(Reason.AREA_BOUNDS, where, f"{size} bytes at {start}")
        self._areas.append((start, start + size, where))

    def _kdf(self, where: str, kdf: Mapping[str, Any], *, bound: bool) -> Iterator[Violation]:
        """The key of a bound keyslot is random and long, that of another may be a person's passphrase."""
        if kdf.get("type") == "pbkdf2":
            yield from shape_deviations(where, kdf, fields.PBKDF2)
            least = stretching.BOUND_MINIMUM if bound else stretching.PASSPHRASE_MINIMUM
            yield from pbkdf2_deviations(where, kdf, least)
        elif kdf.get("type") == "argon2id":
            yield from shape_deviations(where, kdf, fields.ARGON2)
            yield from argon2_deviations(where, kdf)
        else:
            yield Violation(Reason.KDF_TYPE, f"{where}.type", shown(kdf.get("type")))

    def _digests(self, digests: Mapping[str, Any]) -> Iterator[Violation]:
        if list(digests) != ["0"]:
            yield Violation(Reason.DIGEST_COUNT, "digests", listed(digests))
        for name, digest in digests.items():
            where = f"digests.{name}"
            yield from shape_deviations(where, digest, fields.DIGEST)
            if digest["type"] != "pbkdf2":
                yield Violation(Reason.DIGEST_TYPE, f"{where}.type", shown(digest["type"]))
            yield from pbkdf2_deviations(where, digest, stretching.BOUND_MINIMUM)
            covered = {"keyslots": set(self._metadata["keyslots"]), "segments": set(self._metadata["segments"])}
            for part, names in covered.items():
                named = digest.get(part)
                if not isinstance(named, list) or len(named) != len(names) or set(map(str, named)) != names:
                    yield Violation(Reason.DIGEST_COVERAGE, f"{where}.{part}", shown(named))

    def _tokens(self, tokens: Mapping[str, Any]) -> Iterator[Violation]:
        found = dict.fromkeys(TokenType, 0)
        for name, token in tokens.items():
            where = f"tokens.{name}"
            try:
                kind = TokenType(token["type"])
            except ValueError:
                yield Violation(Reason.TOKEN_TYPE, f"{where}.type", shown(token["type"]))
                continue
            found[kind] += 1
            shape = list(shape_deviations(where, token, _TOKENS[kind]))
            yield from shape
            yield from self._binding(where, kind, token.get("keyslots"))
            if not shape and kind is TokenType.TPM2:
                yield from self._tpm2(where, token)
            if not shape and kind is TokenType.EVIDENCE:
                yield from evidence_deviations(where, token)
        for kind, count in found.items():
            least, most = self._expected.tokens.get(kind, (0, 0))
            if not least <= count <= most:
                yield Violation(Reason.TOKEN_COUNT, f"tokens of type {kind.value}", str(count))
        least, most = self._expected.passphrases
        free = [name for name in self._metadata["keyslots"] if not self._is_bound(name)]
        if not least <= len(free) <= most:
            yield Violation(Reason.KEYSLOT_COUNT, "keyslots without a token", listed(free) or "none")

    def _binding(self, where: str, kind: TokenType, keyslots: Any) -> Iterator[Violation]:
        """An evidence token opens nothing; any other belongs to exactly one keyslot that no other token has."""
        if not isinstance(keyslots, list):
            return
        if kind is TokenType.EVIDENCE:
            sound = not keyslots
        else:
            sound = len(keyslots) == 1 and keyslots[0] in list(self._metadata["keyslots"])
            sound = sound and self._users(keyslots[0]) == 1
        if not sound:
            yield Violation(Reason.TOKEN_BINDING, f"{where}.keyslots", shown(keyslots))

    def _users(self, keyslot: Any) -> int:
        """How many tokens are bound to a keyslot."""
        lists = [token.get("keyslots") for token in self._metadata["tokens"].values()]
        return sum(isinstance(listed, list) and keyslot in listed for listed in lists)

    def _is_bound(self, keyslot: str) -> bool:
        return self._users(keyslot) > 0

    def _tpm2(self, where: str, token: Mapping[str, Any]) -> Iterator[Violation]:
        """Name what is wrong by the binding that fits best: one that fits is all a token needs."""
        flaws = list(tpm2_flaws(where, token))
        yield from flaws
        if not flaws and self._expected.tpm2 is not None:
            found = [list(tpm2_deviations(where, token, binding)) for binding in self._expected.tpm2]
            yield from min(found, key=len, default=[])
