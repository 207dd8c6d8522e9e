"""Rows of a report as curves over a setting or over a variant's amount."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from uniattn_pl.display.figure_style import (
    GREY,
    PALETTE,
    SERIES,
    new_axes,
    new_figure,
    set_legend,
    set_title,
    whole_ticks,
)
from uniattn_pl.display.figure_words import words
from uniattn_pl.reporting.cells import Cell, Table
from uniattn_pl.reporting.shown_values import axis_of, error_bars, figure_context, figure_title, without_unit

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STYLES = ("o-", "s--", "^:", "D-.")
MOST_TICKS = 12
WIDE_RANGE = 20.0  # between the largest and the smallest x: only a logarithmic axis shows all of them


@dataclass(frozen=True)
class Curve:
    """Rows that are joined by a line: x and the index of each row."""

    name: str
    points: list[tuple[Any, int]]


def draw_curves(table: Table, curves: Sequence[Curve], x_label: str, y: Sequence[str]) -> Figure:
    """Curves; columns of another unit than the first one's are on an axis of their own."""
    figure = new_figure()
    left_axes = new_axes(figure)
    columns = {column.heading: column for column in table.columns}
    on_right = [heading for heading in y if columns[heading].unit is not columns[y[0]].unit]
    right_axes = left_axes.twinx() if on_right else left_axes
    colors, shown = _curve_colors(table, curves), {heading: axis_of(table, heading) for heading in y}
    handles = []
    for number, heading in enumerate(y):
        for position, curve in enumerate(curves):
            color = SERIES[number % len(SERIES)] if len(curves) == 1 else colors[position]
            axes, style = (right_axes if heading in on_right else left_axes), STYLES[number % len(STYLES)]
            parts = (
                without_unit(heading) if len(y) > 1 or len(curves) == 1 else "",
                words(curve.name) if len(curves) > 1 else "",
            )
            label = ", ".join(part for part in parts if part)
            handles.append(_curve(axes, curve, table.column(heading), shown[heading].scale, color, style, label))
    _label_y(left_axes, [shown[heading].name for heading in y if heading not in on_right])
    if on_right:
        _label_y(right_axes, [shown[heading].name for heading in on_right])
        right_axes.spines["top"].set_visible(False)
        if len(curves) == 1 and len(y) == 2:  # then the colour says which axis is whose
            for axes, color in ((left_axes, SERIES[0]), (right_axes, SERIES[1])):
                axes.yaxis.label.set_color(color)
                axes.tick_params(axis="y", colors=color)
    left_axes.set_xlabel(x_label)
    _ticks(left_axes, [value for curve in curves for value, _ in curve.points])
    set_title(left_axes, figure_title(y, x_label), *figure_context(table))
    drawn = [handle for handle in handles if handle is not None]
    if not drawn:
        left_axes.text(0.5, 0.5, "no values yet", transform=left_axes.transAxes, ha="center", color=GREY)
    set_legend(figure, left_axes, drawn)
    return figure


def _curve_colors(table: Table, curves: Sequence[Curve]) -> list[str]:
    """A colour for each curve: that of its mechanism, where no two curves have the same."""
    mechanisms = [{table.rows[index].mechanism for _, index in curve.points} for curve in curves]
    single = [next(iter(found)) for found in mechanisms if len(found) == 1]
    if len(set(single)) == len(curves):
        return [PALETTE[mechanism] for mechanism in single]
    return [SERIES[position % len(SERIES)] for position in range(len(curves))]


def _curve(axes: Axes, curve: Curve, cells: Sequence[Cell], scale: float, color: str, style: str, label: str) -> Any:
    """Draw the points of a curve that have a value; returns its handle for the legend, None when there is nothing."""
    present = [(x, cells[index]) for x, index in curve.points if cells[index].mean is not None]
    if not present:
        return None
    return axes.errorbar(
        [x for x, _ in present],
        [scale * (cell.mean or 0.0) for _, cell in present],
        yerr=error_bars([cell for _, cell in present], scale),
        fmt=style,
        color=color,
        markersize=5,
        linewidth=1.6,
        capsize=3,
        label=label,
    )


def _label_y(axes: Axes, names: Sequence[str]) -> None:
    axes.set_ylabel(", ".join(names))
    axes.margins(y=0.12)


def _ticks(axes: Axes, values: Sequence[float]) -> None:
    """Ticks at the values themselves, where they are few."""
    from matplotlib.ticker import NullLocator

    different = sorted(set(values))
    if different and different[0] > 0 and different[-1] / different[0] > WIDE_RANGE:
        axes.set_xscale("log")
        axes.xaxis.set_minor_locator(NullLocator())
    if different and len(different) <= MOST_TICKS:
        axes.set_xticks(different, [f"{value:g}" for value in different])
    elif all(isinstance(value, int) for value in different):
        whole_ticks(axes)
