"""How much memory a teacher takes beside the model that learns from it."""

from __future__ import annotations

from collections.abc import Collection

from uniattn_pl.plan.costs import compensation_weights, map_weights, parameters
from uniattn_pl.plan.layer_plan import LayerPlan
from uniattn_pl.plan.roles import MAP, OUTPUT
from uniattn_pl.plan.shape import ModelShape

# Per logit while a piece of the loss is computed: the teacher's in float32, their logarithm, and what is compared.
COMPARED_BYTES = 12
# Maps of a block of queries in float32 while its gradient is taken: of each reader, and so many of the source.
SOURCE_MAPS = 5
MAP_BYTES = 4


def teacher_bytes(
    plan: LayerPlan,
    shape: ModelShape,
    *,
    whole: bool,
    refitted: bool,
    weight_bytes: int,
    frozen_bytes: int | None = None,
    num_devices: int = 1,
    trained_sources: Collection[int] = (),
) -> int:
    """Bytes per device of an unmodified model's weights, less those that the student holds, frozen, for both.

    Args:
        plan: of the student.
        whole: the student trains everything, so that nothing is in common; nor is it where weights are sharded.
        refitted: calibration has changed the W_o of compensated layers.
        weight_bytes: bytes of a weight.
        frozen_bytes: of the matrices, if fewer.
        trained_sources: layers whose queries and keys stage 1 trains.
    """
    unmodified = LayerPlan.stock(shape)
    matrix_bytes = frozen_bytes or weight_bytes
    if whole or num_devices > 1:
        rest = shape.embedding if frozen_bytes is not None else 0
        total = parameters(unmodified, shape)
        return ((total - rest) * matrix_bytes + rest * weight_bytes) // num_devices
    common = parameters(plan, shape) - sum(compensation_weights(row, shape) for row in plan.rows)
    for row, layer in zip(plan.rows, shape.layers, strict=True):
        if refitted and row.compensated and OUTPUT in row.traits.projections:
            common -= layer.output
        if row.index in trained_sources:
            common -= map_weights(row, layer)
    return (parameters(unmodified, shape) - common) * matrix_bytes


def compared_bytes(shape: ModelShape, tokens: int) -> int:
    """Bytes of a piece's logits that a loss by labels alone does not have."""
    return tokens * shape.vocab_size * COMPARED_BYTES


def compared_map_bytes(
    plan: LayerPlan, shape: ModelShape, *, micro_batch_size: int, length: int, rows: int, activation_bytes: int
) -> int:
    """Bytes of what the maps of sources are compared with: queries and keys of their readers, and a block of maps.

    Args:
        micro_batch_size, length: sequences per device, and tokens of one.
        rows: queries whose maps are held at once.
    """
    widths = (shape.layers[index].heads for index in plan.reusing)
    kept = sum(heads.query_width + heads.key_width for heads in widths) * micro_batch_size * length * activation_bytes
    blocks = (
        (SOURCE_MAPS + sum(row.traits.reads == MAP for row in plan.readers(source)))
        * shape.layers[source].heads.queries
        for source in plan.sources(MAP)
    )
    return kept + max(blocks, default=0) * micro_batch_size * min(rows, length) * length * MAP_BYTES
