"""Superblocks: runs of consecutive layers whose bottom layer is the source of the others (paper section 3.3)."""

from __future__ import annotations

from uniattn_pl.plan import ModelShape, PlanError


def superblocks(shape: ModelShape, *, size: int, count: int, first_layer: int | None) -> list[tuple[int, list[int]]]:
    """Return `(source, readers)` per Superblock, bottom first.

    Args:
        size: layers per Superblock.
        count: number of Superblocks.
        first_layer: 0-based bottom layer of the first one; None lets the last one end at the top layer.

    Raises:
        PlanError: they do not fit in the model.
    """
    problems = []
    if size < 2:
        problems.append(f"superblock_size is {size}; a Superblock has at least 2 layers (one source, one reader).")
    if count < 1:
        problems.append(f"num_superblocks is {count}; at least 1 is needed (use architecture.name=baseline for none).")
    if problems:
        raise PlanError(*problems)
    start = shape.num_layers - size * count if first_layer is None else first_layer
    if start < 0 or start + size * count > shape.num_layers:
        where = "aligned to the top" if first_layer is None else f"from first_layer {first_layer}"
        most = (shape.num_layers - max(first_layer or 0, 0)) // size
        raise PlanError(
            f"{count} Superblocks of {size} layers {where} need {size * count} layers; the model has "
            f"{shape.num_layers} (0 to {shape.num_layers - 1}). At most num_superblocks={max(most, 0)} fit."
        )
    return [(first, list(range(first + 1, first + size))) for first in range(start, start + size * count, size)]
