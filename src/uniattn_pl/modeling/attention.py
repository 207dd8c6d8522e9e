"""What each layer's attention does under a plan, on top of the family's own stock attention class.

A source layer keeps its stock forward: the attention function registered here sees its final queries, keys
and values and publishes what its readers need. Reuse, sharing and dropped layers become a dynamic subclass of
the stock class that reads it back. Published state travels in the forward's keyword arguments: never through
the cache (absent in training) and never on a module (stale under gradient checkpointing).
"""

from __future__ import annotations

from collections import UserDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from uniattn_pl.modeling.families import family_module
from uniattn_pl.plan import LayerRow

STATE_KEY = "shared_attention_state"
PREFIX = "uniattn_"


@dataclass
class Published:
    """What one source layer gives its readers.

    `attention_map` [B, H, L, S] is set when materialised; `query` [B, H, L, D] and `key` [B, Hkv, S, D] when
    replayed; `key` and `value` [B, Hkv, S, D] when they are shared. `mask` and `kwargs` are the source's own.
    """

    attention_map: torch.Tensor | None = None
    query: torch.Tensor | None = None
    key: torch.Tensor | None = None
    value: torch.Tensor | None = None
    mask: torch.Tensor | None = None
    kwargs: Mapping[str, Any] = field(default_factory=dict)


class SharedState(UserDict[int, Published]):
    """Source layer index -> Published, for one forward. A UserDict, because FSDP2 casts plain dicts it finds."""

    def to(self, device: torch.device | str, non_blocking: bool = False) -> SharedState:
        """Move every tensor, as accelerate asks when layers live on several devices."""
        for index, entry in self.items():
            moved: dict[str, Any] = {
                name: value.to(device, non_blocking=non_blocking)
                for name, value in vars(entry).items()
                if isinstance(value, torch.Tensor)
            }
            self[index] = replace(entry, **moved)
        return self


def stock_attention(attention: Any) -> Callable[..., tuple[torch.Tensor, torch.Tensor | None]]:
    """The kernel the user chose (eager or sdpa), without publishing."""
    name = attention.config._attn_implementation.removeprefix(PREFIX)
    if name == "eager":
        return family_module(attention).eager_attention_forward
    return ALL_ATTENTION_FUNCTIONS[name]


def publishing_attention(
    attention: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Attend as the stock kernel does, and publish what this layer's readers need.

    Shapes: query [B, H, L, D], key and value [B, Hkv, S, D]; returns output [B, L, H, D].
    """
    state: SharedState | None = kwargs.pop(STATE_KEY, None)
    if state is None or not attention.publishes:
        return stock_attention(attention)(attention, query, key, value, attention_mask, **kwargs)
    entry = Published(mask=attention_mask, kwargs=kwargs)
    state[attention.layer_idx] = entry
    if "key_value" in attention.publishes:
        entry.key, entry.value = key, value
    if "map" not in attention.publishes:
        return stock_attention(attention)(attention, query, key, value, attention_mask, **kwargs)
    if _materialises(attention, query):
        mask = _additive_mask(attention_mask, query, key)
        eager = family_module(attention).eager_attention_forward
        output, entry.attention_map = eager(attention, query, key, value, mask, **kwargs)
        return output, entry.attention_map
    entry.query, entry.key = query, key
    return stock_attention(attention)(attention, query, key, value, attention_mask, **kwargs)


def _materialises(attention: Any, query: torch.Tensor) -> bool:
    """Keep the map, or keep Q and K? auto: keep it where it is computed anyway (eager) or is one row (decoding)."""
    mode = attention.config.reuse_mode
    if mode != "auto":
        return bool(mode == "materialise")
    eager = attention.config._attn_implementation == PREFIX + "eager"
    return eager or query.shape[-2] == 1


def _additive_mask(mask: torch.Tensor | None, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor | None:
    """Turn an sdpa mask (boolean, or None for causal) into the additive mask [B, 1, L, S] an eager kernel adds."""
    if mask is None:
        length, total = query.shape[-2], key.shape[-2]
        if length == 1:
            return None
        mask = torch.ones(length, total, dtype=torch.bool, device=query.device).tril(total - length)[None, None]
    if mask.dtype == torch.bool:
        zeros = torch.zeros((), dtype=query.dtype, device=query.device)
        mask = torch.where(mask, zeros, torch.finfo(query.dtype).min)
    return mask


for _name, _mask in (("sdpa", sdpa_mask), ("eager", eager_mask)):
    AttentionInterface.register(PREFIX + _name, publishing_attention)
    AttentionMaskInterface.register(PREFIX + _name, _mask)


class _OperatedAttention(nn.Module):
    """What replaced attentions have in common: an optional compensation, added where the paper adds it (eq. 14)."""

    removed: tuple[str, ...] = ()
    layer_row: LayerRow
    layer_idx: int
    head_dim: int
    w_c: nn.Linear | None
    q_proj: nn.Linear
    v_proj: nn.Linear
    o_proj: nn.Linear
    q_norm: nn.Module

    def compensate(self, output: torch.Tensor, hidden_states: torch.Tensor) -> torch.Tensor:
        """Add `norm(x) W_c`: `hidden_states` [B, L, d] is the pre-norm output, as in the official code."""
        return output if self.w_c is None else output + self.w_c(hidden_states)

    def published(self, kwargs: Mapping[str, Any]) -> Published:
        """What this layer's source published in this forward."""
        state: dict[int | None, Published] = kwargs[STATE_KEY]
        return state[self.layer_row.source]


class ReuseAttention(_OperatedAttention):
    """The source's attention map times this layer's values (paper eq. 12); keeps v_proj and o_proj."""

    removed = ("q_proj", "k_proj", "q_norm", "k_norm")

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
        attention_mask: torch.Tensor | None = None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        shape = hidden_states.shape[:-1]
        value = self.v_proj(hidden_states).view(*shape, -1, self.head_dim).transpose(1, 2)
        if past_key_values is not None:
            # Zero-width keys: the cache keeps values only.
            _, value = past_key_values.update(value[..., :0], value, self.layer_idx)
        source = self.published(kwargs)
        weights = source.attention_map
        if weights is not None:
            output = _grouped_product(weights, value)
        else:
            output, weights = stock_attention(self)(self, source.query, source.key, value, source.mask, **source.kwargs)
        output = self.o_proj(output.reshape(*shape, -1).contiguous())
        return self.compensate(output, hidden_states), weights


def _grouped_product(attention_map: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """`attention_map` [B, H, L, S] times `value` [B, Hkv, S, D] without repeating values; returns [B, L, H, D]."""
    batch, heads, length, total = attention_map.shape
    grouped = attention_map.reshape(batch, value.shape[1], -1, total) @ value
    return grouped.view(batch, heads, length, -1).transpose(1, 2)


class SharedKeyValueAttention(_OperatedAttention):
    """The layer's own queries over the source's keys and values (CLA, paper eq. 7); keeps q_proj and o_proj."""

    removed = ("k_proj", "v_proj", "k_norm")

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        attention_mask: torch.Tensor | None = None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        shape = hidden_states.shape[:-1]
        query = self.q_proj(hidden_states).view(*shape, -1, self.head_dim)
        if hasattr(self, "q_norm"):
            query = self.q_norm(query)
        query = query.transpose(1, 2)
        query, _ = family_module(self).apply_rotary_pos_emb(query, query[:, :1], *position_embeddings)
        source = self.published(kwargs)
        output, weights = stock_attention(self)(self, query, source.key, source.value, source.mask, **source.kwargs)
        output = self.o_proj(output.reshape(*shape, -1).contiguous())
        return self.compensate(output, hidden_states), weights


class DroppedAttention(_OperatedAttention):
    """No attention (LLMDrop): nothing, or the compensation alone."""

    removed = ("q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm")

    def forward(self, hidden_states: torch.Tensor, **kwargs: Any) -> tuple[torch.Tensor, None]:
        if self.w_c is None:
            return torch.zeros_like(hidden_states), None
        return self.w_c(hidden_states), None


OPERATED = {"reuse": ReuseAttention, "share": SharedKeyValueAttention, "drop": DroppedAttention}
_SUBCLASSES: dict[tuple[type, type], type] = {}


def operate(attention: Any, row: LayerRow, hidden_size: int) -> None:
    """Turn a stock attention into what `row` says, in place; a new W_c [d, d] starts at zero.

    State-dict names of what remains stay the family's own.
    """
    stock, mixin = type(attention), OPERATED[row.role]
    key = (stock, mixin)
    if key not in _SUBCLASSES:
        name = mixin.__name__.removesuffix("Attention") + stock.__name__
        _SUBCLASSES[key] = type(name, (mixin, stock), {"stock_module": stock.__module__})
    reference = attention.o_proj.weight
    attention.__class__ = _SUBCLASSES[key]
    for name in mixin.removed:
        if hasattr(attention, name):
            delattr(attention, name)
    attention.layer_row = row
    attention.w_c = None
    if row.compensated:
        w_c = nn.Linear(hidden_size, hidden_size, bias=False, device=reference.device, dtype=reference.dtype)
        nn.init.zeros_(w_c.weight)
        attention.w_c = w_c
