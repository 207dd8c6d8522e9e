"""Figures of a report: curves over a setting or over a variant's amount, and rows as dots over another column."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from uniattn_pl.reporting.cells import Cell, Table
from uniattn_pl.reporting.columns import Column
from uniattn_pl.reporting.labels import Dot, place_labels
from uniattn_pl.reporting.rows import DROP, H2O, Row
from uniattn_pl.tracking.plots import new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# x of a figure that is no column and no config key -> label of the axis, and what an unvaried model has there
VARIANT_AXES = {DROP: ("dropped attention layers", 0.0), H2O: ("prompt's cache kept by H2O (%)", 100.0)}
COLORS = ("#1f5fa8", "#c8501e", "#2f8f4e", "#7b4ba0", "#8a6d1d", "#4a4a4a")
GREY = "#8a8a8a"
MOST_TICKS = 12
WIDE_RANGE = 20.0  # between the largest and the smallest x: only a logarithmic axis shows all of them


@dataclass(frozen=True)
class Curve:
    """Rows that are joined by a line: x and the index of each row."""

    name: str
    points: list[tuple[Any, int]]


def draw(table: Table, x: str, y: Sequence[str]) -> Figure:
    """One figure: dots when `x` is a column, else a line per column of `y` (and per group of rows)."""
    if x in [column.heading for column in table.columns]:
        return _scatter(table, x, y)
    curves = _variant_curves(table, x) if x in VARIANT_AXES else _setting_curves(table, x)
    return _lines(table, curves, VARIANT_AXES[x][0] if x in VARIANT_AXES else x, y)


def _variant_curves(table: Table, kind: str) -> list[Curve]:
    """Per row that has such variants, itself and them."""
    scale, start = (100.0 if kind == H2O else 1.0), VARIANT_AXES[kind][1]
    points: dict[str, list[tuple[float, int]]] = {}
    for index, row in enumerate(table.rows):
        if row.variant is None:
            points[row.name] = [(start, index)]
        elif row.variant.kind == kind:
            points[row.base].append((scale * row.variant.amount, index))
    return [Curve(name, sorted(found)) for name, found in points.items() if len(found) > 1]


def _setting_curves(table: Table, key: str) -> list[Curve]:
    """Rows over a config key: one curve, or one per combination of the other settings where x alone is ambiguous."""
    points: list[tuple[Any, int]] = []
    for index, row in enumerate(table.rows):
        value = row.loaded.flatten().get(key)
        if row.variant is None and value is not None:
            points.append((value if _is_number(value) else str(value), index))
    values = [value for value, _ in points]
    if len(set(values)) == len(values):
        return [Curve("", _in_order(points))]
    groups: dict[tuple[str, ...], list[tuple[Any, int]]] = {}
    for value, index in points:
        others = tuple(word for word in table.rows[index].settings if word.partition("=")[0] != key)
        groups.setdefault(others, []).append((value, index))
    return [Curve(_name(others), _in_order(found)) for others, found in groups.items()]


def _in_order(points: list[tuple[Any, int]]) -> list[tuple[Any, int]]:
    return sorted(points) if all(_is_number(value) for value, _ in points) else points


def _name(settings: Sequence[str]) -> str:
    return ", ".join(word.partition("=")[0].rpartition(".")[2] + "=" + word.partition("=")[2] for word in settings)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _lines(table: Table, curves: Sequence[Curve], x_label: str, y: Sequence[str]) -> Figure:
    figure = new_figure()
    left = figure.add_subplot()
    columns = {column.heading: column for column in table.columns}
    first = columns[y[0]].unit
    right_columns = [heading for heading in y if columns[heading].unit is not first]
    right = left.twinx() if right_columns else left
    handles = []
    for position, (heading, curve) in enumerate((heading, curve) for heading in y for curve in curves):
        on_right = heading in right_columns
        color = COLORS[position % len(COLORS)]
        label = ", ".join(
            part for part in (heading if len(y) > 1 else "", curve.name if len(curves) > 1 else "") if part
        )
        axes = right if on_right else left
        handles.append(_curve(axes, curve, table.column(heading), color, "s--" if on_right else "o-", label or heading))
    _label_y(left, [columns[heading] for heading in y if heading not in right_columns])
    if right_columns:
        _label_y(right, [columns[heading] for heading in right_columns])
        if len(curves) == 1 and len(y) == 2:  # then the colour says which axis is whose
            for axes, color in ((left, COLORS[0]), (right, COLORS[1])):
                axes.yaxis.label.set_color(color)
                axes.tick_params(axis="y", colors=color)
    left.set_xlabel(x_label)
    _ticks(left, [value for curve in curves for value, _ in curve.points])
    left.grid(alpha=0.3)
    shown = [handle for handle in handles if handle is not None]
    if len(shown) > 1:
        figure.legend(handles=shown, loc="outside upper center", ncols=min(len(shown), 3), frameon=False, fontsize=9)
        figure.subplots_adjust(top=0.98 - 0.06 * -(-len(shown) // 3))
    elif not shown:
        left.text(0.5, 0.5, "no values yet", transform=left.transAxes, ha="center", color=GREY)
    return figure


def _curve(axes: Axes, curve: Curve, cells: Sequence[Cell], color: str, style: str, label: str) -> Any:
    """Draw what there is of a curve; returns its handle for the legend, None when there is nothing."""
    found = [(x, cells[index]) for x, index in curve.points if cells[index].mean is not None]
    if not found:
        return None
    scale = cells[0].column.unit.scale
    means = [scale * (cell.mean or 0.0) for _, cell in found]
    spreads = [scale * (cell.spread or 0.0) for _, cell in found]
    if not all(_is_number(x) for x, _ in found):
        style = style[0]  # names have no order that a line could follow
    return axes.errorbar(
        [x for x, _ in found],
        means,
        yerr=spreads if any(spreads) else None,
        fmt=style,
        color=color,
        markersize=5,
        linewidth=1.6,
        capsize=3,
        label=label,
    )


def _label_y(axes: Axes, columns: Sequence[Column]) -> None:
    axes.set_ylabel(", ".join(_axis_name(column) for column in columns))
    axes.margins(y=0.12)


def _axis_name(column: Column) -> str:
    """The heading with its unit, unless it says one itself."""
    return (
        f"{column.heading} ({column.unit.name})" if column.unit.name and "(" not in column.heading else column.heading
    )


def _ticks(axes: Axes, values: Sequence[Any]) -> None:
    """Ticks at the values themselves, where they are few numbers."""
    from matplotlib.ticker import NullLocator

    if not values or not all(_is_number(value) for value in values):
        return
    different = sorted(set(values))
    if different[0] > 0 and different[-1] / different[0] > WIDE_RANGE:
        axes.set_xscale("log")
        axes.xaxis.set_minor_locator(NullLocator())
    if len(different) <= MOST_TICKS:
        axes.set_xticks(different, [f"{value:g}" for value in different])


def _scatter(table: Table, x: str, y: Sequence[str]) -> Figure:
    """A panel per column of `y`: each row a labelled dot, those that do not change the model hollow."""
    figure = new_figure()
    figure.set_size_inches(7, 4.2 * len(y))
    for position, heading in enumerate(y):
        axes = figure.add_subplot(len(y), 1, position + 1)
        _dots(axes, table.rows, table.column(x), table.column(heading))
    return figure


def _dots(axes: Axes, rows: Sequence[Row], across: Sequence[Cell], up: Sequence[Cell]) -> None:
    x_unit, y_unit = across[0].column.unit, up[0].column.unit
    dots = []
    for row, x, y in zip(rows, across, up, strict=True):
        if x.mean is None or y.mean is None:
            continue
        place = (x_unit.scale * x.mean, y_unit.scale * y.mean)
        color = COLORS[0] if row.modified else GREY
        axes.errorbar(
            *place,
            xerr=x_unit.scale * x.spread if x.spread else None,
            yerr=y_unit.scale * y.spread if y.spread else None,
            fmt="o",
            color=color,
            markerfacecolor=color if row.modified else "white",
            markersize=6,
            capsize=3,
            linewidth=1,
        )
        dots.append(Dot(*place, row.name))
    axes.set_xlabel(_axis_name(across[0].column))
    axes.set_ylabel(_axis_name(up[0].column))
    axes.grid(alpha=0.3)
    axes.margins(0.15)
    if dots:
        place_labels(axes, dots)
    else:
        axes.text(0.5, 0.5, "no values yet", transform=axes.transAxes, ha="center", color=GREY)
