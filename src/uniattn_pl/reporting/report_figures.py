"""Figures of a report: curves over a setting or over a variant's amount, and rows as dots over another column."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from uniattn_pl.display.figure_words import key_words, words
from uniattn_pl.reporting.cells import Table
from uniattn_pl.reporting.columns import COST, Column
from uniattn_pl.reporting.report_curves import Curve, draw_curves
from uniattn_pl.reporting.report_dots import Spot, draw_dots
from uniattn_pl.reporting.report_rows import DROP, H2O
from uniattn_pl.reporting.shown_values import axis_of, error_bars

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# x of a figure that is no column and no config key -> label of the axis, and what an unvaried model has there
VARIANT_AXES = {DROP: ("dropped attention layers", 0.0), H2O: ("prompt's cache kept by H2O (%)", 100.0)}


def draw_figures(table: Table, x: str, y: Sequence[str]) -> Figure:
    """One figure: a line per column of `y` (and per group of rows), or dots where no line would mean anything."""
    columns = {column.heading: column for column in table.columns}
    if x in columns:
        return _over_column(table, columns[x], y)
    if x in VARIANT_AXES:
        return draw_curves(table, _variant_curves(table, x), VARIANT_AXES[x][0], y)
    points = _points(table, x)
    curves = _setting_curves(table, x, points)
    if all(_is_number(value) for value, _ in points) and (len(curves) == 1 or any(len(c.points) > 1 for c in curves)):
        return draw_curves(table, curves, key_words(x), y)
    return _over_names(table, points, x, y)


def _variant_curves(table: Table, kind: str) -> list[Curve]:
    """One curve for each row that has variants of this kind: the row itself, then its variants."""
    scale, start = (100.0 if kind == H2O else 1.0), VARIANT_AXES[kind][1]
    points_of: dict[str, list[tuple[float, int]]] = {}
    for index, row in enumerate(table.rows):
        if row.variant is None:
            points_of[row.name] = [(start, index)]
        elif row.variant.kind == kind:
            points_of[row.base].append((scale * row.variant.amount, index))
    return [Curve(name, sorted(points)) for name, points in points_of.items() if len(points) > 1]


def _points(table: Table, key: str) -> list[tuple[Any, int]]:
    """The value of a config key, and the index of the row, where it has that key."""
    values = [(row.loaded.flatten().get(key), index) for index, row in enumerate(table.rows) if row.variant is None]
    return [(value, index) for value, index in values if value is not None]


def _setting_curves(table: Table, key: str, points: Sequence[tuple[Any, int]]) -> list[Curve]:
    """One curve, or one per combination of the other settings where several rows have the same x."""
    if len({str(value) for value, _ in points}) == len(points):
        return [Curve("", sorted(points, key=_order))]
    groups: dict[tuple[str, ...], list[tuple[Any, int]]] = {}
    for value, index in points:
        others = tuple(word for word in table.rows[index].settings if word.partition("=")[0] != key)
        groups.setdefault(others, []).append((value, index))
    common = set.intersection(*map(set, groups))
    return [
        Curve(_name([word for word in others if word not in common]), sorted(members, key=_order))
        for others, members in groups.items()
    ]


def _order(point: tuple[Any, int]) -> tuple[float, int]:
    return (point[0] if _is_number(point[0]) else 0.0), point[1]


def _name(settings: Sequence[str]) -> str:
    return ", ".join(word.partition("=")[0].rpartition(".")[2] + "=" + word.partition("=")[2] for word in settings)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _over_column(table: Table, x: Column, y: Sequence[str]) -> Figure:
    """A panel per column of `y`, each row a dot over its value in another column."""
    across, axis = table.column(x.heading), axis_of(table, x.heading)
    panels = [
        [
            Spot(row, axis.scale * cell.mean, error_bars([cell], axis.scale), value)
            for row, cell, value in zip(table.rows, across, table.column(heading), strict=True)
            if cell.mean is not None and value.mean is not None
        ]
        for heading in y
    ]
    is_cost = x.unit.better < 0 and all(column.metric.startswith(COST) for column in x.measured)
    return draw_dots(table, panels, axis.name, y, fronts=is_cost)


def _over_names(table: Table, points: Sequence[tuple[Any, int]], key: str, y: Sequence[str]) -> Figure:
    """The same over a config key whose values are words, or are common to rows that differ in everything else."""
    numeric = all(_is_number(value) for value, _ in points)
    names = list(dict.fromkeys(str(value) for value, _ in points))
    panels = [
        [
            Spot(table.rows[index], float(value) if numeric else names.index(str(value)), None, cells[index])
            for value, index in points
            if cells[index].mean is not None
        ]
        for cells in map(table.column, y)
    ]
    return draw_dots(table, panels, key_words(key), y, [] if numeric else [words(name) for name in names])
