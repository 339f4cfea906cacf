# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Makes the genuine headers that the unit tests read and attack, with the cryptsetup of any Debian tree.

    python -m tests.integration.uml --share FIXTURES -- python3 tests/integration/inside/make_headers.py FIXTURES
    python -m tests.integration.uml --share FIXTURES -- python3 tests/integration/inside/make_headers.py FIXTURES TREE

FIXTURES is tests/unit/plugins/module_utils/luks2/fixtures as an absolute path, TREE the root directory of another
release ("/" for the machine's own). Only the two header copies are kept: keyslots and data are of no use without keys.
"""

from __future__ import annotations

import lzma
import os
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from ansible_collections.cvm.fde.plugins.module_utils.agent.process import SubprocessRunner
from ansible_collections.cvm.fde.plugins.module_utils.luks2.area import read_area
from ansible_collections.cvm.fde.plugins.module_utils.luks2.profile import LAYOUT, PROFILES, Profile
from ansible_collections.cvm.fde.plugins.module_utils.luks2.volume import enrol_tpm2, format_volume, import_token
from ansible_collections.cvm.fde.plugins.module_utils.runner import Runner
from ansible_collections.cvm.fde.plugins.module_utils.tpm.policy import BOUND_PCRS
from software_tpm import PolicyKey, Tpm

UUID = "6a2f0e55-5b7e-4d0e-9d59-1c2f35e7a003"
ARGON2 = ["--pbkdf", "argon2id", "--pbkdf-memory", "65536", "--pbkdf-force-iterations", "4", "--pbkdf-parallel", "4"]
EVIDENCE = {
    "type": "cvm-fde",
    "keyslots": [],
    "version": 1,
    "claims": "e30=",
    "quote": {"attest": "AA==", "signature": "AA=="},
    "ak": "AA==",
    "pcrs": {"sha256": {"11": "00" * 32}},
    "firmware_log": "AAAA",
    "userspace_log": "AAAA",
}


def formatted(runner: Runner, device: str, profile: Profile) -> bytearray:
    """Make a volume and return the key of its temporary keyslot."""
    key = bytearray(os.urandom(32))
    volume_key = bytearray(os.urandom(profile.volume_key_size))
    format_volume(runner, device, volume_key=volume_key, temporary_key=key, uuid=UUID, profile=profile)
    return key


def with_passphrase(runner: Runner, device: str, key: bytearray, directory: Path) -> None:
    """Replace the temporary keyslot by one with a passphrase, stretched by Argon2."""
    old, new = directory / "old", directory / "new"
    old.write_bytes(key)
    new.write_text("a passphrase")
    runner.run(["cryptsetup", "luksAddKey", "--batch-mode", *ARGON2, "--key-file", str(old), device, str(new)])
    runner.run(["cryptsetup", "luksKillSlot", "--batch-mode", "--key-file", str(new), device, "0"])


def bound(runner: Runner, device: str, profile: Profile, directory: Path) -> None:
    """Make a data volume with every unlock method, each by systemd's own program."""
    with_passphrase(runner, device, formatted(runner, device, profile), directory)
    passphrase = bytearray((directory / "new").read_bytes())
    public_key = str(PolicyKey(directory).public_key)
    with Tpm.start(directory / "data-tpm") as tpm:
        tpm.extend(7, "secure boot")
        for key, pcrs in ((None, (7,)), (public_key, BOUND_PCRS)):
            enrol_tpm2(
                runner,
                device,
                unlock_key=passphrase,
                tpm2_device=tpm.tcti,
                public_key=key,
                pcrs=pcrs,
                wipe_keyslot=None,
            )
    runner.run(["systemd-cryptenroll", f"--unlock-key-file={directory / 'new'}", "--recovery-key", device])


def keep(device: str, target: Path) -> None:
    """Store both copies of a header."""
    target.write_bytes(lzma.compress(read_area(device, 2 * LAYOUT.metadata_size).content))
    print(target.name, target.stat().st_size)


def new_disk(directory: Path) -> str:
    """Return a loop device that no program has seen before."""
    file = directory / "disk"
    file.unlink(missing_ok=True)
    file.touch()
    os.truncate(file, 64 << 20)
    return SubprocessRunner().run(["losetup", "--find", "--show", str(file)]).stdout.decode().strip()


def enter(tree: str) -> SubprocessRunner:
    """Return a runner for the programs of another tree."""
    inside = "/run/tree"
    os.mkdir(inside)
    here = SubprocessRunner()
    here.run(["mount", "-t", "hostfs", "-o", f"ro,hostfs={tree}", "tree", inside])
    for directory in ("dev", "proc", "sys", "run", "tmp"):
        here.run(["mount", "--bind", f"/{directory}", f"{inside}/{directory}"])
    return SubprocessRunner(("chroot", inside))


def main(fixtures: Path, tree: str | None) -> None:
    runner = SubprocessRunner() if tree is None else enter(tree)
    version = runner.run(["cryptsetup", "--version"]).stdout.decode().split()[1]
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        directory = Path(name)
        for profile in PROFILES.values():
            device = new_disk(directory)
            with_passphrase(runner, device, formatted(runner, device, profile), directory)
            keep(device, fixtures / f"{version}-{profile.name}.xz")
        device = new_disk(directory)
        bound(runner, device, PROFILES["authenticated"], directory)
        keep(device, fixtures / f"{version}-data.xz")
        if tree is None:
            device = new_disk(directory)
            key, policy_key = formatted(runner, device, PROFILES["authenticated"]), PolicyKey(directory)
            with Tpm.start(directory / "tpm") as tpm:
                tpm.extend(7, "secure boot")
                public_key = str(policy_key.public_key)
                enrol_tpm2(runner, device, unlock_key=key, tpm2_device=tpm.tcti, public_key=public_key, pcrs=BOUND_PCRS)
            import_token(runner, device, EVIDENCE)
            keep(device, fixtures / f"{version}-root.xz")
            (fixtures / f"{version}-root.pem").write_bytes(policy_key.public_key.read_bytes())


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else None)
