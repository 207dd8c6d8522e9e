"""From a stock model and a plan to the model the plan describes."""

from __future__ import annotations

import copy
from typing import Any

from transformers import PreTrainedModel

from uniattn_pl.architectures import get_architecture
from uniattn_pl.errors import UserError, did_you_mean
from uniattn_pl.modeling.families import shape_of
from uniattn_pl.modeling.install import install
from uniattn_pl.modeling.saving import auto_classes
from uniattn_pl.plan import LayerPlan


def apply_architecture(model: PreTrainedModel, name: str, **options: Any) -> PreTrainedModel:
    """Convert `model` in place to the architecture `name` and return it; every W_c starts at zero.

    Args:
        model: a stock transformers model of a supported family.
        name: an architecture of the registry.
        options: fields of that architecture's dataclass.

    Raises:
        UserError: unknown architecture or option, or options that do not fit the model.
    """
    architecture = get_architecture(name)
    allowed = list(architecture.__dataclass_fields__)  # type: ignore[attr-defined]
    unknown = [option for option in options if option not in allowed]
    if unknown:
        known = ", ".join(allowed) or "none"
        raise UserError(*(f"{name} has no option '{o}'.{did_you_mean(o, allowed)} Options: {known}." for o in unknown))
    return apply_plan(model, architecture(**options).compile(shape_of(model.config)))


def apply_plan(model: PreTrainedModel, plan: LayerPlan) -> PreTrainedModel:
    """Convert `model` in place to `plan` and return it; an unmodified plan leaves the model stock.

    Raises:
        UserError: the plan does not fit the model, or the model cannot be converted.
    """
    if getattr(model, "layer_plan", None) is not None:
        raise UserError("this model already has a layer plan; start from the stock model.")
    plan.check(shape_of(model.config))
    if not plan.operated:
        model.layer_plan = plan  # type: ignore[assignment]
        return model
    config_class, model_class = auto_classes(type(model))
    model.config.__class__, model.__class__ = config_class, model_class
    vars(model.config)["model_type"] = config_class.model_type
    model.config.layer_plan = plan.to_dict()
    model.config.reuse_mode = "auto"
    install(model, plan)
    return model


def converted_copy(model: PreTrainedModel, plan: LayerPlan) -> PreTrainedModel:
    """A converted model beside the original one that shares its weights, so costs no memory but W_c."""
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return apply_plan(copy.deepcopy(model, shared), plan)
