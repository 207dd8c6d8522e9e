"""What the W_c of a plan cost, beside what the plan saves by the projections it removes."""

from __future__ import annotations

from dataclasses import dataclass

from uniattn_pl.plan.costs import compensation_weights, linear_flops, parameters
from uniattn_pl.plan.layer_plan import LayerPlan
from uniattn_pl.plan.shape import ModelShape


@dataclass(frozen=True)
class CompensationCost:
    """Parameters, and FLOPs per token of products with weights; attention's own products depend on the length.

    Attributes:
        parameters, flops: of every W_c; one whose rank is not chosen yet counts in full, the most it can cost.
        saved_parameters, saved_flops: of what the plan removes: projections, and norms that nothing reads any more.
    """

    parameters: int
    flops: int
    saved_parameters: int
    saved_flops: int

    @classmethod
    def of(cls, plan: LayerPlan, shape: ModelShape) -> CompensationCost:
        """Of a plan on a model of this shape."""
        unmodified = LayerPlan.stock(shape)
        own = sum(compensation_weights(row, shape) for row in plan.rows)
        return cls(
            parameters=own,
            flops=2 * own,
            saved_parameters=parameters(unmodified, shape) - parameters(plan, shape) + own,
            saved_flops=_flops(unmodified, shape) - _flops(plan, shape) + 2 * own,
        )


def _flops(plan: LayerPlan, shape: ModelShape) -> int:
    return sum(linear_flops(row, layer, shape) for row, layer in zip(plan.rows, shape.layers, strict=True))
