"""The figures of `analyze`, sized to be read in a README."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from uniattn_pl.analysis.selection import SelectionTrace
from uniattn_pl.analysis.similarity_variants import MapSimilarity
from uniattn_pl.calibration import CalibrationReport
from uniattn_pl.display.figure_style import (
    GREY,
    MARKERS,
    PALE,
    PALETTE,
    SERIES,
    label_layers,
    logarithmic,
    mechanism_styles,
    new_axes,
    new_figure,
    set_legend,
    set_title,
    whole_ticks,
)
from uniattn_pl.display.figure_words import words
from uniattn_pl.plan import LayerPlan
from uniattn_pl.plan.roles import MAP, REUSED

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SIMILARITY = "mean cosine of their attention maps"


def similarity_adjacent(similarity: MapSimilarity, *about: str) -> Figure:
    """How alike the map of each layer is to that of the layer below, one line per way of comparing them."""
    figure = new_figure()
    axes = new_axes(figure)
    for number, (name, series) in enumerate(similarity.adjacent.items()):
        _line(axes, series, number, words(name), first_layer=1)
    axes.set_ylabel("cosine with the layer below")
    set_title(axes, "Attention maps of neighbouring layers", *about)
    label_layers(axes)
    set_legend(figure, axes)
    return figure


def importance(values: Sequence[float], *about: str) -> Figure:
    """How much the attention of each layer changes the stream."""
    figure = new_figure()
    axes = new_axes(figure)
    _line(axes, values, 0, "")
    axes.set_ylabel("1 - cosine before and after the attention")
    logarithmic(axes)
    set_title(axes, "What each attention changes", *about)
    label_layers(axes)
    return figure


def depth(factors: Mapping[str, Sequence[float]], mechanisms: Mapping[str, str], *about: str) -> Figure:
    """How much each layer changes its input, one line per model.

    Args:
        factors: name of a model -> the change of every layer.
        mechanisms: name of a model -> what its plan saves by.
    """
    figure = new_figure()
    axes = new_axes(figure)
    styles = mechanism_styles(mechanisms)
    for name, series in factors.items():
        axes.plot(range(len(series)), series, markersize=4, label=words(name), **styles[name])
    axes.set_ylabel("change / norm of the layer's input")
    logarithmic(axes)
    set_title(axes, "How much each layer changes its input", *about)
    label_layers(axes)
    set_legend(figure, axes)
    return figure


def similarity_matrix(similarity: MapSimilarity, plan: LayerPlan | None, *about: str) -> Figure:
    """Head-averaged similarity of every layer with every layer (paper Figure 2), the plan's Superblocks outlined."""
    from matplotlib.patches import Rectangle
    from matplotlib.patheffects import withStroke

    figure = new_figure(7, 5.2)
    axes = new_axes(figure)
    axes.grid(visible=False)
    image = axes.imshow(similarity.matrix, origin="lower", cmap="viridis", vmin=0, vmax=1)
    blocks = superblock_spans(plan)
    for first, last in blocks:
        width = last - first + 1
        outline = Rectangle((first - 0.5, first - 0.5), width, width, fill=False, color=PALETTE[REUSED], linewidth=2)
        outline.set_path_effects([withStroke(linewidth=4.5, foreground="white")])
        axes.add_patch(outline)
    set_title(axes, "Which layers attend alike", *about)
    if blocks:
        figure.text(0.5, -0.02, "outlined: Superblocks, whose layers use one attention map", ha="center", fontsize=9)
    label_layers(axes, y=True)
    figure.colorbar(image, ax=axes, label=f"{SIMILARITY}, heads averaged")
    return figure


def superblock_spans(plan: LayerPlan | None) -> list[tuple[int, int]]:
    """First and last layer of every group of layers that use one map; none where the layers are not known yet."""
    spans: dict[int, tuple[int, int]] = {}
    for row in () if plan is None else plan.rows:
        if row.traits.reads == MAP and row.source is not None:
            spans[row.source] = (row.source, row.index)
    return sorted(spans.values())


def head_matches(similarity: MapSimilarity, *about: str) -> Figure:
    """For each head the head of the layer below that is most like it; its own index is shaded: no need to align."""
    figure = new_figure()
    axes = new_axes(figure)
    axes.grid(visible=False)
    heads = len(similarity.head_matches[0])
    same = np.arange(heads)[:, None] == np.array(similarity.head_matches).T
    first, last = 1, len(similarity.head_matches)
    across = (first - 0.5, last + 0.5, -0.5, heads - 0.5)
    axes.imshow(same, aspect="auto", cmap="Greys", vmin=0, vmax=2, origin="lower", extent=across)
    for column, row in enumerate(similarity.head_matches):
        for head, match in enumerate(row):
            axes.text(first + column, head, str(match), ha="center", va="center", fontsize=6)
    set_title(axes, "Most similar head of the layer below (shaded: of the same number)", *about)
    label_layers(axes)
    whole_ticks(axes, y=True)
    axes.set_ylabel("head (the first is 0)")
    return figure


def selection_losses(traces: Mapping[str, SelectionTrace], *about: str) -> Figure:
    """Loss against the number of reuse layers, one line per way of choosing them; the unmodified model's is dashed."""
    figure = new_figure()
    axes = new_axes(figure)
    for number, (name, trace) in enumerate(traces.items()):
        _line(axes, trace.losses, number, words(name))
        axes.axhline(trace.losses[0], color=GREY, linestyle="--", linewidth=1, zorder=0)
    axes.set_ylabel("response loss without $W_c$ (nats per token)")
    set_title(axes, "What unification costs, by how layers are chosen", *about)
    whole_ticks(axes)
    axes.set_xlabel("reuse layers")
    set_legend(figure, axes)
    return figure


def compensation_errors(report: CalibrationReport, *about: str) -> Figure:
    """Per-token error of each compensated layer on held-out rows, before and after its W_c."""
    figure = new_figure()
    axes = new_axes(figure)
    layers = [row.layer for row in report.rows]
    before = [row.before / row.scale for row in report.rows]
    after = [row.after / row.scale for row in report.rows]
    axes.bar([layer - 0.2 for layer in layers], before, 0.4, label="without $W_c$", color=PALE)
    axes.bar([layer + 0.2 for layer in layers], after, 0.4, label="with $W_c$", color=PALETTE[REUSED])
    axes.set_ylabel("error / norm of the original stream")
    axes.grid(visible=False, axis="x")
    set_title(axes, "The error that compensation repairs, on held-out rows", *about)
    axes.set_xticks(layers)
    axes.set_xlabel("compensated layer (the first is 0)")
    set_legend(figure, axes)
    return figure


def _line(axes: Axes, series: Sequence[float], number: int, label: str, *, first_layer: int = 0) -> None:
    """One line over whole numbers, which start at `first_layer`."""
    places = range(first_layer, first_layer + len(series))
    color, marker = SERIES[number % len(SERIES)], MARKERS[number % len(MARKERS)]
    axes.plot(places, series, color=color, marker=marker, markersize=4, label=label)
