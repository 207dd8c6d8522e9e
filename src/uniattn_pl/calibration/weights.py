"""The weights calibration sets in an operated layer: W_c, W_o where it takes part, and perhaps W_down."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from uniattn_pl.calibration.solvers import Fit
from uniattn_pl.families.feed_forward import output_of_feed_forward
from uniattn_pl.families.inspection import attention_of, attention_path, output_name, output_projection
from uniattn_pl.modeling.attention.compensation_layer import set_compensation
from uniattn_pl.plan import LayerRow
from uniattn_pl.plan.roles import FIT, OUTPUT

Weights = dict[str, torch.Tensor]
"""By name within a decoder layer."""


def adjusts_output_projection(row: LayerRow) -> bool:
    """W_o can take part in repairing what is linear in it, unless W_c itself reads what W_o does.

    An error behind cross-attention need not be linear in the W_o of self-attention: in BART a norm lies between.
    """
    compensation = row.compensation
    linear = compensation is not None and compensation.output == "attention_output" and compensation.input != "heads"
    linear = linear and not row.cross_map
    return linear and OUTPUT in row.traits.projections


def set_fit(attention: Any, fit: Fit | None, original: Any) -> None:
    """Write a solution into W_c, and into W_o where it takes part: W_o + dW_o.

    Args:
        attention: of the converted model.
        fit: None leaves it as it is.
        original: the same layer's attention in the original model, whose W_o may be this very one.
    """
    if fit is None:
        return
    set_compensation(attention.w_c, fit.w_c, fit.gram, bias=fit.bias, mean=fit.mean)
    if fit.delta_o is not None:
        weight = output_projection(attention).weight
        updated = weight.double() + fit.delta_o.to(weight.device)
        _put(output_projection(attention), "weight", updated.to(weight.dtype), original)


def read_weights(layer: Any, row: LayerRow, *, feed_forward: bool = False) -> Weights:
    """What a fit may have changed in a layer; tensors in the model's memory.

    Args:
        feed_forward: W_down is part of it, where the layer has one.
    """
    attention = attention_of(layer)
    weights = {name: parameter.detach() for name, parameter in attention.named_parameters()}
    if row.merge != FIT:
        fitted = ("w_c.", f"{output_name(attention)}.weight") if adjusts_output_projection(row) else ("w_c.",)
        weights = {name: weight for name, weight in weights.items() if name.startswith(fitted)}
    weights = in_attention(layer, weights)
    if feed_forward and row.traits.feed_forward:
        name, linear = output_of_feed_forward(layer)
        weights[f"{name}.weight"] = linear.weight.detach()
    return weights


def in_attention(layer: Any, weights: Mapping[str, torch.Tensor]) -> Weights:
    """Weights that are named within an attention, by their names within its layer."""
    path = attention_path(layer)
    return {f"{path}.{name}": weight for name, weight in weights.items()}


def write_weights(layer: Any, weights: Weights, original: Any = None) -> None:
    """Put what `read_weights` gave into the same layer of another converted model.

    Args:
        original: that layer of the original model, whose parameters may be these very ones; None: parameters are
            replaced by new ones on these very tensors, nothing is copied.
    """
    for name, weight in weights.items():
        module, _, parameter = name.rpartition(".")
        _put(layer.get_submodule(module), parameter, weight, original)


@torch.no_grad()
def _put(owner: Any, name: str, value: torch.Tensor, original: Any) -> None:
    """Write a parameter in place, as an optimizer may hold it already; in place of one that the original has, too, a
    new one."""
    present = getattr(owner, name)
    if original is None or present.data_ptr() in {parameter.data_ptr() for parameter in original.parameters()}:
        setattr(owner, name, nn.Parameter(value.to(present.device), requires_grad=present.requires_grad))
    else:
        present.copy_(value)
