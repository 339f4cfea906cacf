# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How the agent speaks before there is a journal that survives: to the console and to the kernel's log."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Callable

from ..codes import Code
from ..errors import FdeError, Refusal
from ..runner import Runner
from ..tpm.measurements import USERSPACE_LOG
from ..tpm.policy import PHASE_PCR
from .measuring import measure

CONSOLE = "/dev/console"
KERNEL_LOG = "/dev/kmsg"
STATE_DIRECTORY = Path("/run/cvm-fde")
REFUSAL_FILE = "refusal.json"
#: The code of a failure that is not a sign of tampering by itself.
FAILED = Code.FAILED.value


def say(text: str) -> None:
    """Write one line to the kernel's log, from where the console and the journal take it."""
    _write(KERNEL_LOG, f"<5>cvm-fde: {text}\n")


def refuse(
    error: FdeError,
    runner: Runner,
    directory: Path = STATE_DIRECTORY,
    remember: Callable[[str, FdeError], None] = lambda _code, _error: None,
    log: str = USERSPACE_LOG,
) -> None:
    """Say why the boot is refused, on the console and in the kernel's log, have it remembered, and measure it.

    The measurement goes into PCR 11. No policy signed by the image's key covers its value from then on: until the next
    reset the TPM neither releases the volume's key nor lets the anchor be written, whatever runs next. Whether it was
    made, by systemd's ``log``, is said on the console too.
    """
    code = error.code if isinstance(error, Refusal) else FAILED
    announce(error)
    if not (directory / REFUSAL_FILE).exists():
        with contextlib.suppress(OSError):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            content = {"code": code, "subject": error.subject, "cause": error.cause, "remedy": error.remedy}
            (directory / REFUSAL_FILE).write_text(json.dumps(content))
        try:
            remember(code, error)
        except Exception as failure:
            # Whatever keeps it from being remembered, it is measured.
            _write(KERNEL_LOG, f"<3>cvm-fde: the refusal is not remembered: {failure!r}\n")
    try:
        measure(runner, PHASE_PCR, f"cvm-fde:refused:{code}", log)
        _write(CONSOLE, f"\r\ncvm-fde: the refusal is measured into PCR {PHASE_PCR}\r\n")
    except FdeError as failure:
        # The machine is switched off whether or not the TPM still listens.
        _write(CONSOLE, f"\r\ncvm-fde: the refusal is not measured into PCR {PHASE_PCR}\r\n")
        _write(KERNEL_LOG, f"<3>cvm-fde: the refusal could not be measured: {failure}\n")


def announce(error: FdeError) -> None:
    """Write why the boot is refused to the console and to the kernel's log."""
    code = error.code if isinstance(error, Refusal) else FAILED
    line = " ".join(f"cvm-fde: refused [{code}] {error.subject}: {error.cause}. {error.remedy}".split())
    _write(CONSOLE, f"\r\n{line}\r\n")
    _write(KERNEL_LOG, f"<2>{line}\n")


def _write(path: str, text: str) -> None:
    """Write to a device of the kernel; one that is not there (a console without a driver) is no reason to stop."""
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_WRONLY | os.O_NOCTTY | os.O_CLOEXEC)
        try:
            os.write(descriptor, text.encode("utf-8", "replace")[:1000])
        finally:
            os.close(descriptor)
