"""Tables for the terminal; plain aligned text when the output goes to a file or a pipe."""

from __future__ import annotations

import sys
from collections.abc import Sequence

BYTE_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
COUNT_UNITS = ("", " k", " M", " G", " T", " P")


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows of text under a title; every column but the first is right-aligned when it holds numbers."""
    if sys.stdout.isatty():
        _print_rich(title, columns, rows, _numeric(columns, rows))
    else:
        print("\n".join(table_text(title, columns, rows)))


def table_text(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The table as lines of aligned text."""
    widths = [max(len(cell) for cell in column) for column in zip(columns, *rows, strict=True)]
    lines = [title]
    for row in (columns, *rows):
        cells = zip(row, widths, _numeric(columns, rows), strict=True)
        lines.append("  " + "  ".join(c.rjust(w) if n else c.ljust(w) for c, w, n in cells).rstrip())
    return lines


def _numeric(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[bool]:
    return [all(row[i][:1].isdigit() for row in rows) for i in range(len(columns))]


def _print_rich(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], numeric: Sequence[bool]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(title), title_justify="left", box=SIMPLE_HEAD)
    for column, right in zip(columns, numeric, strict=True):
        table.add_column(column, justify="right" if right else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(escape, row))
    Console().print(table)


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
