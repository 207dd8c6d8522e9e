"""What is impossible about a plan's rows in their places, whatever the model, in words."""

from __future__ import annotations

from collections.abc import Sequence

from uniattn_pl.plan.layer_row import LayerRow
from uniattn_pl.plan.roles import KEY_VALUE, MAP, Role

# What a reader takes -> (what it does, why a layer that does not give it cannot be its source).
_READING = {
    MAP: ("reuses the map", "computes none"),
    KEY_VALUE: ("shares keys and values", "keeps none of its own"),
}


def row_problems(rows: Sequence[LayerRow], position: int, row: LayerRow) -> list[str]:
    """What is impossible about a row in its place among the others, in words."""
    if row.index != position:
        return [f"row {position} of the plan describes layer {row.index}; rows must be in layer order."]
    return row.problems() or _source_problems(rows, row)


def _source_problems(rows: Sequence[LayerRow], row: LayerRow) -> list[str]:
    """What is impossible about the layer that `row` reads from."""
    where, source = f"layer {row.index}", row.source
    if row.traits.reads is None:
        return []
    if source is None or not 0 <= source < len(rows):
        return [f"{where} reads from layer {source}, which is not in the model."]
    if source >= row.index:
        return [f"{where} reads from layer {source}, which is not below it."]
    below: Role = rows[source].traits
    if row.traits.reads in below.gives:
        return []
    if below.stock and not below.computes:
        return [f"{where} reads from layer {source}, which has no attention in this model."]
    if not below.computes:
        return [f"{where} reads from layer {source}, whose attention is dropped."]
    reads, lacks = _READING.get(row.traits.reads, (f"reads the {row.traits.reads}", "gives none"))
    return [f"{where} {reads} of layer {source}, which {lacks}."]
