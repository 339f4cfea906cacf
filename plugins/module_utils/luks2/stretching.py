# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The bounds of key derivation: enough against guessing, and never so much that it stops a machine."""

from __future__ import annotations

#: PBKDF2 rounds: about ten seconds at the most. A bound keyslot has a random key, which needs no stretching.
MAXIMUM = 20_000_000
BOUND_MINIMUM = 1_000
PASSPHRASE_MINIMUM = 100_000
#: Argon2id: KiB of memory, rounds, threads.
ARGON2 = {"memory": range(32 << 10, (1 << 20) + 1), "time": range(4, 1025), "cpus": range(1, 5)}
#: The most KiB times rounds, which is what takes the time: 32 rounds over a GiB, some seconds.
ARGON2_MOST = 32 << 20
