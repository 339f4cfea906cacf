# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether a file system is mounted as it is wanted.

The kernel shows what holds for a mount in words of its own: what the caller left out is there, what a file system takes
for granted is not. So the flags that every mount has are compared one by one, and an option with a value where the
kernel shows that option. Any other word takes effect at the next mount.
"""

from __future__ import annotations

from typing import Iterator, Sequence

#: A flag and its opposite, which holds when neither is named.
_FLAGS = (
    ("ro", "rw"),
    ("nosuid", "suid"),
    ("nodev", "dev"),
    ("noexec", "exec"),
    ("sync", "async"),
    ("nosymfollow", "symfollow"),
    ("nodiratime", "diratime"),
)
_ACCESS_TIMES = ("relatime", "noatime", "strictatime")


def flags(options: Sequence[str]) -> tuple[str, ...]:
    """Return the flags that options stand for, every one of them named; the last word counts, as for mount(8)."""
    found = []
    for flag, opposite in _FLAGS:
        named = [one for one in options if one in (flag, opposite)]
        found.append(named[-1] if named else opposite)
    times = ["relatime" if one == "atime" else one for one in options if one in (*_ACCESS_TIMES, "atime")]
    return (*found, times[-1] if times else _ACCESS_TIMES[0])


def differing(shown: Sequence[str], wanted: Sequence[str]) -> tuple[str, ...]:
    """Return what a mount whose options are ``shown`` by the kernel lacks of the wanted ones."""
    return (*_lacking_flags(shown, wanted), *_other_values(shown, wanted))


def _lacking_flags(shown: Sequence[str], wanted: Sequence[str]) -> Iterator[str]:
    # The kernel does not show strict access times, which are the absence of both other words.
    kept = shown if set(shown) & {"relatime", "noatime"} else (*shown, "strictatime")
    for now, then in zip(flags(kept), flags(wanted)):
        if now != then:
            yield then


def _other_values(shown: Sequence[str], wanted: Sequence[str]) -> Iterator[str]:
    values = dict(one.split("=", 1) for one in shown if "=" in one)
    for option in wanted:
        name, _equals, value = option.partition("=")
        # "zstd" is shown as "zstd:3".
        if name in values and value and values[name] != value and not values[name].startswith(value + ":"):
            yield option


def remounting(options: Sequence[str]) -> tuple[str, ...]:
    """Return the options of a remount: what nobody names would stay as it is, so every flag is named."""
    rest = [one for one in options if not one.startswith("x-") and one not in ("defaults", "nofail", "auto", "noauto")]
    known = {word for pair in _FLAGS for word in pair} | {*_ACCESS_TIMES, "atime"}
    return ("remount", *flags(options), *(one for one in rest if one not in known))
