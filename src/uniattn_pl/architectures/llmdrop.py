"""LLMDrop (He et al., 2024, "Not all attention is needed"): remove whole attention sublayers."""

from __future__ import annotations

from dataclasses import dataclass

from uniattn_pl.architectures.measurement_protocol import Measurements
from uniattn_pl.architectures.registry import Architecture, register
from uniattn_pl.options import option
from uniattn_pl.plan import LayerPlan, ModelShape, PlanError
from uniattn_pl.plan.roles import DROPPED

IMPORTANCE, CCA = "importance", "cca"


@register
@dataclass
class LLMDrop(Architecture):
    """Drop the attention of the given layers (settings in Table 6, there counted from 1), or of the least important.

    `ranking: cca` takes those where NBL bounds the error of a linear map in their place lowest (arXiv 2505.21077),
    d - sum of rho_i^2 over the canonical correlations of the attention's input and the stream behind it.
    With `among: all`, a W_c, `calibration: {initialiser: least_squares, bias: true}` and a small ridge it is NBL: its
    linear minimum mean-square estimate W = C_yx C_xx^-1, b = E[y] - W E[x] is that fit. Unlike NBL's, which is
    fitted to activations of the original, a W_c is fitted on the stream that layers dropped below it leave.

    Cost: dropped layers compute and cache nothing; with compensation their attention becomes `norm(x) W_c`.
    """

    name = "llmdrop"
    summary = "drops the attention of the given layers"
    mechanism = DROPPED

    layers: list[int] = option([], "0-based indices of the layers whose attention is dropped")
    num_dropped: int | None = option(
        None, "instead of layers: drop this many, those whose attention changes the stream least", minimum=1
    )
    ranking: str = option(
        IMPORTANCE,
        "by what num_dropped ranks layers: how much they change the stream, or NBL's bound",
        allowed=(IMPORTANCE, CCA),
    )
    among: str = option("top_half", "where num_dropped looks (paper: the top half)", allowed=("top_half", "all"))
    compensation: bool = option(False, "give every dropped layer a W_c (the paper has none)")

    @property
    def measured(self) -> bool:
        return self.num_dropped is not None

    def check(self, shape: ModelShape) -> None:
        number, available = self.num_dropped or 0, len(self._among(shape))
        if self.measured and self.layers:
            raise PlanError("llmdrop takes layers or num_dropped, not both.")
        if number > available:
            raise PlanError(f"num_dropped is {number}; {self.among} has {available} layers.")
        super().check(shape)

    def _among(self, shape: ModelShape) -> list[int]:
        first = shape.num_layers // 2 if self.among == "top_half" else 0
        return [layer for layer in shape.attention_layers if layer >= first]

    def choose(self, shape: ModelShape, measurements: Measurements) -> LayerPlan:
        self.check(shape)
        number = self.num_dropped or 0
        by_bound = self.ranking == CCA
        ranks = measurements.linear_bounds() if by_bound else measurements.attention_importance()
        ranked = sorted(self._among(shape), key=lambda layer: ranks[layer])
        return LayerPlan.stock(shape).drop(sorted(ranked[:number]), compensated=self.compensation)

    def compile(self, shape: ModelShape) -> LayerPlan:
        if self.measured:
            raise PlanError("num_dropped chooses the layers by measurement, when a fit starts.")
        repeated = sorted({i for i in self.layers if self.layers.count(i) > 1})
        if not self.layers:
            raise PlanError(f"llmdrop needs layers: a list of indices from 0 to {shape.num_layers - 1}.")
        if repeated:
            raise PlanError(f"llmdrop layers lists {', '.join(map(str, repeated))} more than once.")
        return LayerPlan.stock(shape).drop(self.layers, compensated=self.compensation)
