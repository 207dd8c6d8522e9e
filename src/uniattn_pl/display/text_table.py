"""Tables as aligned text: as wide as the terminal at most, and of any width in a file or a pipe."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from uniattn_pl.display.text_width import output_width

BYTE_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
COUNT_UNITS = ("", " k", " M", " G", " T", " P")
INDENT, GAP = "  ", "  "
NARROWEST = 16  # columns that text is broken into at least


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows of text under a title; every column but the first is right-aligned when it holds numbers."""
    print("\n".join(table_text(title, columns, rows, width=output_width())))


def print_text(text: str, *, indent: str = "") -> None:
    """Print a paragraph, broken at words where the terminal ends; `indent` goes before its second and later lines.

    Not for commands, which are to be copied as they are.
    """
    width = output_width()
    print(text if width is None else textwrap.fill(text, width, subsequent_indent=indent, break_on_hyphens=False))


def table_text(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], *, width: int | None = None
) -> list[str]:
    """The table as lines of aligned text.

    Args:
        width: columns that a line has at most. What is wider is made to fit: long text goes over several lines, and
            where that is not enough the table is printed in parts below each other, each with the first column.
    """
    if width is None or not columns:
        return [title, *_aligned(columns, rows, [_natural(i, columns, rows) for i in range(len(columns))])]
    lines = textwrap.wrap(title, width) or [""]
    for number, part in enumerate(_parts(columns, rows, width)):
        cells = [[row[i] for i in part] for row in (columns, *rows)]
        widths = _fitted(cells[0], cells[1:], width)
        lines += [""] * bool(number) + _aligned(cells[0], cells[1:], widths)
    return lines


def _parts(columns: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> list[list[int]]:
    """Which columns stand beside each other: all, or as many as fit, each part behind the first column."""
    least = [_least(i, columns, rows) for i in range(len(columns))]
    parts = [[0]]
    for index in range(1, len(columns)):
        together = [*parts[-1], index]
        if len(parts[-1]) > 1 and _total([least[i] for i in together]) > width:
            parts.append([0, index])
        else:
            parts[-1] = together
    return parts


def _fitted(columns: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> list[int]:
    """Widths that add up to the line's: the widest text gives way first."""
    widths = [_natural(i, columns, rows) for i in range(len(columns))]
    least = [_least(i, columns, rows) for i in range(len(columns))]
    while _total(widths) > width:
        giving = [i for i in range(len(columns)) if widths[i] > least[i]]
        if not giving:
            break
        widths[max(giving, key=lambda i: widths[i])] -= 1
    while _total(widths) > width and max(widths) > 1:  # one word that is longer than the line
        widths[widths.index(max(widths))] -= 1
    return widths


def _aligned(columns: Sequence[str], rows: Sequence[Sequence[str]], widths: Sequence[int]) -> list[str]:
    numeric = [_is_numeric(i, rows) for i in range(len(columns))]
    lines = []
    for row in (columns, *rows):
        wrapped = [_wrapped(cell, width) for cell, width in zip(row, widths, strict=True)]
        for line in range(max(map(len, wrapped))):
            cells = [cell[line] if line < len(cell) else "" for cell in wrapped]
            sized = zip(cells, widths, numeric, strict=True)
            lines.append((INDENT + GAP.join(c.rjust(w) if n else c.ljust(w) for c, w, n in sized)).rstrip())
    return lines


def _wrapped(cell: str, width: int) -> list[str]:
    return [cell] if len(cell) <= width else textwrap.wrap(cell, width, break_on_hyphens=False) or [""]


def _natural(index: int, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> int:
    return max(len(row[index]) for row in (columns, *rows))


def _least(index: int, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> int:
    """How narrow a column may be: numbers stay whole, and so do words and short text."""
    heading = max(map(len, columns[index].split()), default=0)
    cells = [row[index] for row in rows]
    if not _is_numeric(index, rows):
        cells = [part for cell in cells for part in (cell.split() if len(cell) > NARROWEST else [cell])]
        heading = max(heading, min(NARROWEST, max((len(row[index]) for row in rows), default=0)))
    return max([heading, *map(len, cells)])


def _is_numeric(index: int, rows: Sequence[Sequence[str]]) -> bool:
    return all(row[index][:1].isdigit() for row in rows)


def _total(widths: Sequence[int]) -> int:
    return len(INDENT) + sum(widths) + len(GAP) * (len(widths) - 1)


def bytes_text(count: float) -> str:
    """Write a number of bytes with a binary unit: 1536 is '1.50 KiB'."""
    return _scaled(count, 1024, BYTE_UNITS, " ")


def count_text(count: float) -> str:
    """Write a large count with a decimal unit: 1.35e8 is '135 M'."""
    return _scaled(count, 1000, COUNT_UNITS, "")


def _scaled(count: float, step: int, units: Sequence[str], gap: str) -> str:
    index = 0
    while count >= step and index < len(units) - 1:
        count, index = count / step, index + 1
    number = f"{count:.0f}" if index == 0 else f"{count:.3g}" if count < 1000 else f"{count:.0f}"
    return f"{number}{gap}{units[index]}"
