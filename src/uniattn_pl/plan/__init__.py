"""The layer plan: roles and rows, what they cost, how they are drawn; knows nothing of torch."""

from uniattn_pl.plan.layer_plan import (
    COMPENSATION_INPUTS,
    COMPENSATION_OUTPUTS,
    REUSE_MODES,
    LayerPlan,
    LayerRow,
    LayerShape,
    ModelShape,
    PlanError,
)

__all__ = [
    "COMPENSATION_INPUTS",
    "COMPENSATION_OUTPUTS",
    "REUSE_MODES",
    "LayerPlan",
    "LayerRow",
    "LayerShape",
    "ModelShape",
    "PlanError",
]
