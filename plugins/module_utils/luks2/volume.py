# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Making, opening and closing a volume through cryptsetup and systemd's own programs.

Native tools do the work, so that native tools can read the result. Keys travel in memory files (``secret.py``); what is
opened is always a header copy that was checked before (``area.py``), never the header on the disk.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Iterable, Mapping, Optional, Sequence

from ..codes import Code, refuse
from ..dm.device import DeviceMapper
from ..dm.table import Other
from ..errors import FdeError
from ..runner import MissingProgram, Runner
from .profile import AUTHENTICATED, LAYOUT, Layout, Profile
from .secret import descriptor_path, memory_file

#: Of the temporary keyslot, whose key is 32 random bytes, and of systemd's TPM keyslot: stretching would add nothing.
_ITERATIONS = 1000
TEMPORARY_KEYSLOT = 0
_DEVICES = Path("/sys/dev/block")


def format_volume(
    runner: Runner,
    device: str,
    *,
    volume_key: bytearray,
    temporary_key: bytearray,
    uuid: str,
    profile: Profile = AUTHENTICATED,
    layout: Layout = LAYOUT,
    journal: bool = True,
    wipe: bool = False,
    header: Optional[str] = None,
) -> None:
    """Make a LUKS2 volume on ``device`` with the given volume key; whatever was there is lost.

    With ``header`` the header is written to that file instead, which has the size of the header area already, and the
    device's own header area is left alone.

    ``temporary_key`` opens keyslot 0 until ``enrol_tpm2`` wipes it. Without ``wipe`` a sector of an authenticated
    volume can only be read after it was written. Raises ``CommandError``, and ``ValueError`` for a key of the wrong
    size.
    """
    if len(volume_key) != profile.volume_key_size:
        raise ValueError(f"profile {profile.name} needs a volume key of {profile.volume_key_size} bytes")
    if len(temporary_key) < 32:
        raise ValueError("the temporary key is too short to be safe without stretching")
    with memory_file(volume_key) as key, memory_file(temporary_key) as unlock:
        runner.run(
            [
                *("cryptsetup", "luksFormat", "--batch-mode", "--type", "luks2", "--uuid", uuid),
                *("--cipher", profile.encryption, "--key-size", str(profile.cipher_key_size * 8)),
                *_integrity_options(profile, journal, wipe),
                *("--sector-size", str(layout.sector_size), "--luks2-metadata-size", str(layout.metadata_size)),
                *("--offset", str(layout.offset // 512)),
                *("--hash", "sha256", "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", str(_ITERATIONS)),
                *("--volume-key-file", descriptor_path(key), "--key-slot", str(TEMPORARY_KEYSLOT)),
                *("--key-file", descriptor_path(unlock), "--keyfile-size", str(len(temporary_key))),
                *(("--header", header) if header is not None else ()),
                device,
            ],
            pass_fds=(key, unlock),
        )


def _integrity_options(profile: Profile, journal: bool, wipe: bool) -> Iterable[str]:
    if profile.integrity_option is not None:
        yield from ("--integrity", profile.integrity_option)
        if not wipe:
            yield "--integrity-no-wipe"
        if not journal:
            yield "--integrity-no-journal"


def enrol_tpm2(
    runner: Runner,
    device: str,
    *,
    unlock_key: bytearray,
    tpm2_device: str = "auto",
    public_key: Optional[str],
    public_key_pcrs: Sequence[int] = (11,),
    pcrs: Sequence[int] = (7,),
    pcrlock_policy: Optional[str] = None,
    wipe_keyslot: Optional[int] = TEMPORARY_KEYSLOT,
    pass_fds: Sequence[int] = (),
) -> None:
    """Add a keyslot that the TPM opens under literal PCR values, a signed PCR policy and the machine's pcrlock policy.

    ``public_key`` is the path of the PEM file that verifies the signatures of ``public_key_pcrs``, ``pcrlock_policy``
    that of systemd-pcrlock's; None asks for neither. ``wipe_keyslot`` is replaced by the new one. Every part is
    explicit because systemd's defaults depend on what lies in the file system, and since version 258 on nothing else.
    Raises ``CommandError``.
    """
    with memory_file(unlock_key) as unlock:
        runner.run(
            [
                "systemd-cryptenroll",
                f"--unlock-key-file={descriptor_path(unlock)}",
                f"--tpm2-device={tpm2_device}",
                f"--tpm2-public-key={public_key or ''}",
                *([f"--tpm2-public-key-pcrs={_pcr_list(public_key_pcrs)}"] if public_key is not None else []),
                f"--tpm2-pcrs={_pcr_list(pcrs)}",
                f"--tpm2-pcrlock={pcrlock_policy or ''}",
                "--tpm2-with-pin=no",
                *([] if wipe_keyslot is None else [f"--wipe-slot={wipe_keyslot}"]),
                device,
            ],
            pass_fds=(unlock, *pass_fds),
        )


def _pcr_list(pcrs: Sequence[int]) -> str:
    return "+".join(str(pcr) for pcr in sorted(set(pcrs)))


def import_token(runner: Runner, device: str, token: Mapping[str, Any], *, token_id: Optional[int] = None) -> None:
    """Store a token in the header of a device or header file; an existing one of the same id is replaced."""
    text = json.dumps(token, sort_keys=True, separators=(",", ":"))
    place = [] if token_id is None else ["--token-id", str(token_id), "--token-replace"]
    runner.run(["cryptsetup", "token", "import", "--json-file", "-", *place, device], stdin=text.encode())


def attach(
    runner: Runner,
    name: str,
    device: str,
    *,
    header: str,
    tpm2_device: str = "auto",
    signature: Optional[str],
    volume_key_id: Optional[str] = None,
    measure: bool = True,
    env: Optional[Mapping[str, str]] = None,
) -> None:
    """Open ``device`` as /dev/mapper/``name`` by the TPM, from the header copy at ``header``; nobody is ever asked.

    ``signature`` is the path of the PCR signatures (JSON), None where no policy is signed. A volume key with another
    id than ``volume_key_id`` is refused by systemd 260 and newer; older versions ignore it. With ``measure`` the volume
    key id is measured into PCR 15 where the machine was booted by systemd's stub. Raises ``CommandError``; afterwards
    call ``check_active``.
    """
    options = [
        "luks",
        f"header={_option(header)}",
        f"tpm2-device={_option(tpm2_device)}",
        *([f"tpm2-signature={_option(signature)}"] if signature is not None else []),
        *(["tpm2-measure-pcr=yes"] if measure else []),
        "headless=yes",
        "tries=1",
        *([f"fixate-volume-key={volume_key_id}"] if volume_key_id is not None else []),
    ]
    runner.run([_systemd_cryptsetup(runner), "attach", name, device, "-", ",".join(options)], env=env)


def attach_with_key(
    runner: Runner, name: str, device: str, *, header: str, volume_key: bytearray, journal: bool = True
) -> None:
    """Open ``device`` with the volume key itself, from the header copy at ``header``.

    Without ``journal`` the copy is changed: dm-integrity then keeps no journal, now and whenever it is opened again.
    Only so can a header be told, as no format does it; afterwards the copy is the header to store.
    """
    with memory_file(volume_key) as key:
        runner.run(
            [
                *("cryptsetup", "open", "--type", "luks2", "--header", header),
                *(() if journal else ("--integrity-no-journal", "--persistent")),
                *("--volume-key-file", descriptor_path(key), device, name),
            ],
            pass_fds=(key,),
        )


def attach_with_secret(runner: Runner, name: str, device: str, *, header: str, secret: bytearray) -> None:
    """Open ``device`` by a recovery key, a passphrase or a key file's content, from the header copy at ``header``."""
    with memory_file(secret) as key:
        runner.run(
            [
                *("cryptsetup", "open", "--type", "luks2", "--disable-external-tokens", "--header", header),
                *("--key-file", descriptor_path(key), device, name),
            ],
            pass_fds=(key,),
        )


def attach_for_reading(runner: Runner, name: str, device: str, *, header: str, secret: bytearray) -> None:
    """Open ``device`` by a recovery key so that nothing can write to it, from the header copy at ``header``.

    The volume key id is measured into PCR 15 where the machine was booted by systemd's stub. Raises ``CommandError``;
    afterwards call ``check_active``.
    """
    options = f"luks,header={_option(header)},read-only,tpm2-measure-pcr=yes,headless=yes,tries=1"
    with memory_file(secret) as key:
        argv = [_systemd_cryptsetup(runner), "attach", name, device, descriptor_path(key), options]
        runner.run(argv, pass_fds=(key,))


def detach(runner: Runner, name: str) -> None:
    """Close the volume; closing a closed one is fine."""
    runner.run([_systemd_cryptsetup(runner), "detach", name])


def _option(value: str) -> str:
    """A value inside systemd's comma-separated option list."""
    if re.search(r"[,\s\0]", value):
        raise ValueError(f"systemd's option list cannot hold {value!r}")
    return value


def _systemd_cryptsetup(runner: Runner) -> str:
    for name in ("/usr/lib/systemd/systemd-cryptsetup", "/usr/bin/systemd-cryptsetup", "systemd-cryptsetup"):
        if (path := runner.find(name)) is not None:
            return path
    raise MissingProgram("systemd-cryptsetup")


def underlying(mapper: DeviceMapper, name: str, sysfs: Path = _DEVICES) -> str:
    """Return the device that a LUKS2 volume lies on. Raises ``FdeError`` when the volume is not open."""
    lower = f"{name}_dif" if mapper.find(f"{name}_dif") is not None else name
    if mapper.find(lower) is None:
        raise FdeError(name, "the volume is not open", "Run this on the machine that the root volume belongs to")
    for target in mapper.table(lower):
        for word in target.arguments.split() if isinstance(target, Other) else ():
            if re.fullmatch(r"[0-9]+:[0-9]+", word):
                uevent = dict(line.split("=", 1) for line in (sysfs / word / "uevent").read_text().splitlines())
                return f"/dev/{uevent['DEVNAME']}"
    raise FdeError(name, "its table names no device", "Check the version of dmsetup")


def check_active(
    mapper: DeviceMapper, name: str, *, profile: Profile = AUTHENTICATED, layout: Layout = LAYOUT, journal: bool = True
) -> None:
    """Check what the kernel really runs under ``name``: cipher, key size, sector size, authentication, data offset.

    This is the last look after the header's own: it would catch a program that opened something else than the copy it
    was given. Raises ``Refusal`` with the code ``active-table``.
    """
    problems = list(_table_problems(mapper, name, profile, layout, journal))
    if problems:
        raise refuse(Code.ACTIVE_TABLE, name, "; ".join(problems))


def _table_problems(mapper: DeviceMapper, name: str, profile: Profile, layout: Layout, journal: bool) -> Iterable[str]:
    crypt = _only_target(mapper, name, "crypt")
    words = crypt.arguments.split()
    if len(words) < 5:
        raise FdeError(name, f"its table cannot be read: {crypt.arguments!r}", "Check the version of dmsetup")
    cipher, key, iv_offset, lower, start = words[:5]
    options = set(words[6:])
    if cipher != profile.kernel_cipher:
        yield f"cipher {cipher}"
    if not re.fullmatch(rf":{profile.volume_key_size}:logon:\S+|0{{{profile.volume_key_size * 2}}}", key):
        yield "another key size"
    if iv_offset != "0":
        yield f"IV offset {iv_offset}"
    if f"sector_size:{layout.sector_size}" not in options:
        yield "another sector size"
    if "allow_discards" in options:
        yield "discards allowed"
    if profile.integrity is None:
        if start != str(layout.offset // 512):
            yield f"data at sector {start}"
        return
    if f"integrity:{profile.tag_size}:aead" not in options:
        yield "no authentication"
    if start != "0":
        yield f"data at sector {start}"
    yield from _integrity_problems(mapper, f"{name}_dif", lower, profile, layout, journal)


def _integrity_problems(
    mapper: DeviceMapper, name: str, lower: str, profile: Profile, layout: Layout, journal: bool
) -> Iterable[str]:
    below = mapper.find(name)
    if below is None or below.number != lower:
        yield f"it does not lie on {name}"
        return
    words = _only_target(mapper, name, "integrity").arguments.split()
    expected = [str(layout.offset // 512), str(profile.tag_size), "J" if journal else "D"]
    if words[1:4] != expected:
        yield f"dm-integrity runs with {' '.join(words[1:4])} instead of {' '.join(expected)}"


def _only_target(mapper: DeviceMapper, name: str, kind: str) -> Other:
    table = mapper.table(name)
    if len(table) != 1 or not isinstance(table[0], Other) or table[0].kind != kind or table[0].start != 0:
        found = "+".join(target.kind for target in table)
        raise refuse(Code.ACTIVE_TABLE, name, f"it is '{found}' instead of '{kind}'")
    return table[0]
