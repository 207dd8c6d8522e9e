"""The cells of the table: values over seeds, their text, and which are the best of their column."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from uniattn_pl.reporting.columns import COST, Column
from uniattn_pl.reporting.lookup import Lookup, Value
from uniattn_pl.reporting.report_rows import Member, ReportRow

MISSING = "-"
BEST, SECOND = 1, 2


@dataclass(frozen=True)
class Cell:
    """One row's values in one column, one per seed that has it.

    Attributes:
        expected: how many seeds the row has.
        interval: 95 % interval of a single value.
        steps: where benchmarks measured the values, in tokens of the prompt.
    """

    column: Column
    values: tuple[float, ...]
    expected: int
    interval: tuple[float, float] | None = None
    steps: frozenset[int] = frozenset()

    @property
    def mean(self) -> float | None:
        return statistics.fmean(self.values) if self.values else None

    @property
    def spread(self) -> float | None:
        """Sample standard deviation over seeds; None for a single value and for a cost that is the same in all."""
        if len(self.values) < 2:
            return None
        spread = statistics.stdev(self.values)
        is_cost = all(column.metric.startswith(COST) for column in self.column.measured)
        return None if is_cost and spread == 0 else spread

    @property
    def number(self) -> str:
        """The mean as text."""
        return MISSING if self.mean is None else self.column.unit.write(self.mean, self.mean)

    @property
    def rest(self) -> str:
        """What follows the mean: the spread, and the number of seeds where some are missing."""
        if self.mean is None:
            return ""
        spread = "" if self.spread is None else f" ± {self.column.unit.write(self.spread, self.mean)}"
        return spread + (f" (n={len(self.values)})" if spread and len(self.values) < self.expected else "")

    @property
    def text(self) -> str:
        return self.number + self.rest


@dataclass(frozen=True)
class Table:
    """Rows x columns."""

    columns: list[Column]
    rows: list[ReportRow]
    cells: list[list[Cell]]

    def column(self, heading: str) -> list[Cell]:
        """The cells of one column."""
        index = [column.heading for column in self.columns].index(heading)
        return [cells[index] for cells in self.cells]

    @property
    def has_seeds(self) -> bool:
        """Whether a row stands for several runs."""
        return any(len(row.members) > 1 for row in self.rows)

    def marks(self) -> list[list[int]]:
        """BEST or SECOND for the cells that are, else 0: per quality column, among the rows that change the model."""
        marks = [[0] * len(self.columns) for _ in self.rows]
        for index, column in enumerate(self.columns):
            if column.is_quality:
                for row, rank in _ranked([cells[index] for cells in self.cells], self.rows).items():
                    marks[row][index] = rank
        return marks


def fill(rows: list[ReportRow], columns: list[Column], lookup: Lookup) -> Table:
    """Look every cell up."""
    return Table(columns, rows, [[_cell(row, column, lookup) for column in columns] for row in rows])


def _cell(row: ReportRow, column: Column, lookup: Lookup) -> Cell:
    values = [value for member in row.members if (value := _value(row, member, column, lookup)) is not None]
    if len({value.source for value in values}) == 1:
        values = values[:1]  # seeds of one plan have one benchmark: that is one measurement
    interval = None
    if len(values) == 1 and values[0].low is not None and values[0].high is not None:
        interval = (values[0].low, values[0].high)
    steps = frozenset(value.step for value in values if value.step is not None)
    return Cell(column, tuple(value.number for value in values), len(row.members), interval, steps)


def _value(row: ReportRow, member: Member, column: Column, lookup: Lookup) -> Value | None:
    """One seed's value in a column; for a column that is a mean, the mean of its parts, None where one is missing."""
    if not column.parts:
        return lookup.find(row, member, column)
    values = [_value(row, member, part, lookup) for part in column.parts]
    present = [value for value in values if value is not None]
    if len(present) < len(values):
        return None
    sources = " ".join(value.source for value in present)
    return Value(statistics.fmean(value.number for value in present), None, None, sources)


def _ranked(cells: Sequence[Cell], rows: Sequence[ReportRow]) -> dict[int, int]:
    """Row -> rank; values that read the same are equally good, and a single one is compared with nothing."""
    unit = cells[0].column.unit
    comparable = {
        index: cell
        for index, (cell, row) in enumerate(zip(cells, rows, strict=True))
        if row.modified and cell.mean is not None and math.isfinite(cell.mean)
    }
    if len(comparable) < 2:
        return {}
    by_text = {cell.number: cell.mean or 0.0 for cell in comparable.values()}
    order = sorted(by_text, key=lambda text: -unit.better * by_text[text])
    ranks = dict(zip(order, (BEST, SECOND), strict=False))
    return {index: ranks[cell.number] for index, cell in comparable.items() if cell.number in ranks}
