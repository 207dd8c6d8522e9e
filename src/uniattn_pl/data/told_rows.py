"""What every command that reads an experiment's rows says of them: how many there are, which were left out and why."""

from __future__ import annotations

from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from uniattn_pl.data.data_report import RowsReport

if TYPE_CHECKING:
    from rich.console import Console

_told: WeakKeyDictionary[Console, list[str]] = WeakKeyDictionary()


def tell_rows(report: RowsReport, console: Console) -> None:
    """Print the report of rows that were read; once a console, where several parts of a command read the same."""
    lines = report.lines()
    if _told.get(console) != lines:
        _told[console] = lines
        console.print("\n".join(lines), highlight=False, markup=False, soft_wrap=True)
