"""Shared Attention (Liao & Vargas, 2024): one attention map for one span of layers."""

from __future__ import annotations

from dataclasses import dataclass

from uniattn_pl.architectures.registry import Architecture, register
from uniattn_pl.options import option
from uniattn_pl.plan import LayerPlan, ModelShape, PlanError


@register
@dataclass
class SharedAttention(Architecture):
    """Every layer up to `last_layer` uses the map of `first_layer` (arXiv 2407.12866).

    Cost: as UniAttn's, with a single Superblock of any length.
    """

    name = "shared_attention"
    summary = "one span of layers uses one attention map, without compensation"

    first_layer: int = option(0, "0-based layer that computes the map", minimum=0)
    last_layer: int | None = option(None, "0-based last layer that uses it; default: the top layer", minimum=0)
    compensation: bool = option(False, "give every reuse layer a W_c (the original method has none)")

    def compile(self, shape: ModelShape) -> LayerPlan:
        last = shape.num_layers - 1 if self.last_layer is None else self.last_layer
        if last <= self.first_layer:
            raise PlanError(f"last_layer is {last}; it must lie above first_layer, {self.first_layer}.")
        readers = [layer for layer in shape.attention_layers if self.first_layer < layer <= last]
        plan = LayerPlan.stock(shape)
        return plan.reuse(readers, self.first_layer, compensated=self.compensation)
