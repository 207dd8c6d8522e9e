"""How a report's figures show values: what an axis is called, its unit, bars around values, titles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from uniattn_pl.display.figure_style import time_unit
from uniattn_pl.reporting.cells import Cell, Table
from uniattn_pl.reporting.columns import SECONDS
from uniattn_pl.tracking import tags

Errors = list[list[float]] | None  # what a bar shows below and above values


@dataclass(frozen=True)
class Axis:
    """How the values of a column are shown: the axis' name, and what a logged value is multiplied with."""

    name: str
    scale: float


def axis_of(table: Table, heading: str) -> Axis:
    """The heading with its unit; of times ms where all are below a second."""
    cells = table.column(heading)
    unit = next(column.unit for column in table.columns if column.heading == heading)
    name, scale = unit.name, unit.scale
    if unit is SECONDS:
        name, scale = time_unit(cell.mean for cell in cells if cell.mean is not None)
        return Axis(f"{without_unit(heading)} ({name})", scale)
    return Axis(f"{heading} ({name})" if name and "(" not in heading else heading, scale)


def error_bars(cells: Sequence[Cell], scale: float) -> Errors:
    """Below and above each value: the deviation over seeds, else the 95 % interval of a single one, else None."""
    below, above = [], []
    for cell in cells:
        mean, spread = cell.mean or 0.0, cell.spread or 0.0
        low, high = (mean - spread, mean + spread) if spread or cell.interval is None else cell.interval
        below.append(scale * max(0.0, mean - low))
        above.append(scale * max(0.0, high - mean))
    return [below, above] if any(below) or any(above) else None


def figure_title(y: Sequence[str], x: str) -> str:
    """What a figure shows over what, without units."""
    named = ", ".join(without_unit(heading) for heading in y)
    return f"{named[:1].upper()}{named[1:]} over {without_unit(x)}"


def without_unit(heading: str) -> str:
    """A heading without the unit behind it."""
    return heading.partition(" (")[0]


def figure_context(table: Table) -> tuple[str, ...]:
    """The model of the rows and the machines of their runs, where they say so."""
    model = tags.short_name(table.rows[0].loaded.config.model.source) if table.rows else ""
    runs = [member.run for row in table.rows for member in row.members if member.run is not None]
    machines = dict.fromkeys(run.data.tags.get(tags.MACHINE, "") for run in runs)
    bars = "bars: deviation over seeds" if table.has_seeds else ""
    return model, bars, *machines
