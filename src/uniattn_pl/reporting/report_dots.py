"""Rows of a report as labelled dots over another column or a setting."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from uniattn_pl.display.figure_style import GREY, PALETTE, draw_front, new_axes, new_figure, set_legend, set_title
from uniattn_pl.display.figure_words import words
from uniattn_pl.plan.roles import MIXED, UNMODIFIED
from uniattn_pl.reporting.cells import Cell, Table
from uniattn_pl.reporting.label_placement import Dot, place_labels
from uniattn_pl.reporting.report_rows import DROP, H2O, ReportRow
from uniattn_pl.reporting.shown_values import Errors, axis_of, error_bars, figure_context, figure_title

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

VARIANT_MARKERS = {DROP: "s", H2O: "D"}


@dataclass(frozen=True)
class Spot:
    """A row as a dot: its place on the x axis and its value."""

    row: ReportRow
    x: float
    x_error: Errors
    y: Cell


def draw_dots(
    table: Table,
    panels: Sequence[Sequence[Spot]],
    x_label: str,
    y: Sequence[str],
    names: Sequence[str] = (),
    *,
    fronts: bool = False,
) -> Figure:
    """Panels of labelled dots above each other, coloured by mechanism; rows that do not change the model are hollow.

    Args:
        fronts: the x axis is a cost; where a panel shows quality, the rows that none beats in both are joined.
    """
    figure = new_figure(7.5, 4.6 * len(panels))
    columns = {column.heading: column for column in table.columns}
    for position, (heading, spots) in enumerate(zip(y, panels, strict=True)):
        axes, axis, column = new_axes(figure, len(panels), position + 1), axis_of(table, heading), columns[heading]
        if position == 0:
            set_title(axes, figure_title(y, x_label), *figure_context(table))
        handles = [_dot(axes, spot, axis.scale) for spot in spots]
        front: list[tuple[float, float]] = []
        if fronts and column.is_quality:
            at = [(spot.x, axis.scale * (spot.y.mean or 0.0)) for spot in spots]
            front = draw_front(axes, at, more_is_better=column.unit.better > 0)
        if names:
            axes.set_xticks(range(len(names)), names)
        axes.set_xlabel(x_label)
        axes.set_ylabel(axis.name)
        axes.margins(0.15)
        if spots:
            dots = [Dot(s.x, axis.scale * (s.y.mean or 0.0), words(s.row.name)) for s in spots]
            place_labels(axes, dots, front=front)
        else:
            axes.text(0.5, 0.5, "no values yet", transform=axes.transAxes, ha="center", color=GREY)
        if position == len(panels) - 1:
            of_mechanism = {handle.get_label(): handle for handle in handles}
            set_legend(
                figure, axes, [*of_mechanism.values(), *(h for h in axes.lines if "front" in str(h.get_label()))]
            )
    return figure


def _dot(axes: Axes, spot: Spot, scale: float) -> Any:
    """A row's dot with its bars; its label is the mechanism."""
    mechanism, variant = spot.row.mechanism, spot.row.variant
    color = PALETTE.get(mechanism, PALETTE[MIXED])
    return axes.errorbar(
        spot.x,
        scale * (spot.y.mean or 0.0),
        xerr=spot.x_error,
        yerr=error_bars([spot.y], scale),
        fmt="o" if variant is None else VARIANT_MARKERS[variant.kind],
        color=color,
        markerfacecolor="white" if mechanism == UNMODIFIED else color,
        markersize=6,
        capsize=3,
        linewidth=1,
        label=mechanism,
    )
