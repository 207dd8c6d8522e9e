"""The layer plan: roles and rows, what they cost, how they are drawn; knows nothing of torch."""

from uniattn_pl.plan.compensation import AUTO_RANK, COMPENSATION_INPUTS, COMPENSATION_OUTPUTS, Compensation
from uniattn_pl.plan.layer_plan import LayerPlan
from uniattn_pl.plan.layer_row import LayerRow
from uniattn_pl.plan.plan_error import PlanError
from uniattn_pl.plan.roles import REUSE_MODES, ROLES, Role
from uniattn_pl.plan.shape import CrossAttention, Experts, Heads, LayerShape, ModelShape

__all__ = [
    "AUTO_RANK",
    "COMPENSATION_INPUTS",
    "COMPENSATION_OUTPUTS",
    "REUSE_MODES",
    "ROLES",
    "Compensation",
    "CrossAttention",
    "Experts",
    "Heads",
    "LayerPlan",
    "LayerRow",
    "LayerShape",
    "ModelShape",
    "PlanError",
    "Role",
]
