"""What training the lengths of rows (DoRA) takes beside low-rank updates, as peft computes it."""

from __future__ import annotations

from uniattn_pl.plan.costs import projection_sizes
from uniattn_pl.plan.layer_plan import LayerPlan
from uniattn_pl.plan.shape import ModelShape


def row_lengths(plan: LayerPlan, shape: ModelShape) -> int:
    """How many there are: one for each output of the attention projections that layers keep."""
    return sum(outputs for layer in _adapted(plan, shape) for _, outputs in layer)


def saved_elements(plan: LayerPlan, shape: ModelShape, tokens: int, *, checkpointing: bool) -> int:
    """Numbers that are kept for the backward pass of all layers, or with checkpointing of the one that has most.

    Of each projection: its output and that of the update for every token, and the identity [inputs, inputs] by which
    peft makes the update one matrix.
    """
    layers = [sum(2 * outputs * tokens + inputs**2 for inputs, outputs in layer) for layer in _adapted(plan, shape)]
    return max(layers, default=0) if checkpointing else sum(layers)


def _adapted(plan: LayerPlan, shape: ModelShape) -> list[list[tuple[int, int]]]:
    """Inputs and outputs of the attention projections of each layer."""
    found = []
    for row, layer in zip(plan.rows, shape.layers, strict=True):
        sizes = projection_sizes(row.sized(layer), shape)
        found.append([sizes[projection] for projection in row.traits.projections])
    return found
