"""LLMDrop (He et al., 2024, "Not all attention is needed"): remove whole attention sublayers."""

from __future__ import annotations

from dataclasses import dataclass

from uniattn_pl.architectures.registry import Architecture, register
from uniattn_pl.config.schema import option
from uniattn_pl.plan import LayerPlan, ModelShape, PlanError


@register
@dataclass
class LLMDrop(Architecture):
    """Drop the attention of the given layers (settings in Table 6, there counted from 1).

    Cost: dropped layers compute and cache nothing; with compensation their attention becomes `norm(x) W_c`.
    """

    name = "llmdrop"
    summary = "drops the attention of the given layers"

    layers: list[int] = option([], "0-based indices of the layers whose attention is dropped")
    compensation: bool = option(False, "give every dropped layer a W_c (the paper has none)")

    def compile(self, shape: ModelShape) -> LayerPlan:
        repeated = sorted({i for i in self.layers if self.layers.count(i) > 1})
        if not self.layers:
            raise PlanError(f"llmdrop needs layers: a list of indices from 0 to {shape.num_layers - 1}.")
        if repeated:
            raise PlanError(f"llmdrop layers lists {', '.join(map(str, repeated))} more than once.")
        return LayerPlan.unmodified(shape.num_layers).drop(self.layers, compensated=self.compensation)
