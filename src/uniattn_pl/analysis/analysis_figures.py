"""The figures of `analyze`, sized to be read in a README."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from uniattn_pl.analysis.selection import SelectionTrace
from uniattn_pl.analysis.similarity_variants import MapSimilarity
from uniattn_pl.calibration import CalibrationReport
from uniattn_pl.display.figure import new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def by_layer(
    values: Mapping[str, Sequence[float]], ylabel: str, *, first_layer: int = 0, logarithmic: bool = False
) -> Figure:
    """One line per name over the layers, which start at `first_layer`."""
    figure = new_figure()
    axes = figure.add_subplot()
    for name, series in values.items():
        axes.plot(range(first_layer, first_layer + len(series)), series, marker="o", markersize=3, label=name)
    axes.set_xlabel("layer (0-based)")
    axes.set_ylabel(ylabel)
    if logarithmic:
        axes.set_yscale("log")
    axes.grid(alpha=0.3)
    if len(values) > 1:
        axes.legend(fontsize=8)
    return figure


def similarity_matrix(similarity: MapSimilarity) -> Figure:
    """Head-averaged similarity of every layer with every layer (paper Figure 2)."""
    figure = new_figure()
    axes = figure.add_subplot()
    image = axes.imshow(similarity.matrix, origin="lower", cmap="viridis", vmin=0, vmax=1)
    axes.set_xlabel("layer (0-based)")
    axes.set_ylabel("layer (0-based)")
    figure.colorbar(image, ax=axes, label="mean cosine of attention maps, heads averaged")
    return figure


def head_matches(similarity: MapSimilarity) -> Figure:
    """For each head the head of the layer below that is most like it; its own index is shaded: no need to align."""
    figure = new_figure()
    axes = figure.add_subplot()
    heads = len(similarity.head_matches[0])
    same = np.arange(heads)[:, None] == np.array(similarity.head_matches).T
    axes.imshow(same, aspect="auto", cmap="Greys", vmin=0, vmax=2, origin="lower")
    for column, row in enumerate(similarity.head_matches):
        for head, match in enumerate(row):
            axes.text(column, head, str(match), ha="center", va="center", fontsize=6)
    ticks = range(0, len(similarity.head_matches), max(1, len(similarity.head_matches) // 10))
    axes.set_xticks(ticks, [str(tick + 1) for tick in ticks])
    axes.set_xlabel("layer (0-based)")
    axes.set_ylabel("head (number: most similar head of the layer below)")
    return figure


def selection_losses(traces: Mapping[str, SelectionTrace]) -> Figure:
    """Loss against the number of reuse layers, one line per way of choosing them; the unmodified model's is dashed."""
    figure = new_figure()
    axes = figure.add_subplot()
    for name, trace in traces.items():
        axes.plot(range(len(trace.losses)), trace.losses, marker="o", markersize=3, label=name)
        axes.axhline(trace.losses[0], color="grey", linestyle="--", linewidth=1, zorder=0)
    axes.set_xlabel("reuse layers")
    axes.set_ylabel("response loss without W_c (nats per token)")
    axes.grid(alpha=0.3)
    axes.legend(title="selection", fontsize=8)
    return figure


def compensation_errors(report: CalibrationReport) -> Figure:
    """Per-token error of each compensated layer on held-out rows, before and after its W_c."""
    figure = new_figure()
    axes = figure.add_subplot()
    layers = [row.layer for row in report.rows]
    axes.bar([layer - 0.2 for layer in layers], [r.before / r.scale for r in report.rows], 0.4, label="without W_c")
    axes.bar([layer + 0.2 for layer in layers], [r.after / r.scale for r in report.rows], 0.4, label="with W_c")
    axes.set_xlabel("layer (0-based)")
    axes.set_ylabel("error / norm of the original stream (held out)")
    axes.legend()
    axes.grid(alpha=0.3, axis="y")
    return figure
