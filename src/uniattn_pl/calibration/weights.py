"""The weights calibration sets in an operated attention: W_c, and W_o where it takes part."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from uniattn_pl.calibration.solvers import Fit
from uniattn_pl.modeling.attention.compensation_layer import set_compensation
from uniattn_pl.plan import LayerRow
from uniattn_pl.plan.roles import OUTPUT

Weights = dict[str, torch.Tensor]


def adjusts_output_projection(row: LayerRow) -> bool:
    """W_o can take part in repairing what is linear in it, unless W_c itself reads what W_o does."""
    placed = row.compensation
    linear = placed is not None and placed.output == "attention_output" and placed.input != "heads"
    return linear and OUTPUT in row.does.projections


def set_fit(attention: Any, fit: Fit | None) -> None:
    """Write a solution into W_c, and into a new W_o of the converted model (the old one is the original's, too)."""
    if fit is None:
        return
    set_compensation(attention.w_c, fit.w_c, fit.gram, bias=fit.bias, mean=fit.mean)
    if fit.delta_o is not None:
        o_proj = attention.o_proj
        updated = o_proj.weight.double() + fit.delta_o.to(o_proj.weight.device)
        o_proj.weight = nn.Parameter(updated.to(o_proj.weight.dtype), requires_grad=o_proj.weight.requires_grad)


def read_weights(attention: Any, row: LayerRow) -> Weights:
    """What a fit may have changed, by its name in the attention; tensors in the model's memory."""
    weights = {f"w_c.{name}": parameter.detach() for name, parameter in attention.w_c.named_parameters()}
    if adjusts_output_projection(row):
        weights["o_proj.weight"] = attention.o_proj.weight.detach()
    return weights


def write_weights(attention: Any, weights: Weights) -> None:
    """Put what `read_weights` gave into the attention of another converted model."""
    for name, weight in weights.items():
        module, _, parameter = name.rpartition(".")
        owner = attention.get_submodule(module)
        present = getattr(owner, parameter)
        setattr(owner, parameter, nn.Parameter(weight.to(present.device), requires_grad=present.requires_grad))
