"""How much memory a teacher takes beside the model that learns from it."""

from __future__ import annotations

from uniattn_pl.plan.costs import compensation_weights, parameters
from uniattn_pl.plan.layer_plan import LayerPlan
from uniattn_pl.plan.roles import OUTPUT
from uniattn_pl.plan.shape import ModelShape

# Per logit while a piece of the loss is computed: the teacher's in float32, their logarithm, and what is compared.
COMPARED_BYTES = 12


def teacher_bytes(
    plan: LayerPlan,
    shape: ModelShape,
    *,
    whole: bool,
    refitted: bool,
    weight_bytes: int,
    frozen_bytes: int | None = None,
    num_devices: int = 1,
) -> int:
    """Bytes per device of an unmodified model's weights, less those that the student holds, frozen, for both.

    Args:
        plan: of the student.
        whole: the student trains everything, so that nothing is in common; nor is it where weights are sharded.
        refitted: calibration has changed the W_o of compensated layers.
        weight_bytes: bytes of a weight.
        frozen_bytes: of the matrices, if fewer.
    """
    unmodified = LayerPlan.unmodified(shape.num_layers)
    matrix_bytes = frozen_bytes or weight_bytes
    if whole or num_devices > 1:
        rest = shape.embedding if frozen_bytes is not None else 0
        total = parameters(unmodified, shape)
        return ((total - rest) * matrix_bytes + rest * weight_bytes) // num_devices
    common = parameters(plan, shape) - sum(compensation_weights(row, shape) for row in plan.rows)
    for row, layer in zip(plan.rows, shape.layers, strict=True):
        if refitted and row.compensated and OUTPUT in row.traits.projections:
            common -= layer.output
    return (parameters(unmodified, shape) - common) * matrix_bytes


def compared_bytes(shape: ModelShape, tokens: int) -> int:
    """Bytes of a piece's logits that a loss by labels alone does not have."""
    return tokens * shape.vocab_size * COMPARED_BYTES
