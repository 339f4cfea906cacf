# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Build unified kernel images and look into them."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from enum import Enum
from typing import Mapping, Sequence

from ..errors import FdeError
from ..tpm.policy import PHASE_PCR, PolicyKey, pcr_policy, signed_policies
from .pcr import MEASURED_SECTIONS, SIGNED_PHASE_PATHS, pcr11
from .pe import PeImage, parse_pe
from .tools import STUB, Argument, File, Tools

#: Stubs from here on start the kernel without firmware's help, so that PCR 4 does not depend on the inner kernel.
MIN_STUB = 258
#: The first ukify that signs the policies with which systemd starts its NV indexes.
MIN_UKIFY = 262
_STUB_VERSION = re.compile(rb"#### LoaderInfo: systemd-stub ([0-9]+)([^\s#]*) ####")


class SignTool(str, Enum):
    """The program that makes the Secure Boot signature."""

    SYSTEMD = "systemd-sbsign"
    SBSIGN = "sbsign"


@dataclass(frozen=True)
class Inputs:
    """What goes into a UKI; all but ``command_line`` and ``kernel_version`` are paths."""

    kernel: str
    initrd: str
    os_release: str
    kernel_version: str
    command_line: str
    pcr_private_key: str
    pcr_public_key: str
    secure_boot_key: str
    secure_boot_certificate: str
    sign_tool: SignTool = SignTool.SYSTEMD


def build(tools: Tools, inputs: Inputs, target: str) -> None:
    """Build and sign a UKI. Raises ``FdeError`` when a program fails or the signature does not verify afterwards."""
    tools.run(ukify_arguments(inputs, tools.resource(STUB), target))
    tools.run(["sbverify", "--cert", File(inputs.secure_boot_certificate), File(target)])


def ukify_arguments(inputs: Inputs, stub: str, target: str) -> list[Argument]:
    """Return the call of ukify; the inner kernel needs no signature of its own since the stub starts it."""
    return [
        "ukify",
        "build",
        File(inputs.kernel, prefix="--linux="),
        File(inputs.initrd, prefix="--initrd="),
        File(inputs.os_release, prefix="--os-release=@"),
        f"--uname={inputs.kernel_version}",
        f"--cmdline={inputs.command_line}",
        File(stub, prefix="--stub="),
        "--pcr-banks=sha256",
        File(inputs.pcr_public_key, prefix="--pcrpkey="),
        File(inputs.pcr_private_key, prefix="--pcr-private-key="),
        File(inputs.pcr_public_key, prefix="--pcr-public-key="),
        f"--phases={' '.join(SIGNED_PHASE_PATHS)}",
        # What systemd measures beyond the PCRs lies in NV indexes that only a policy signed for the initrd can start.
        "--sign-initrd-pcrs",
        f"--signtool={inputs.sign_tool.value}",
        File(inputs.secure_boot_key, prefix="--secureboot-private-key="),
        File(inputs.secure_boot_certificate, prefix="--secureboot-certificate="),
        "--no-sign-kernel",
        File(target, writable=True, prefix="--output="),
    ]


@dataclass(frozen=True)
class Uki:
    """A parsed UKI with one profile."""

    image: PeImage
    sections: Mapping[str, bytes]
    stub_version: str
    #: Its major version.
    stub: int = MIN_STUB

    @property
    def command_line(self) -> str:
        """The kernel command line as it was given."""
        return self.sections.get(".cmdline", b"").decode("ascii", "replace").rstrip("\0")

    @property
    def pcrs(self) -> dict[str, bytes]:
        """PCR 11 by phase path."""
        return pcr11(self.sections)

    def signed_policies(self) -> frozenset[str]:
        """Return the policy digests (hex) that ``.pcrsig`` signs for SHA-256 PCR 11 with the key in ``.pcrpkey``.

        Those that are signed for a purpose of systemd's own (``ref``) do not count: they release nothing of ours.
        """
        key = PolicyKey.from_pem(self.sections.get(".pcrpkey", b"").rstrip(b"\0"), ".pcrpkey")
        policies = signed_policies(self.sections.get(".pcrsig", b"").rstrip(b"\0 \n"), ".pcrsig")
        return frozenset(policy.digest.hex() for policy in policies if policy.pkfp == key.pkfp)


def parse_uki(content: bytes, subject: str = "UKI", oldest: int = MIN_STUB) -> Uki:
    """Parse a UKI. Raises ``FdeError`` when it is not one, has several profiles or a stub before ``oldest``."""
    image = parse_pe(content, subject)
    names = [section.name for section in image.sections]
    measured = [name for name in names if name in MEASURED_SECTIONS]
    if len(set(measured)) != len(measured) or ".profile" in measured or ".linux" not in measured:
        raise FdeError(subject, "it is not a unified kernel image with one profile", "Build it with ukify")
    sections = {name: image.section(name) for name in (*measured, ".pcrsig") if image.has(name)}
    version, number = _stub_version(image, subject)
    if number < oldest:
        raise FdeError(
            subject, f"its stub is of systemd {version}", f"Use a stub of systemd {oldest} or later (tools_tree)"
        )
    return Uki(image, sections, version, number)


def _stub_version(image: PeImage, subject: str) -> tuple[str, int]:
    found = _STUB_VERSION.search(image.section(".sdmagic")) if image.has(".sdmagic") else None
    if found is None:
        raise FdeError(subject, "it has no systemd-stub", "Build it with ukify")
    return (found.group(1) + found.group(2)).decode("ascii", "replace"), int(found.group(1))


def check(uki: Uki, certificate: bytes) -> None:
    """Check that what was built is what we predict: signed policies, their phases, and the signed Authenticode digest.

    Raises ``FdeError``: then our rules and those of systemd differ, and no manifest may be written.
    """
    expected = frozenset(pcr_policy(PHASE_PCR, uki.pcrs[path]).hex() for path in SIGNED_PHASE_PATHS)
    if uki.signed_policies() != expected:
        raise FdeError(
            ".pcrsig", "the signed PCR 11 policies are not the predicted ones", "Use the tools of systemd 258 or later"
        )
    signatures = uki.image.certificates
    if len(signatures) != 1 or uki.image.authenticode() not in signatures[0] or certificate not in signatures[0]:
        raise FdeError(
            "UKI",
            "its signature is not over the predicted Authenticode digest by the given certificate",
            "Sign it again",
        )


def describe_sections(uki: Uki) -> dict[str, dict[str, object]]:
    """Return size and SHA-256 of each section that is measured."""
    return {
        name: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        for name, data in uki.sections.items()
        if name in MEASURED_SECTIONS
    }


__all__: Sequence[str] = (
    "Inputs",
    "SignTool",
    "Uki",
    "build",
    "check",
    "describe_sections",
    "parse_uki",
    "ukify_arguments",
)
