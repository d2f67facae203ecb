"""Tables of plain text, for reports that a library prints without a terminal's packages."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

_GAP = "  "


def text_table(headings: Sequence[str], rows: Sequence[Sequence[str]], width: int = 160) -> str:
    """Return rows in columns as wide as their widest cell; the last column is wrapped so that lines end by `width`."""
    lines = [headings, *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    before = sum(widths[:-1]) + len(_GAP) * (len(widths) - 1)
    widths[-1] = max(min(widths[-1], width - before), len(headings[-1]), 20)
    rule = _GAP.join("─" * size for size in widths)
    first, *rest = ("\n".join(_lines(cells, widths)) for cells in lines)
    return "\n".join([first, rule, *rest])


def _lines(cells: Sequence[str], widths: Sequence[int]) -> list[str]:
    """Return a row's lines: all but the last cell stand on the first one."""
    *others, last = cells
    wrapped = textwrap.wrap(last, widths[-1]) or [""]
    head = [cell.ljust(size) for cell, size in zip(others, widths, strict=False)]
    blank = [" " * size for size in widths[:-1]]
    return [_GAP.join([*(blank if index else head), line]).rstrip() for index, line in enumerate(wrapped)]
