# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The PCRs of a machine that boots one kernel image, as manifests and reference sets list them."""

from __future__ import annotations

from typing import Any, Mapping, Optional

from .kernel_inputs import pcr9
from .pcr import measures_inner_kernel, pcr4, pcr7, pcr11, with_os_separator, zero
from .pe import parse_pe
from .secure_boot import Variable, authority
from .uki import Uki

#: The banks of the machines that there are; SHA-384 is the one that AWS vouches for.
BANKS = ("sha256", "sha384")


def predicted(
    uki: Uki,
    variables: Optional[Mapping[Variable, bytes]],
    certificate: Optional[bytes],
    bank: str,
    secure_boot: bool = True,
) -> dict[str, Any]:
    """Return the legal values of one bank by PCR, and those of 11 by phase path, in hexadecimal.

    7 is left out where the ``variables`` are not known; ``certificate`` (DER) is the entry of db that admits the image.
    9 is its value when the kernel starts. Raises ``FdeError`` when db does not hold the certificate.
    """
    images = [uki.image.authenticode(bank)]
    if measures_inner_kernel(uki.stub, secure_boot):
        images.append(parse_pe(uki.sections[".linux"], ".linux").authenticode(bank))
    found: dict[str, Any] = {"4": _values(pcr4(images, bank), bank)}
    if variables is not None:
        entry = authority(variables, certificate) if secure_boot and certificate is not None else None
        found["7"] = _values(pcr7(variables, entry, bank, secure_boot), bank)
    found["9"] = _values(pcr9(uki.sections, bank), bank)
    found["11"] = {path: value.hex() for path, value in pcr11(uki.sections, bank).items()}
    return {**found, **{untouched: _values(zero(bank), bank) for untouched in ("12", "13", "14")}}


def _values(pcr: bytes, bank: str) -> list[str]:
    return [value.hex() for value in with_os_separator(pcr, bank)]
