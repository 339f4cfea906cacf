# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Shows what ``volume.py`` measured: as a table in a terminal, and as a picture (SVG) of the same numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

#: Stack, workload, figure.
Results = Mapping[str, Mapping[str, Mapping[str, float]]]
REFERENCE = "raw"
MIB = 1 << 20
GROUPS = ("read", "write", "write, sync")
_LABEL, _CELL, _ROW, _HEAD = 190, 62, 26, 92
#: From nothing of the raw device's throughput to all of it.
_DARK, _LIGHT = (16, 78, 139), (242, 246, 250)


def ratio(results: Results, stack: str, workload: str) -> float:
    """Return the throughput of a stack as a part of the raw device's."""
    raw = results[REFERENCE][workload]["bytes_per_second"]
    return results[stack][workload]["bytes_per_second"] / raw if raw else 0.0


def columns(results: Results) -> list[tuple[str, str, str]]:
    """Return each workload with its group and its short name, grouped: reads, writes, synchronous writes."""
    found = []
    for workload in results[REFERENCE]:
        pattern, size, *rest = workload.split(", ")
        kind, direction = pattern.split()
        short = "seq" if kind == "sequential" else "rand"
        found.append((workload, ", ".join([direction, *rest]), f"{short} {size.replace(' ', '').removesuffix('iB')}"))
    return sorted(found, key=lambda column: GROUPS.index(column[1]))


def table(results: Results) -> str:
    """Return throughput as a percentage of the raw device's, whose own is in MiB/s."""
    shown = columns(results)
    width = max(map(len, results)) + 2
    groups = [group if n == 0 or shown[n - 1][1] != group else "" for n, (_, group, _) in enumerate(shown)]
    lines = [" " * width + _spread(groups), " " * width + "".join(f"{name:>9}" for _, _, name in shown)]
    for stack in results:
        if stack == REFERENCE:
            cells = [f"{results[stack][workload]['bytes_per_second'] / MIB:.0f} MB" for workload, _, _ in shown]
        else:
            cells = [f"{ratio(results, stack, workload):.0%}" for workload, _, _ in shown]
        lines.append(f"{stack:<{width}}" + "".join(f"{cell:>9}" for cell in cells))
    return "\n".join(line.rstrip() for line in lines)


def _spread(groups: Sequence[str]) -> str:
    """Write each group over its first column and on over those after it."""
    line = ""
    for number, group in enumerate(groups):
        if group:
            line = line.ljust(number * 9 + 2) + group
    return line


def picture(results: Results, title: str) -> str:
    """Return an SVG with a row for each stack and a column for each workload; the darker, the nearer to raw."""
    shown = columns(results)
    stacks = [stack for stack in results if stack != REFERENCE]
    width, height = _LABEL + _CELL * len(shown) + 16, _HEAD + _ROW * len(stacks) + 16
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        'font-family="sans-serif" font-size="12">',
        f"<title>{escape(title)}</title>",
        "<!-- SPDX-License-Identifier: GPL-3.0-or-later -->",
        f'<rect width="{width}" height="{height}" fill="white"/>',
        f'<text x="12" y="22" font-size="14" font-weight="bold">{escape(title)}</text>',
        _text(12, _HEAD - 10, "% of the raw device", anchor="start"),
    ]
    for number, (_, group, name) in enumerate(shown):
        x = _LABEL + number * _CELL
        if number == 0 or shown[number - 1][1] != group:
            span = _CELL * sum(other == group for _, other, _ in shown)
            parts.append(f'<line x1="{x + 2}" y1="{_HEAD - 28}" x2="{x + span - 2}" y2="{_HEAD - 28}" stroke="#888"/>')
            parts.append(_text(x + span / 2, _HEAD - 34, group))
        parts.append(_text(x + _CELL / 2, _HEAD - 10, name))
    for row, stack in enumerate(stacks):
        y = _HEAD + row * _ROW
        parts.append(_text(12, y + 17, stack, anchor="start"))
        for number, (workload, _, _) in enumerate(shown):
            part = ratio(results, stack, workload)
            shade = min(max(part, 0.0), 1.0)
            colour = ",".join(str(round(light + (dark - light) * shade)) for dark, light in zip(_DARK, _LIGHT))
            x = _LABEL + number * _CELL
            parts.append(
                f'<rect x="{x + 1}" y="{y + 1}" width="{_CELL - 2}" height="{_ROW - 2}" fill="rgb({colour})"/>'
            )
            parts.append(_text(x + _CELL / 2, y + 17, f"{part:.0%}", colour="white" if shade > 0.5 else "black"))
    return "\n".join([*parts, "</svg>", ""])


def _text(x: float, y: float, words: str, *, anchor: str = "middle", colour: str = "black") -> str:
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" fill="{colour}">{escape(words)}</text>'
