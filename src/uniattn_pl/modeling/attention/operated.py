"""What each operated layer's attention does, on top of the family's own stock attention class.

Reuse, sharing and dropped layers become a dynamic subclass of the stock class that reads what their source
published (sharing.py) and lacks the projections it no longer needs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import nn

from uniattn_pl.families.inspection import FUSED, STATE_KEY, family_module, fused_rows, stock_class
from uniattn_pl.kernels.grouped import aligned_product, grouped_product
from uniattn_pl.modeling.attention.compensation_layer import make_compensation
from uniattn_pl.modeling.attention.publishing import Published, Rotary, publishing_attention, stock_attention
from uniattn_pl.plan import LayerRow


def add_late_correction(
    layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: torch.Tensor
) -> torch.Tensor:
    """Forward hook of a decoder layer whose W_c adds to the layer's output [B, L, d] (Table 8, row 2)."""
    correction = kwargs[STATE_KEY].late.pop(layer.self_attn.layer_idx, None)
    return output if correction is None else output + correction


class _OperatedAttention(nn.Module):
    """What replaced attentions have in common: what remains of the projections, and an optional compensation."""

    kept: tuple[str, ...] = ()
    stock: type
    layer_row: LayerRow
    layer_idx: int
    head_dim: int
    w_c: nn.Module | None
    head_index: HeadIndex | None
    o_proj: nn.Linear

    def projection(self, part: str) -> nn.Linear:
        """`v_proj` or `q_proj`; what is left of a fused projection is that part alone."""
        return self.get_submodule(part if hasattr(self, part) else FUSED)  # type: ignore[return-value]

    def finish(
        self, heads: torch.Tensor, value: torch.Tensor | None, hidden_states: torch.Tensor, kwargs: Mapping[str, Any]
    ) -> torch.Tensor:
        """Apply W_o, and W_c where the plan reads and adds it (paper eq. 14, Table 8).

        Shapes: heads [B, L, H*D], value [B, L, Hkv*D], hidden_states [B, L, d]: the pre-norm output, as in the
        official code; returns [B, L, d].
        """
        if self.w_c is None:
            return self.o_proj(heads)
        row = self.layer_row
        read = {"attention_input": hidden_states, "value": value, "heads": heads}[row.compensation_input]
        correction = self.w_c(read)
        if row.compensation_output == "heads":
            return self.o_proj(heads + correction)
        return self.add(self.o_proj(heads), correction, kwargs)

    def add(self, output: torch.Tensor, correction: torch.Tensor, kwargs: Mapping[str, Any]) -> torch.Tensor:
        """Add a correction [B, L, d] to the attention's output, or leave it for the end of the layer."""
        if self.layer_row.compensation_output == "attention_output":
            return output + correction
        kwargs[STATE_KEY].late[self.layer_idx] = correction
        return output

    def published(self, kwargs: Mapping[str, Any]) -> Published:
        """What this layer's source published in this forward."""
        state: dict[int | None, Published] = kwargs[STATE_KEY]
        return state[self.layer_row.source]


class ReuseAttention(_OperatedAttention):
    """The source's attention map times this layer's values (paper eq. 12); keeps v_proj and o_proj."""

    kept = ("v_proj", "o_proj")

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: Rotary | None = None,
        attention_mask: torch.Tensor | None = None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        shape = hidden_states.shape[:-1]
        own_value = self.projection("v_proj")(hidden_states)
        value = own_value.view(*shape, -1, self.head_dim).transpose(1, 2)
        if past_key_values is not None:
            # Zero-width keys: the cache keeps values only.
            _, value = past_key_values.update(value[..., :0], value, self.layer_idx)
        source = self.published(kwargs)
        weights = source.attention_map
        if weights is not None:
            heads = self._from_map(weights, value)
        else:
            heads, weights = self._replay(source, value)
        return self.finish(heads.reshape(*shape, -1).contiguous(), own_value, hidden_states, kwargs), weights

    def _from_map(self, attention_map: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """The map [B, H, L, S] times values [B, Hkv, S, D]: [B, L, H, D]. One row is copied faster than taken apart."""
        if self.head_index is None or attention_map.shape[-2] == 1 or torch.compiler.is_compiling():
            return grouped_product(self.aligned(attention_map), value)
        return aligned_product(attention_map, self.head_index.heads, value)

    def aligned(self, per_head: torch.Tensor) -> torch.Tensor:
        """Of the source's heads [B, H, ...], the one that serves each head of this layer."""
        return per_head if self.head_index is None else per_head[:, self.head_index.on(per_head.device)]

    def _replay(self, source: Published, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        query, key = cast("torch.Tensor", source.query), cast("torch.Tensor", source.key)
        if self.head_index is not None:
            # Aligned heads need not lie in the group of their values: every head gets its own key and value.
            groups = query.shape[1] // key.shape[1]
            query, key = self.aligned(query), self.aligned(key.repeat_interleave(groups, dim=1))
            value = value.repeat_interleave(groups, dim=1)
        return stock_attention(self)(self, query, key, value, source.mask, **source.kwargs)


class HeadIndex:
    """Which head of the source serves each head; its tensor is made once per device.

    Not a buffer: models are built on the meta device, where one that is not saved would stay without values.
    """

    def __init__(self, heads: Sequence[int]) -> None:
        self.heads = tuple(heads)
        self._tensors: dict[torch.device, torch.Tensor] = {}

    def on(self, device: torch.device) -> torch.Tensor:
        """The indices [H] on a device."""
        if device not in self._tensors:
            self._tensors[device] = torch.tensor(self.heads, device=device)
        return self._tensors[device]


class SharedKeyValueAttention(_OperatedAttention):
    """The layer's own queries over the source's keys and values (CLA, paper eq. 7); keeps q_proj and o_proj."""

    kept = ("q_proj", "q_norm", "o_proj")

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: Rotary | None = None,
        attention_mask: torch.Tensor | None = None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        shape = hidden_states.shape[:-1]
        source = self.published(kwargs)
        query = self._query(hidden_states)
        # Rotated by the source's tables: they must match its keys.
        rotate = family_module(self).apply_rotary_pos_emb
        query, _ = rotate(query, query[:, :1], *cast("Rotary", source.position_embeddings))
        # Others may reuse the map this layer computes.
        shared = (cast("torch.Tensor", source.key), cast("torch.Tensor", source.value))
        options = {**source.kwargs, STATE_KEY: kwargs[STATE_KEY]}
        heads, weights = publishing_attention(self, query, *shared, source.mask, **options)
        return self.finish(heads.reshape(*shape, -1).contiguous(), None, hidden_states, kwargs), weights

    def _query(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Queries [B, H, L, D] before rotation; a norm is over each head (Qwen3, Gemma-3) or over all (OLMo-2)."""
        query = self.projection("q_proj")(hidden_states)
        per_head = (*hidden_states.shape[:-1], -1, self.head_dim)
        norm = getattr(self, "q_norm", None)
        if norm is None:
            query = query.view(per_head)
        elif norm.weight.shape[-1] == self.head_dim:
            query = norm(query.view(per_head))
        else:
            query = norm(query).view(per_head)
        return query.transpose(1, 2)


class DroppedAttention(_OperatedAttention):
    """No attention (LLMDrop): nothing, or the compensation alone."""

    def forward(self, hidden_states: torch.Tensor, **kwargs: Any) -> tuple[torch.Tensor, None]:
        nothing = torch.zeros_like(hidden_states)
        if self.w_c is None:
            return nothing, None
        return self.add(nothing, self.w_c(hidden_states), kwargs), None


OPERATED = {"reuse": ReuseAttention, "share": SharedKeyValueAttention, "drop": DroppedAttention}
_SUBCLASSES: dict[tuple[type, type], type] = {}


def operate(attention: Any, row: LayerRow) -> None:
    """Turn a stock attention into what `row` says, in place; a new W_c [out, in] starts at zero.

    State-dict names of what remains stay the family's own; a W_c the layer already had is kept.
    """
    stock, mixin = stock_class(attention), OPERATED[row.role]
    if (stock, mixin) not in _SUBCLASSES:
        name = mixin.__name__.removesuffix("Attention") + stock.__name__
        _SUBCLASSES[stock, mixin] = type(name, (mixin, stock), {"stock": stock})
    former = getattr(attention, "w_c", None)
    w_c = former or (make_compensation(attention, row) if row.compensated else None)
    _reduce(attention, mixin.kept)
    attention.__class__ = _SUBCLASSES[stock, mixin]
    attention.layer_row = row
    attention.w_c = w_c if row.compensated else None
    align_heads(attention, row.heads_from)


def align_heads(attention: Any, heads_from: Sequence[int] | None) -> None:
    """Let each head of a reuse layer use the source head that `heads_from` [H] names; None: the one of its index."""
    attention.head_index = None if heads_from is None else HeadIndex(heads_from)
    if heads_from is not None:
        attention.num_key_value_groups = 1  # what the kernel expands keys and values by


def _reduce(attention: Any, kept: tuple[str, ...]) -> None:
    """Delete what the layer no longer computes; of a fused projection keep the rows of the one part it still does."""
    part = next((name for name in ("q_proj", "v_proj") if name in kept), None)
    fused = getattr(attention, FUSED, None)
    if fused is not None and part is not None:
        rows = fused_rows(attention)[part]
        setattr(attention, FUSED, _rows_of(fused, rows.start, rows.stop))
        kept = (*kept, FUSED)
    for name, _ in list(attention.named_children()):
        if name not in kept:
            delattr(attention, name)


def _rows_of(linear: nn.Linear, start: int, stop: int) -> nn.Linear:
    """A projection of its own with rows `start` to `stop`; a copy, so that the others' memory is given back."""
    part = nn.Linear(linear.in_features, stop - start, bias=linear.bias is not None, device="meta")
    for name, parameter in linear.named_parameters():
        rows = parameter.detach()[start:stop].clone()
        setattr(part, name, nn.Parameter(rows, requires_grad=parameter.requires_grad))
    return part
