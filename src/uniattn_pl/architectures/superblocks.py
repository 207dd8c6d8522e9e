"""Superblocks: runs of consecutive layers whose bottom layer is the source of the others (paper section 3.3)."""

from __future__ import annotations

from collections.abc import Sequence

from uniattn_pl.plan import ModelShape, PlanError

SUPERBLOCKS = 4  # of a plan that does not say how many


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
    layers = shape.attention_layers  # of a hybrid, those without attention are passed over
    if first_layer is not None and first_layer < shape.num_layers and first_layer not in layers:
        raise PlanError(f"first_layer is {first_layer}, which has no attention; {_those(layers)} have one.")
    start = len(layers) - size * count if first_layer is None else sum(layer < first_layer for layer in layers)
    start = start if first_layer is None or first_layer < shape.num_layers else first_layer
    if start < 0 or start + size * count > len(layers):
        where = "aligned to the top" if first_layer is None else f"from first_layer {first_layer}"
        room = len(layers) - max(start if first_layer is not None else 0, 0)
        most = f"num_superblocks={room // size} fit" if room >= size else f"superblock_size={room} fits"
        advice = f"At most {most}." if room > 1 else "Choose a lower first_layer."
        raise PlanError(
            f"{count} Superblocks of {size} layers {where} need {size * count} layers; the model has "
            f"{len(layers)} ({_those(layers)}). {advice}"
        )
    blocks = [layers[first : first + size] for first in range(start, start + size * count, size)]
    return [(block[0], list(block[1:])) for block in blocks]


def _those(layers: Sequence[int]) -> str:
    """Layer indices, as a range where they are one."""
    whole = layers[-1] - layers[0] + 1 == len(layers)
    return f"{layers[0]} to {layers[-1]}" if whole else ", ".join(map(str, layers))
