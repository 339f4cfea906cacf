# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Changing what opens a volume.

Changes are made to a draft of the header in RAM (``change.py``), whose file cryptsetup and systemd-cryptenroll take for
the device. A new method is proven to open the draft before an old one goes, and the last keyslot never goes: cryptsetup
itself would delete it when nobody can answer its question.

systemd-cryptenroll (257 to 262) reports success without doing anything when the same policy is enrolled already, also
when that was with another TPM; so a TPM keyslot that no longer opens is removed from the draft before its successor is
made.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Iterator, Optional, Sequence, Union

from ..errors import FdeError
from ..runner import Completed, Runner
from .area import read_area
from .enrolment import Enrolled, Plan, enrolled, plan
from .expectation import TokenType
from .header import SIZES, Header
from .method import Method, Passphrase, Recovery, Tpm2
from .secret import descriptor_path, memory_file, wipe
from .volume import enrol_tpm2

__all__ = [
    "ByKey",
    "ByTpm",
    "Credential",
    "Enrolled",
    "Means",
    "Passphrase",
    "Plan",
    "Recovery",
    "Tpm2",
    "add",
    "change",
    "enrolled",
    "plan",
    "proves",
    "remove",
    "require_proof",
    "unlocked",
]

#: Where systemd-pcrlock leaves the policy that it made for this machine.
PCRLOCK_POLICY = "/var/lib/systemd/pcrlock.json"

#: A recovery key is random and long: stretching would add nothing.
_RECOVERY_STRETCHING = ("--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000")
#: cryptsetup adds rounds until it takes two seconds here; what the policy allows is more.
_PASSPHRASE_STRETCHING = ("--pbkdf", "argon2id", "--pbkdf-parallel", "4", "--pbkdf-memory")


@dataclass(frozen=True)
class ByKey:
    """Open an existing keyslot by its key: a recovery key's text, a passphrase, or the content of a key file."""

    key: bytearray = field(repr=False)


@dataclass(frozen=True)
class ByTpm:
    """Open an existing keyslot by the TPM; ``device`` as systemd names it."""

    device: str = "auto"


Credential = Union[ByKey, ByTpm]


@dataclass(frozen=True)
class Means:
    """What a change needs besides the header: secrets of keyslots, the TPM, and the machine's pcrlock policy.

    ``passphrase_memory`` is what stretching a passphrase may take at the most, in KiB; every unlocking takes as much.
    """

    recovery: Optional[bytearray] = field(default=None, repr=False)
    passphrase: Optional[bytearray] = field(default=None, repr=False)
    tpm2_device: str = "auto"
    pcrlock_policy: str = PCRLOCK_POLICY
    passphrase_memory: int = 1 << 20

    def secret(self, method: Optional[Method]) -> Optional[bytearray]:
        """The secret that belongs to a method; a TPM keyslot has none that anybody knows."""
        if isinstance(method, Recovery):
            return self.recovery
        return self.passphrase if isinstance(method, Passphrase) else None


def change(runner: Runner, path: str, planned: Plan, unlock: Credential, means: Means) -> tuple[Enrolled, ...]:
    """Carry out a plan on the draft at ``path`` and return its keyslots; every one that is added is proven to open.

    When this raises, the draft is of no use. Raises ``FdeError``.
    """
    with unlocked(runner, path, unlock) as key:
        hidden = [slot for slot in planned.removes if isinstance(slot.method, Tpm2) and slot.method in planned.adds]
        for slot in hidden:
            remove(runner, path, slot)
        for method in planned.adds:
            made = add(runner, path, method, ByKey(key), means)
            require_proof(runner, path, made, means)
        for slot in planned.removes:
            if slot not in hidden:
                remove(runner, path, slot)
    return enrolled(_header(path))


@contextmanager
def unlocked(runner: Runner, path: str, unlock: Credential) -> Iterator[bytearray]:
    """Yield a key that opens the draft; for the TPM that is a temporary one, which is removed afterwards."""
    if isinstance(unlock, ByKey):
        yield unlock.key
        return
    key, slot = _by_tpm(runner, path, unlock.device)
    try:
        yield key
    finally:
        wipe(key)
        remove(runner, path, slot)


def _by_tpm(runner: Runner, path: str, device: str) -> tuple[bytearray, Enrolled]:
    """Let systemd unlock the draft by the TPM and add a key of its own. Raises ``CommandError``."""
    before = enrolled(_header(path))
    done = runner.run(["systemd-cryptenroll", f"--unlock-tpm2-device={device}", "--recovery-key", path])
    return bytearray(done.stdout.strip()), _added(path, before)


def add(runner: Runner, path: str, method: Method, unlock: Credential, means: Means) -> Enrolled:
    """Add a keyslot to the draft and return it; it is not proven yet. Raises ``FdeError``."""
    if isinstance(method, Tpm2) and not method.bound:
        raise FdeError("unlock", "a TPM policy without any condition protects nothing", "Name PCRs, a key, or pcrlock")
    before = enrolled(_header(path))
    with unlocked(runner, path, unlock) as key:
        opened = enrolled(_header(path))
        if isinstance(method, Tpm2):
            _add_tpm2(runner, path, method, key, means)
        else:
            _add_secret(runner, path, method, key, means)
        made = _added(path, opened)
    if isinstance(method, Recovery):
        _tell(runner, path, made)
    return next(slot for slot in enrolled(_header(path)) if slot not in before)


def _add_tpm2(runner: Runner, path: str, method: Tpm2, key: bytearray, means: Means) -> None:
    with memory_file(bytearray(method.public_key or b"")) as public_key:
        enrol_tpm2(
            runner,
            path,
            unlock_key=key,
            tpm2_device=means.tpm2_device,
            public_key=descriptor_path(public_key) if method.public_key is not None else None,
            public_key_pcrs=method.public_key_pcrs,
            pcrs=method.pcrs,
            pcrlock_policy=means.pcrlock_policy if method.pcrlock else None,
            wipe_keyslot=None,
            pass_fds=(public_key,),
        )


def _add_secret(runner: Runner, path: str, method: Method, key: bytearray, means: Means) -> None:
    secret = means.secret(method)
    if not secret:
        raise ValueError("a new keyslot for a secret needs the secret")
    passphrase = (*_PASSPHRASE_STRETCHING, str(means.passphrase_memory))
    stretching = _RECOVERY_STRETCHING if isinstance(method, Recovery) else passphrase
    with memory_file(key) as old, memory_file(secret) as new:
        runner.run(
            [
                *("cryptsetup", "luksAddKey", "--batch-mode", "--disable-external-tokens", *stretching),
                *("--key-file", descriptor_path(old), "--new-keyfile", descriptor_path(new), path),
            ],
            pass_fds=(old, new),
        )


def _tell(runner: Runner, path: str, slot: Enrolled) -> None:
    """Store the token by which systemd knows a recovery key."""
    token = f'{{"type":"{TokenType.RECOVERY.value}","keyslots":["{slot.keyslot}"]}}'
    runner.run(["cryptsetup", "token", "import", "--json-file", "-", path], stdin=token.encode())


def _added(path: str, before: Sequence[Enrolled]) -> Enrolled:
    """Return the one keyslot that is new."""
    old = {slot.keyslot for slot in before}
    new = [slot for slot in enrolled(_header(path)) if slot.keyslot not in old]
    if len(new) != 1:
        raise FdeError(
            "unlock",
            f"{len(new)} keyslots were made instead of one",
            "An equal TPM policy is enrolled already, or the header is full; remove a keyslot first",
        )
    return new[0]


def require_proof(runner: Runner, path: str, slot: Enrolled, means: Means) -> None:
    """Raise ``FdeError`` unless the keyslot opens the draft."""
    done = _try(runner, path, slot, means)
    if done.status != 0:
        said = done.stderr.decode("utf-8", "replace").strip() or f"{done.argv[0]} ended with status {done.status}"
        raise FdeError(
            f"keyslot {slot.keyslot}",
            f"it was added, but it does not unlock the volume: {said}",
            "Nothing was changed on the disk; mend the cause and run again",
        )


def proves(runner: Runner, path: str, slot: Enrolled, means: Means) -> bool:
    """Return whether a keyslot opens the draft: by a real unseal, or by the secret in ``means``."""
    return _try(runner, path, slot, means).status == 0


def _try(runner: Runner, path: str, slot: Enrolled, means: Means) -> Completed:
    if isinstance(slot.method, Tpm2):
        return _try_tpm2(runner, path, slot, means.tpm2_device)
    secret = means.secret(slot.method)
    if not secret:
        raise ValueError("a keyslot with a secret is only proven by the secret")
    with memory_file(secret) as key:
        return runner.run(
            [
                *("cryptsetup", "open", "--test-passphrase", "--disable-external-tokens"),
                *("--key-slot", str(slot.keyslot), "--key-file", descriptor_path(key), path),
            ],
            pass_fds=(key,),
            ok=(),
        )


def _try_tpm2(runner: Runner, path: str, slot: Enrolled, device: str) -> Completed:
    """Have the TPM open a copy of the draft in which no other TPM token is left."""
    descriptor, copy = tempfile.mkstemp(prefix="proof-", dir=os.path.dirname(path))
    os.close(descriptor)
    try:
        shutil.copyfile(path, copy)
        for number, token in _header(copy).metadata["tokens"].items():
            if token["type"] == TokenType.TPM2.value and number != str(slot.token):
                runner.run(["cryptsetup", "token", "remove", "--token-id", number, copy])
        done = runner.run(["systemd-cryptenroll", f"--unlock-tpm2-device={device}", "--recovery-key", copy], ok=())
        # What it printed would open the copy.
        return Completed(done.argv, done.status, b"", done.stderr)
    finally:
        os.unlink(copy)


def remove(runner: Runner, path: str, slot: Enrolled) -> None:
    """Destroy a keyslot of the draft and its token. Raises ``FdeError`` when it is the last one."""
    if {found.keyslot for found in enrolled(_header(path))} <= {slot.keyslot}:
        raise FdeError("unlock", "the last keyslot cannot be removed", "Add another way to unlock the volume first")
    runner.run(["cryptsetup", "luksKillSlot", "--batch-mode", path, str(slot.keyslot)])
    if slot.token is not None:
        runner.run(["cryptsetup", "token", "remove", "--token-id", str(slot.token), path])
    if slot.keyslot in {found.keyslot for found in enrolled(_header(path))}:
        raise FdeError(f"keyslot {slot.keyslot}", "it was not removed", "Nothing was changed on the disk; run again")


def _header(path: str) -> Header:
    return read_area(path, 2 * SIZES[-1]).header()
