# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Fuzzes the header reader and its policy.

An input is a header in short form, because libFuzzer would spend its days on checksums and padding otherwise. The first
byte says what the rest is:

====  ==============================================================================================
0     bytes, read as they are
1     JSON, put into both copies of a sound header
2     changes to the binary headers (copy, offset, length, bytes), a zero length, then JSON; checksums made right
3     the same, and checksums left wrong where the changes made them so
====  ==============================================================================================

What must hold: the reader raises ``HeaderError`` and nothing else; the policy judges whatever was read, in words that
are fit for a console; and what it accepts has what every sound volume has, checked here in another way.
"""

from __future__ import annotations

import base64
import hashlib
import json
import lzma
import random
import struct
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from ansible_collections.cvm.fde.plugins.module_utils.luks2.enrolment import enrolled
from ansible_collections.cvm.fde.plugins.module_utils.luks2.header import Header, HeaderError
from ansible_collections.cvm.fde.plugins.module_utils.luks2.policy import data_volume, judge, root_volume
from ansible_collections.cvm.fde.plugins.module_utils.luks2.profile import PROFILES, Layout

from .target import Target

FIXTURES = Path(__file__).parents[1] / "unit/plugins/module_utils/luks2/fixtures"
UUID = "6a2f0e55-5b7e-4d0e-9d59-1c2f35e7a003"
SIZE = 16 << 10
OFFSET = 8 << 20


LAYOUT = Layout(offset=OFFSET, metadata_size=SIZE)
ROOT = root_volume(uuid=UUID, public_key=(FIXTURES / "2.8.8-root.pem").read_bytes(), layout=LAYOUT)
DATA = [data_volume(profile=profile, layout=LAYOUT) for profile in PROFILES.values()]


def check(content: bytes) -> None:
    """Read and judge one input. Raises ``HeaderError`` where there is no sound header, ``AssertionError`` otherwise."""
    header = Header.parse(expanded(content))
    # The profile with the most ways to unlock it is always judged, the others have their turn.
    for expectation in (ROOT, DATA[0], DATA[1 + len(content) % (len(DATA) - 1)]):
        judgement = judge(header, expectation)
        assert len(judgement.violations) <= 48
        for violation in judgement.violations:
            assert violation.where.isprintable(), violation
            assert violation.found.isprintable(), violation
            assert len(violation.where) < 400 and len(violation.found) <= 80, violation
        if judgement.accepted:
            harmless(header.metadata, expectation.profile)
            assert len(enrolled(header)) == len(header.metadata["keyslots"])


def harmless(metadata: Any, profile: Any) -> None:
    """Assert what every attack so far would have broken, without the policy's help."""
    text = json.dumps(metadata)
    assert "null" not in text.lower()
    assert "reencrypt" not in text
    (segment,) = metadata["segments"].values()
    assert (segment["encryption"], segment["offset"]) == (profile.encryption, str(OFFSET))
    assert segment.get("integrity", {}).get("type") == profile.integrity
    ranges = [(0, 2 * SIZE), (OFFSET, 1 << 64)]
    for keyslot in metadata["keyslots"].values():
        assert keyslot["type"] == "luks2"
        assert keyslot["key_size"] == profile.volume_key_size
        assert keyslot["kdf"].get("iterations", 0) <= 20_000_000
        assert keyslot["kdf"].get("memory", 0) <= 1 << 20
        start = int(keyslot["area"]["offset"])
        ranges.append((start, start + int(keyslot["area"]["size"])))
    for (_start, end), (start, _end) in zip(sorted(ranges), sorted(ranges)[1:]):
        assert end <= start, ranges
    (digest,) = metadata["digests"].values()
    assert sorted(digest["keyslots"]) == sorted(metadata["keyslots"])
    assert "requirements" not in metadata["config"]
    used = [keyslot for token in metadata["tokens"].values() for keyslot in token["keyslots"]]
    assert len(used) == len(set(used)) and set(used) <= set(metadata["keyslots"])
    for token in metadata["tokens"].values():
        if token["type"] == "systemd-tpm2":
            signed = "BEGIN PUBLIC KEY" in base64.b64decode(token.get("tpm2_pubkey", "")).decode()
            assert signed is bool(token.get("tpm2_pubkey_pcrs"))
            assert signed or token.get("tpm2_pcrlock") is True or set(token["tpm2-pcrs"]) - {16, 23}
            assert set("".join(token["tpm2-policy-hash"])) != {"0"}


def expanded(content: bytes) -> bytes:
    """Return the bytes of a device for an input."""
    kind, rest = content[:1], content[1:]
    if kind not in (b"\1", b"\2", b"\3"):
        return rest
    changes, text = ([], rest) if kind == b"\1" else _changes(rest)
    area = bytearray(_copy(b"LUKS\xba\xbe", 0, text) + _copy(b"SKUL\xba\xbe", SIZE, text))
    for copy, offset, value in changes:
        start = SIZE * (copy & 1) + offset
        area[start : start + len(value)] = value
    return bytes(area) if kind == b"\3" else bytes(_sealed(area))


def _changes(content: bytes) -> tuple[list[tuple[int, int, bytes]], bytes]:
    found, at = [], 0
    while len(content) >= at + 4 and content[at + 3]:
        copy, offset, length = struct.unpack_from(">BHB", content, at)
        found.append((copy, offset % (SIZE - 256), content[at + 4 : at + 4 + length]))
        at += 4 + length
    return found, content[at + 4 :]


def _copy(magic: bytes, offset: int, text: bytes) -> bytes:
    binary = struct.pack(
        ">6sHQQ48s32s64s40s48sQ", magic, 2, SIZE, 7, b"", b"sha256", bytes(64), UUID.encode(), b"", offset
    )
    return bytes(_sealed_copy(bytearray((binary.ljust(4096, b"\0") + text[: SIZE - 4096]).ljust(SIZE, b"\0"))))


def _sealed(area: bytearray) -> bytearray:
    return _sealed_copy(area[:SIZE]) + _sealed_copy(area[SIZE : 2 * SIZE]) + area[2 * SIZE :]


def _sealed_copy(copy: bytearray) -> bytearray:
    copy[448:512] = bytes(64)
    copy[448:480] = hashlib.sha256(copy).digest()
    return copy


def seeds() -> Iterator[bytes]:
    """Yield the genuine headers of every version, small, and some with changes to their binary headers."""
    for path in sorted(FIXTURES.rglob("*.xz")):
        content = lzma.decompress(path.read_bytes())
        metadata = json.loads(content[4096 : 256 << 10].rstrip(b"\0"))
        metadata["config"]["json_size"] = str(SIZE - 4096)
        text = json.dumps(metadata, separators=(",", ":")).encode()
        yield b"\1" + text
        if path.stem != "2.8.8-root":
            continue
        for offset, value in ((16, b"\0" * 8), (24, b"label\0"), (256, b"\1"), (448, b"x"), (8, b"\0\0\0\0\0\1\0\0")):
            for copy in (0, 1):
                change = struct.pack(">BHB", copy, offset, len(value)) + value
                yield bytes([2 + copy]) + change + bytes(4) + text
    yield b"\0" + b"LUKS\xba\xbe\0\2"


_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 4096, 2**63 - 1, -(2**63), 2**64, "", "0", "1", "4096", "8388608", "dynamic"),
    *("cipher_null-ecb", "aes-xts-plain64", "aegis128-random", "pbkdf2", "argon2id", "sha256", "reencrypt", "linear"),
    *(
        "hmac(sha256)",
        "none",
        "aead",
        "backup-final",
        "systemd-tpm2",
        "systemd-recovery",
        "cvm-fde",
        "\x1b[2J",
        "\ud800",
    ),
    *("0" * 64, "AAAA", "AB==", "sha1", [7], [16, 23], [7, 7], ["0" * 64]),
    *([], {}, ["0"], ["1"], [{}], [[]], {"type": "crypt"}, {"mandatory": ["online-reencrypt-v2"]}, "A" * 100),
)


def mutate(content: bytes, longest: int, seed: int, natural: Callable[[bytes, int], bytes]) -> bytes:
    """Change the JSON as JSON most of the time, and bytes as bytes otherwise."""
    rng = random.Random(seed)
    if content[:1] not in (b"\1", b"\2", b"\3") or rng.random() < 0.3:
        return natural(content, longest)
    head, text = content[:1], content[1:]
    if head != b"\1":
        changes, text = _changes(text)
        head = content[: len(content) - len(text)]
    try:
        metadata = json.loads(text)
    except (ValueError, RecursionError):
        return natural(content, longest)
    for _change in range(rng.choice((1, 1, 1, 2, 4))):
        _edit(metadata, rng)
    text = json.dumps(metadata, separators=(",", ":"), ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")
    if rng.random() < 0.05:
        text = text.replace(b'{"', b'{"' + rng.choice((b"type", b"0", b"offset")) + b'":1,"', 1)
    return (head + text)[:longest]


def _edit(metadata: Any, rng: random.Random) -> None:
    """Change one place: another value, one away, one more, or one moved from elsewhere."""
    places = list(_places(metadata))
    if not places:
        return
    parent, key = rng.choice(places)
    action = rng.randrange(6)
    if action == 0:
        del parent[key]
    elif action == 1:
        other, at = rng.choice(places)
        try:
            parent[key] = json.loads(json.dumps(other[at]))
        except (KeyError, IndexError):
            return
    elif action == 2 and isinstance(parent, dict):
        parent[
            str(rng.choice((0, 1, 2, 3, 7, 31, "x", "flags", "requirements", "priority", "integrity", "tpm2_pubkey")))
        ] = parent[key]
    elif action == 3 and type(parent[key]) is int:
        parent[key] = rng.choice((parent[key] + rng.choice((-1, 1, 4096)), parent[key] * 2, -parent[key]))
    elif action == 4 and isinstance(parent[key], str) and parent[key].isdigit():
        parent[key] = str(max(0, int(parent[key]) + rng.choice((-4096, 4096, 1, 385024, -385024))))
    else:
        parent[key] = json.loads(json.dumps(rng.choice(_VALUES)))


def _places(value: Any) -> Iterable[tuple[Any, Any]]:
    if isinstance(value, (dict, list)):
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from _places(value[key])


TARGET = Target("luks2_header", check, (HeaderError,), limit=24 << 10, strict=False, made=seeds, mutate=mutate)
