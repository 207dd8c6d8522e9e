"""Shared Attention (Liao & Vargas, 2024): one attention map for one span of layers."""

from __future__ import annotations

from dataclasses import dataclass

from uniattn_pl.architectures.registry import Architecture, register
from uniattn_pl.options import option
from uniattn_pl.plan import LayerPlan, ModelShape, PlanError
from uniattn_pl.plan.roles import REUSED


@register
@dataclass
class SharedAttention(Architecture):
    """Every layer up to `last_layer` uses the map of `first_layer` (arXiv 2407.12866).

    Cost: as UniAttn's, with a single Superblock of any length.
    """

    name = "shared_attention"
    summary = "one span of layers uses one attention map, without compensation"
    mechanism = REUSED

    first_layer: int | None = option(
        None, "0-based layer that computes the map; default: the lowest that attends", minimum=0
    )
    last_layer: int | None = option(None, "0-based last layer that uses it; default: the top layer", minimum=0)
    compensation: bool = option(False, "give every reuse layer a W_c (the original method has none)")
    cross_attention: bool = option(
        False, "readers in a decoder beside an encoder (T5, BART) use the cross-attention map of first_layer, too"
    )

    def compile(self, shape: ModelShape) -> LayerPlan:
        first = shape.attention_layers[0] if self.first_layer is None else self.first_layer
        last = shape.num_layers - 1 if self.last_layer is None else self.last_layer
        if last <= first:
            raise PlanError(f"last_layer is {last}; it must lie above first_layer, {first}.")
        readers = [layer for layer in shape.attention_layers if first < layer <= last]
        if not readers:
            raise PlanError(f"no layer above first_layer, {first}, and up to last_layer, {last}, attends.")
        plan = LayerPlan.stock(shape).reuse(readers, first, compensated=self.compensation)
        return plan.reuse_cross_maps() if self.cross_attention else plan
