# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Secrets on their way to another program.

A secret lives in a ``bytearray``, because only that can be overwritten, and reaches a program as an anonymous memory
file that it inherits: never as an argument, never on a file system.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import Iterator


def random_secret(size: int) -> bytearray:
    """Return ``size`` bytes of the kernel's random generator; the caller wipes them.

    Unlike /dev/urandom, /dev/random waits at an early boot until the generator is seeded (random(4)); unlike
    ``os.getrandom`` it can be read into memory that can be overwritten.
    """
    secret = bytearray(size)
    with open("/dev/random", "rb", buffering=0) as source:
        if source.readinto(secret) != size:
            raise OSError("the kernel's random generator gave too little")
    return secret


def wipe(secret: bytearray) -> None:
    """Overwrite a secret in place."""
    secret[:] = bytes(len(secret))


@contextmanager
def memory_file(secret: bytearray) -> Iterator[int]:
    """Yield the descriptor of an anonymous memory file that holds the secret; it is overwritten afterwards.

    A program that is given the descriptor opens it by ``descriptor_path``.
    """
    descriptor = os.memfd_create("secret", os.MFD_CLOEXEC)
    try:
        # systemd warns about a key file that others may read, and a memory file is born with mode 0777.
        os.fchmod(descriptor, 0o600)
        written = 0
        view = memoryview(secret)
        while written < len(secret):
            written += os.write(descriptor, view[written:])
        yield descriptor
    finally:
        os.pwrite(descriptor, bytes(len(secret)), 0)
        os.close(descriptor)


def descriptor_path(descriptor: int) -> str:
    """Return the name under which a child that inherits a descriptor can open it."""
    return f"/proc/self/fd/{descriptor}"
