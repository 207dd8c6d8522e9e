"""Figures of a report: curves over a setting or over a variant's amount, and rows as dots over another column."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from uniattn_pl.display.figure import new_figure
from uniattn_pl.reporting.cells import Cell, Table
from uniattn_pl.reporting.columns import Column
from uniattn_pl.reporting.label_placement import Dot, place_labels
from uniattn_pl.reporting.report_rows import DROP, H2O, ReportRow

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# x of a figure that is no column and no config key -> label of the axis, and what an unvaried model has there
VARIANT_AXES = {DROP: ("dropped attention layers", 0.0), H2O: ("prompt's cache kept by H2O (%)", 100.0)}
COLORS = ("#1f5fa8", "#c8501e", "#2f8f4e", "#7b4ba0", "#8a6d1d", "#4a4a4a")
STYLES = ("o-", "s--", "^:", "D-.")
GREY = "#8a8a8a"
MOST_TICKS = 12
WIDE_RANGE = 20.0  # between the largest and the smallest x: only a logarithmic axis shows all of them
LEGEND_LETTERS = 75  # beside each other above a figure


@dataclass(frozen=True)
class Curve:
    """Rows that are joined by a line: x and the index of each row."""

    name: str
    points: list[tuple[Any, int]]


@dataclass(frozen=True)
class Spot:
    """A row as a dot: its place on the x axis and its value."""

    row: ReportRow
    x: float
    x_error: float | None
    y: Cell


def draw_figures(table: Table, x: str, y: Sequence[str]) -> Figure:
    """One figure: a line per column of `y` (and per group of rows), or dots where no line would mean anything."""
    columns = {column.heading: column for column in table.columns}
    if x in columns:
        return _over_column(table, columns[x], y)
    if x in VARIANT_AXES:
        return _lines(table, _variant_curves(table, x), VARIANT_AXES[x][0], y)
    points = _points(table, x)
    curves = _setting_curves(table, x, points)
    if all(_is_number(value) for value, _ in points) and (len(curves) == 1 or any(len(c.points) > 1 for c in curves)):
        return _lines(table, curves, x, y)
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


def _lines(table: Table, curves: Sequence[Curve], x_label: str, y: Sequence[str]) -> Figure:
    """Curves; columns of another unit than the first one's are on an axis of their own."""
    figure = new_figure()
    left_axes = figure.add_subplot()
    columns = {column.heading: column for column in table.columns}
    on_right = [heading for heading in y if columns[heading].unit is not columns[y[0]].unit]
    right_axes = left_axes.twinx() if on_right else left_axes
    handles = []
    for number, heading in enumerate(y):
        for position, curve in enumerate(curves):
            color = COLORS[(number if len(curves) == 1 else position) % len(COLORS)]
            axes, style = (right_axes if heading in on_right else left_axes), STYLES[number % len(STYLES)]
            parts = (heading if len(y) > 1 or len(curves) == 1 else "", curve.name if len(curves) > 1 else "")
            label = ", ".join(part for part in parts if part)
            handles.append(_curve(axes, curve, table.column(heading), color, style, label))
    _label_y(left_axes, [columns[heading] for heading in y if heading not in on_right])
    if on_right:
        _label_y(right_axes, [columns[heading] for heading in on_right])
        if len(curves) == 1 and len(y) == 2:  # then the colour says which axis is whose
            for axes, color in ((left_axes, COLORS[0]), (right_axes, COLORS[1])):
                axes.yaxis.label.set_color(color)
                axes.tick_params(axis="y", colors=color)
    left_axes.set_xlabel(x_label)
    _ticks(left_axes, [value for curve in curves for value, _ in curve.points])
    left_axes.grid(alpha=0.3)
    _legend(figure, left_axes, [handle for handle in handles if handle is not None])
    return figure


def _curve(axes: Axes, curve: Curve, cells: Sequence[Cell], color: str, style: str, label: str) -> Any:
    """Draw the points of a curve that have a value; returns its handle for the legend, None when there is nothing."""
    present = [(x, cells[index]) for x, index in curve.points if cells[index].mean is not None]
    if not present:
        return None
    scale = cells[0].column.unit.scale
    spreads = [scale * (cell.spread or 0.0) for _, cell in present]
    return axes.errorbar(
        [x for x, _ in present],
        [scale * (cell.mean or 0.0) for _, cell in present],
        yerr=spreads if any(spreads) else None,
        fmt=style,
        color=color,
        markersize=5,
        linewidth=1.6,
        capsize=3,
        label=label,
    )


def _legend(figure: Figure, axes: Axes, handles: Sequence[Any]) -> None:
    """Above the axes, where it hides no curve; in as many columns as there is room for."""
    if not handles:
        axes.text(0.5, 0.5, "no values yet", transform=axes.transAxes, ha="center", color=GREY)
    if len(handles) < 2:
        return
    longest = max(len(handle.get_label()) for handle in handles) + 8  # with the line and a gap
    columns = max(1, min(len(handles), LEGEND_LETTERS // longest))
    axes.legend(
        handles=handles, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=columns, frameon=False, fontsize=9
    )


def _label_y(axes: Axes, columns: Sequence[Column]) -> None:
    axes.set_ylabel(", ".join(_axis_name(column) for column in columns))
    axes.margins(y=0.12)


def _axis_name(column: Column) -> str:
    """The heading with its unit, unless it says one itself."""
    return (
        f"{column.heading} ({column.unit.name})" if column.unit.name and "(" not in column.heading else column.heading
    )


def _ticks(axes: Axes, values: Sequence[float]) -> None:
    """Ticks at the values themselves, where they are few."""
    from matplotlib.ticker import NullLocator

    different = sorted(set(values))
    if different and different[0] > 0 and different[-1] / different[0] > WIDE_RANGE:
        axes.set_xscale("log")
        axes.xaxis.set_minor_locator(NullLocator())
    if different and len(different) <= MOST_TICKS:
        axes.set_xticks(different, [f"{value:g}" for value in different])


def _over_column(table: Table, x: Column, y: Sequence[str]) -> Figure:
    """A panel per column of `y`, each row a dot over its value in another column."""
    across, scale = table.column(x.heading), x.unit.scale
    panels = [
        [
            Spot(row, scale * cell.mean, scale * cell.spread if cell.spread else None, value)
            for row, cell, value in zip(table.rows, across, table.column(heading), strict=True)
            if cell.mean is not None and value.mean is not None
        ]
        for heading in y
    ]
    return _dots(table, panels, _axis_name(x), y)


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
    return _dots(table, panels, key, y, [] if numeric else names)


def _dots(
    table: Table, panels: Sequence[Sequence[Spot]], x_label: str, y: Sequence[str], names: Sequence[str] = ()
) -> Figure:
    """Panels of labelled dots above each other; rows that do not change the model are hollow."""
    figure = new_figure()
    figure.set_size_inches(7.5, 4.6 * len(panels))
    columns = {column.heading: column for column in table.columns}
    for position, (heading, spots) in enumerate(zip(y, panels, strict=True)):
        axes = figure.add_subplot(len(panels), 1, position + 1)
        scale = columns[heading].unit.scale
        for spot in spots:
            color = COLORS[0] if spot.row.modified else GREY
            axes.errorbar(
                spot.x,
                scale * (spot.y.mean or 0.0),
                xerr=spot.x_error,
                yerr=scale * spot.y.spread if spot.y.spread else None,
                fmt="o",
                color=color,
                markerfacecolor=color if spot.row.modified else "white",
                markersize=6,
                capsize=3,
                linewidth=1,
            )
        if names:
            axes.set_xticks(range(len(names)), names)
        axes.set_xlabel(x_label)
        axes.set_ylabel(_axis_name(columns[heading]))
        axes.grid(alpha=0.3)
        axes.margins(0.15)
        if spots:
            place_labels(axes, [Dot(spot.x, scale * (spot.y.mean or 0.0), spot.row.name) for spot in spots])
        else:
            axes.text(0.5, 0.5, "no values yet", transform=axes.transAxes, ha="center", color=GREY)
    return figure
