"""From a stock model and a plan to the model the plan describes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from transformers import PreTrainedModel

from uniattn_pl.architectures import get_architecture
from uniattn_pl.config.typing_rules import field_hints, fit_to_type
from uniattn_pl.errors import UserError, did_you_mean
from uniattn_pl.families.encoder_decoder import reading_config
from uniattn_pl.families.inspection import FAMILIES, MODEL_TYPE_PREFIX, attentions_of, stock_class, stock_model_type
from uniattn_pl.families.model_shape import shape_of, stock_plan
from uniattn_pl.families.obstacles import is_plain
from uniattn_pl.modeling.conversion.aliased_copy import aliased_copy
from uniattn_pl.modeling.conversion.auto_classes import auto_classes, check_class
from uniattn_pl.modeling.conversion.exactness_probe import check_exact
from uniattn_pl.modeling.conversion.install import check_convertible, install
from uniattn_pl.plan import LayerPlan


def apply_architecture(model: PreTrainedModel, name: str, **options: Any) -> PreTrainedModel:
    """Convert `model` in place to the architecture `name` and return it; every W_c starts at zero.

    Args:
        model: a stock transformers model.
        name: an architecture of the registry.
        options: fields of that architecture's dataclass, as `uniattn-pl list architectures` lists them.

    Raises:
        UserError: unknown architecture or option, options that do not fit the model, or a family not supported.

    Example:
        model = uniattn_pl.load_model("smollm2-135m")
        uniattn_pl.apply_architecture(model, "uniattn", superblock_size=4, num_superblocks=4)
        print(model.layer_plan)
    """
    architecture = get_architecture(name)
    fields, fitted, problems = field_hints(architecture), {}, []
    for option, value in options.items():
        if option not in fields:
            names = ", ".join(fields) or "none"
            problems.append(f"{name} has no option '{option}'.{did_you_mean(option, fields)} Options: {names}.")
            continue
        fitted[option], problem = fit_to_type(value, None, *fields[option])
        problems += [f"{option} of {name}: {problem}"] if problem else []
    if problems:
        raise UserError(*problems)
    return apply_plan(model, architecture(**fitted).compile(shape_of(model.config)))


def apply_plan(model: PreTrainedModel, plan: LayerPlan) -> PreTrainedModel:
    """Convert `model` in place to `plan` and return it; an unmodified plan leaves a stock model stock.

    A converted model can go further: its plan's operated layers may lose their attention (paper Figure 5), others
    become whatever the new plan says. What a layer has given up does not come back.

    Args:
        model: stock or converted, of as many layers as the plan has rows.
        plan: what each layer is to become.

    Raises:
        UserError: the plan does not fit the model, or the model cannot be converted.
    """
    converted = model.config.model_type.startswith(MODEL_TYPE_PREFIX)
    if converted:
        problems = plan.reduces(model.layer_plan)  # type: ignore[arg-type]
        if problems:
            others = len(problems) - 1
            more = f", nor {others} more layer{'s' * (others > 1)} what the plan says" if others else ""
            raise UserError(
                f"this model already has a layer plan: {problems[0]}{more}. Start from the stock model, or give a plan "
                "that only gives up more."
            )
    plan.check(shape_of(model.config))
    if not plan.operated:
        model.layer_plan = plan  # type: ignore[assignment]
        return model
    return _convert(model, plan)


def _convert(model: PreTrainedModel, plan: LayerPlan) -> PreTrainedModel:
    """Give `model` the plan, after every check: until then nothing about it, or about transformers, is changed."""
    check_class(model)
    check_convertible(model, plan)
    stock = [a for a in attentions_of(model).values() if type(a) is stock_class(a)]
    if stock_model_type(model.config.get_text_config()) not in FAMILIES or not all(map(is_plain, stock)):
        check_exact(model, plan)
    if not model.config.model_type.startswith(MODEL_TYPE_PREFIX):
        _become_converted(model)
    install(model, plan)
    model.config.layer_plan = plan.to_dict()
    return model


def drop_attention(model: PreTrainedModel, layers: Iterable[int], *, compensated: bool = False) -> PreTrainedModel:
    """Remove the attention of more layers from a model, trained or not, in place (LLMDrop; paper Figure 5).

    Args:
        model: stock or converted.
        layers: 0-based indices.
        compensated: keep the W_c that a layer has; one that has none gets one at zero, unless it was converted before.

    Raises:
        UserError: another layer reads from one of them, there is no such layer, or a W_c cannot stay where it is.

    Example:
        model = uniattn_pl.load_model("smollm2-135m")
        uniattn_pl.drop_attention(model, [5, 6])
    """
    return apply_plan(model, plan_of(model).drop(list(layers), compensated=compensated))


def plan_of(model: PreTrainedModel) -> LayerPlan:
    """The plan of a model; of a stock one the unmodified plan."""
    return getattr(model, "layer_plan", None) or stock_plan(model)


def converted_copy(model: PreTrainedModel, plan: LayerPlan) -> PreTrainedModel:
    """A converted model beside the original one, on the same weights, so that it costs no memory but W_c.

    (And, where q, k and v are one projection, the rows of it that an operated layer keeps.)
    """
    return apply_plan(aliased_copy(model), plan)


def unmodified_copy(model: PreTrainedModel) -> PreTrainedModel:
    """A copy of a stock model, on the same weights, that computes the same but attends and caches as converted ones do.

    What a plan saves is measured against it; the difference to the stock model is the kernels'.

    Args:
        model: a stock transformers model, which stays as it is.

    Raises:
        UserError: as `apply_plan`.
    """
    shape_of(model.config)
    return _convert(aliased_copy(model), stock_plan(model))


def _become_converted(model: PreTrainedModel) -> None:
    """Give a stock model the classes of its converted type.

    In place, since callers (and optimizers) hold this very object: its class and its config's are swapped for
    those that the Auto classes would have built it with.
    """
    config_class, model_class = auto_classes(type(model))
    # A stock model that carries the unmodified plan keeps it in its own dict, in the way of the property.
    vars(model).pop("layer_plan", None)
    model.config.__class__, model.__class__ = config_class, model_class
    vars(model.config)["model_type"] = config_class.model_type
    reading_config(model.config).reuse_mode = "auto"
