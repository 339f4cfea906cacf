# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What every step of a boot needs: programs, the TPM, the signed configuration and the image's policy key."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..dm.device import DeviceMapper
from ..errors import FdeError
from ..runner import Runner
from ..tpm.esys import DEFAULT_TCTI
from ..tpm.measurements import USERSPACE_LOG
from ..tpm.policy import PUBLIC_KEY_FILE, SIGNATURE_FILE, PolicyKey, SignedPolicy, signed_policies
from .configuration import COMMAND_LINE, Configuration, first_words, parse
from .console import STATE_DIRECTORY

#: Device-mapper names: the verity root of the image, and the encrypted volume.
IMAGE = "root"
VOLUME = "fde-crypt"


#: The firmware's variable: whether it only starts what its keys have signed.
SECURE_BOOT = "/sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"


@dataclass(frozen=True)
class Paths:
    """Where systemd and the kernel leave what the agent reads, and where it keeps the header copy (a tmpfs)."""

    command_line: str = COMMAND_LINE
    public_key: str = PUBLIC_KEY_FILE
    signatures: str = SIGNATURE_FILE
    measurements: str = USERSPACE_LOG
    secure_boot: str = SECURE_BOOT
    state: Path = STATE_DIRECTORY

    @property
    def header(self) -> Path:
        """The header copy that the volume is opened from; it stays for as long as the volume is open."""
        return self.state / "header"


PATHS = Paths()


@dataclass(frozen=True)
class Machine:
    """The machine of this boot."""

    runner: Runner
    configuration: Configuration
    #: The policy key as PEM, and what it means.
    public_key: bytes
    key: PolicyKey
    policies: tuple[SignedPolicy, ...]
    paths: Paths
    #: The TPM, as tpm2-tss and systemd name it.
    tcti: str = DEFAULT_TCTI

    @property
    def mapper(self) -> DeviceMapper:
        """The device-mapper of the machine."""
        return DeviceMapper(self.runner)


def this_machine(runner: Runner, paths: Paths = PATHS, tcti: str = DEFAULT_TCTI) -> Machine:
    """Read the configuration, the policy key and its signatures. Raises ``FdeError``.

    Of words that are given twice the first count; ``boot.check_configuration`` refuses a boot with others.
    """
    configuration = parse(first_words(command_line(paths)))
    public_key = _read(paths.public_key)
    key = PolicyKey.from_pem(public_key, paths.public_key)
    policies = signed_policies(_read(paths.signatures), paths.signatures)
    return Machine(runner, configuration, public_key, key, policies, paths, tcti)


def command_line(paths: Paths) -> str:
    """Return the kernel's command line. Raises ``FdeError``."""
    return _read(paths.command_line).decode("utf-8", "replace")


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(1 << 20)
    except OSError as error:
        raise FdeError(
            path, f"it cannot be read: {error.strerror}", "Boot through the signed image (UKI) with systemd-stub"
        ) from error
