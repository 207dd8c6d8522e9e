"""The weights calibration sets in an operated attention: W_c, and W_o where it takes part."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from uniattn_pl.calibration.solvers import Fit
from uniattn_pl.modeling.attention.compensation_layer import set_compensation
from uniattn_pl.plan import LayerRow
from uniattn_pl.plan.roles import FIT, OUTPUT

Weights = dict[str, torch.Tensor]


def adjusts_output_projection(row: LayerRow) -> bool:
    """W_o can take part in repairing what is linear in it, unless W_c itself reads what W_o does."""
    compensation = row.compensation
    linear = compensation is not None and compensation.output == "attention_output" and compensation.input != "heads"
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
        weight = attention.o_proj.weight
        updated = weight.double() + fit.delta_o.to(weight.device)
        _put(attention.o_proj, "weight", updated.to(weight.dtype), original)


def read_weights(attention: Any, row: LayerRow) -> Weights:
    """What a fit may have changed, by its name in the attention; tensors in the model's memory."""
    weights = {f"w_c.{name}": parameter.detach() for name, parameter in attention.w_c.named_parameters()}
    if row.merge == FIT:
        return {name: parameter.detach() for name, parameter in attention.named_parameters()}
    if adjusts_output_projection(row):
        weights["o_proj.weight"] = attention.o_proj.weight.detach()
    return weights


def write_weights(attention: Any, weights: Weights, original: Any = None) -> None:
    """Put what `read_weights` gave into the attention of another converted model.

    Args:
        original: as of `set_fit`; None: parameters are replaced by new ones on these very tensors, nothing is copied.
    """
    for name, weight in weights.items():
        module, _, parameter = name.rpartition(".")
        _put(attention.get_submodule(module), parameter, weight, original)


@torch.no_grad()
def _put(owner: Any, name: str, value: torch.Tensor, original: Any) -> None:
    """Write a parameter in place, as an optimizer may hold it already; in place of one that the original has, too, a
    new one."""
    present = getattr(owner, name)
    if original is None or present.data_ptr() in {parameter.data_ptr() for parameter in original.parameters()}:
        setattr(owner, name, nn.Parameter(value.to(present.device), requires_grad=present.requires_grad))
    else:
        present.copy_(value)
