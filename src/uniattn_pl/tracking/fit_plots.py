"""Figures of a fit: its loss curve and its milestones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from uniattn_pl.display.figure import new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Points = Sequence[tuple[int, float]]


def loss_curve(stages: Mapping[str, Points], held_out: Points) -> Figure:
    """Training loss of each stage over the optimizer steps of the fit, with the held-out loss as dots."""
    figure = new_figure()
    axes = figure.add_subplot()
    for label, points in stages.items():
        if points:
            axes.plot(*zip(*points, strict=True), label=label, linewidth=1)
    if held_out:
        axes.plot(*zip(*held_out, strict=True), "ko", label="held out", markersize=5)
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("response loss (nats per token)")
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend()
    return figure


def milestones(losses: Mapping[str, float]) -> Figure:
    """Held-out response loss at each milestone, as labelled bars in the order given."""
    figure = new_figure()
    axes = figure.add_subplot()
    bars = axes.barh(list(losses), list(losses.values()), color="#4c72b0")
    axes.bar_label(bars, fmt="%.3f", padding=3)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_xlabel("held-out response loss (nats per token)")
    return figure
