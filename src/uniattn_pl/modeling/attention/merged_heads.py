"""Fewer heads of keys and values out of those that a stock attention has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from uniattn_pl.errors import UserError
from uniattn_pl.families.attention_parts import fused_rows, heads_of, linear_of
from uniattn_pl.families.inspection import FUSED, PROJECTIONS
from uniattn_pl.plan.roles import KEY, VALUE

Heads = Callable[[torch.Tensor], torch.Tensor]
"""From what a parameter has per head [Hkv, D, ...] to what it is to have [n, D, ...]."""


def merge_kv_heads(attention: Any, groups: int) -> None:
    """Let a stock attention have `groups` heads of keys and values, each the mean of neighbouring ones, in place.

    The first step of uptraining to MQA or GQA (Ainslie et al. 2023, section 2.1): query head h, which used head
    h // (H / Hkv), uses head h // (H / n), the one that its own went into. The mean is also the one projection W' with
    the least squared distance to all it replaces, sum |W_i x - W' x|^2, whatever the inputs x are.

    Raises:
        UserError: its weights are quantised.
    """
    queries = heads_of(attention).queries
    _change_kv_heads(attention, lambda per_head: per_head.unflatten(0, (groups, -1)).mean(1))
    attention.num_key_value_groups = queries // groups  # what kernels expand keys and values by
    if hasattr(attention, "num_key_value_heads"):
        attention.num_key_value_heads = groups  # where Phi-3 cuts its fused projection


def equalise_kv_heads(attention: Any) -> None:
    """Let every head of keys and values of a stock attention be the mean of them all, in place."""
    _change_kv_heads(attention, lambda per_head: per_head.mean(0, keepdim=True).expand_as(per_head))


def _change_kv_heads(attention: Any, change: Heads) -> None:
    heads = heads_of(attention)
    if hasattr(attention, FUSED):
        rows = fused_rows(attention)
        spans = [slice(rows[part].start, rows[part].stop) for part in PROJECTIONS[:3]]

        def of_fused(parameter: torch.Tensor) -> torch.Tensor:
            query, key, value = (parameter[span] for span in spans)
            return torch.cat([query, _by_head(key, heads.groups, change), _by_head(value, heads.groups, change)])

        _replace(attention.qkv_proj, of_fused)
    else:
        for projection in (KEY, VALUE):
            _replace(linear_of(attention, projection), lambda parameter: _by_head(parameter, heads.groups, change))
    norm = getattr(getattr(attention, "k_norm", None), "weight", None)
    if norm is not None and norm.numel() == heads.key_width > heads.size:  # over all keys of a token (OLMo-2)
        _replace(attention.k_norm, lambda parameter: _by_head(parameter, heads.groups, change))


@torch.no_grad()
def _replace(module: nn.Module, change: Heads) -> None:
    """Give a module new parameters; whoever shares the present ones keeps them as they are."""
    for name, parameter in list(module.named_parameters()):
        if not parameter.is_floating_point():
            raise UserError("heads of keys and values cannot be merged in quantised weights; convert the model first.")
        changed = nn.Parameter(change(parameter.detach()), requires_grad=parameter.requires_grad)
        setattr(module, name, changed)
        if isinstance(module, nn.Linear):
            module.out_features = len(changed)


def _by_head(parameter: torch.Tensor, heads: int, change: Heads) -> torch.Tensor:
    """A change of the heads of [Hkv * D, ...], computed in float32."""
    changed = change(parameter.float().unflatten(0, (heads, -1)))
    return changed.flatten(0, 1).to(parameter.dtype)
