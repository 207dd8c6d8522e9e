"""The unmodified model, for the paper's Pre-Trained and Post-Train rows."""

from __future__ import annotations

from dataclasses import dataclass

from uniattn_pl.architectures.registry import Architecture, register
from uniattn_pl.plan import LayerPlan, ModelShape
from uniattn_pl.plan.roles import UNMODIFIED


@register
@dataclass
class Baseline(Architecture):
    """Every layer as it is."""

    name = "baseline"
    summary = "the pre-trained architecture, unmodified (Post-Train in the paper)"
    mechanism = UNMODIFIED

    def compile(self, shape: ModelShape) -> LayerPlan:
        return LayerPlan.stock(shape)
