"""Figures of a fit: its loss curve and its milestones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from uniattn_pl.display.figure_style import (
    PALE,
    PALETTE,
    SERIES,
    new_axes,
    new_figure,
    paler,
    set_legend,
    set_title,
    smoothed,
    whole_ticks,
)
from uniattn_pl.display.figure_words import words
from uniattn_pl.plan.roles import REUSED

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Points = Sequence[tuple[int, float]]
LOSS = "response loss (nats per token)"


def loss_curve(stages: Mapping[str, Points], held_out: Points, *about: str) -> Figure:
    """Training loss of each stage over the steps of the fit, smoothed over the raw one, with the held-out loss as dots.

    Args:
        stages: name -> (step, loss).
        held_out: (step, loss).
        about: what stands below the title: model, rows, machine.
    """
    figure = new_figure()
    axes = new_axes(figure)
    for (name, points), color in zip(stages.items(), SERIES, strict=False):
        if points:
            axes.plot(*zip(*points, strict=True), linewidth=0.8, color=paler(color, 0.6))
            axes.plot(*zip(*smoothed(points), strict=True), linewidth=2, color=color, label=f"{words(name)}, smoothed")
    if held_out:
        axes.plot(*zip(*held_out, strict=True), "ko", label="held out", markersize=5)
    axes.set_xlabel("optimizer step")
    axes.set_ylabel(LOSS)
    set_title(axes, "Loss while it trains", *about)
    whole_ticks(axes)
    set_legend(figure, axes)
    return figure


def milestones(losses: Mapping[str, float], *about: str) -> Figure:
    """Held-out response loss at each milestone, as labelled bars in the order given; the original's is a line.

    Args:
        losses: name -> loss; the first is what the others are compared with.
        about: what stands below the title: model, rows, machine.
    """
    figure = new_figure(7, 3)
    axes = new_axes(figure)
    axes.grid(visible=False, axis="y")
    first = next(iter(losses.values()), 0.0)
    colors = [PALE, *[PALETTE[REUSED]] * (len(losses) - 1)]
    bars = axes.barh(list(losses), list(losses.values()), color=colors[: len(losses)])
    axes.bar_label(bars, fmt="%.3f", padding=3)
    axes.axvline(first, color=PALE, linewidth=1, linestyle="--", zorder=0)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_xlabel(f"held-out {LOSS}")
    set_title(axes, "Held-out loss at each milestone", *about)
    return figure
