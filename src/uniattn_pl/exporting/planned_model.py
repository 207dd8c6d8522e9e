"""The plan that a saved model carries in its config."""

from __future__ import annotations

from typing import TYPE_CHECKING

from uniattn_pl.families.inspection import MODEL_TYPE_PREFIX
from uniattn_pl.plan import LayerPlan

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def plan_of(config: PreTrainedConfig) -> LayerPlan:
    """The layer plan of a converted model's config; of a stock one the plan that changes nothing."""
    if config.model_type.startswith(MODEL_TYPE_PREFIX):
        return LayerPlan.from_dict(config.layer_plan)
    return LayerPlan.unmodified(config.num_hidden_layers)
