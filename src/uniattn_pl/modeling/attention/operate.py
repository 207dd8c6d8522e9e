"""Turning a stock attention into the one of its role, in place.

An operated attention is an instance of the family's own class too, by a class made from both: transformers finds
the attentions whose maps it is to return, and peft its targets, by that class and by the names of submodules. The
module stays the same object (its class is swapped), so that hooks on it, and whoever holds it, go on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from uniattn_pl.families.attention_parts import fused_rows, heads_of, serves
from uniattn_pl.families.inspection import FUSED, stock_class
from uniattn_pl.families.obstacles import is_plain
from uniattn_pl.kernels.map_handles import HeadIndex
from uniattn_pl.modeling.attention.absent_parts import give_up_parts
from uniattn_pl.modeling.attention.compensation_layer import make_compensation
from uniattn_pl.modeling.attention.cross_maps import CrossReuse
from uniattn_pl.modeling.attention.drop_attention import DropAttention
from uniattn_pl.modeling.attention.forwarded_readers import ForwardedReuse, ForwardedShareKV
from uniattn_pl.modeling.attention.heads_attention import HeadsAttention
from uniattn_pl.modeling.attention.merged_heads import merge_kv_heads
from uniattn_pl.modeling.attention.operated import OperatedAttention
from uniattn_pl.modeling.attention.reuse_attention import ReuseAttention
from uniattn_pl.modeling.attention.share_kv_attention import ShareKVAttention
from uniattn_pl.modeling.attention.window_attention import WindowAttention
from uniattn_pl.plan import LayerRow
from uniattn_pl.plan.roles import KEY, OUTPUT, QUERY, VALUE

ATTENTIONS: dict[str, type[OperatedAttention]] = {
    "reuse": ReuseAttention,
    "share_kv": ShareKVAttention,
    "drop": DropAttention,
    "skip": DropAttention,
    "heads": HeadsAttention,
    "window": WindowAttention,
}
"""Role -> the attention of its layers; `full` layers keep their own."""

FORWARDED: dict[str, type[OperatedAttention]] = {"reuse": ForwardedReuse, "share_kv": ForwardedShareKV}
"""Role -> the attention of its layers in families whose own forward does more than plans know."""

MODULES = {QUERY: ("q_proj", "q_norm"), KEY: ("k_proj", "k_norm"), VALUE: ("v_proj",), OUTPUT: ("o_proj",)}
"""Projection -> the submodules of an attention that compute it."""

_SUBCLASSES: dict[tuple[type, type], type] = {}


def operate(attention: Any, row: LayerRow) -> None:
    """Turn a stock attention into what `row` says, in place; a new W_c [out, in] starts at zero.

    State-dict names of what remains stay the family's own; a W_c the layer already had is kept.
    """
    stock, operated = stock_class(attention), ATTENTIONS[row.role]
    forwarded = is_forwarded(attention, row)
    operated = FORWARDED[row.role] if forwarded else operated
    if not isinstance(attention, OperatedAttention):
        attention.value_head_dim = heads_of(attention).value_size
    w_c = getattr(attention, "w_c", None)
    if w_c is None and row.compensation is not None:
        w_c = make_compensation(attention, row.compensation)
    if forwarded:
        give_up_parts(attention, row.traits.projections)
    elif not row.traits.complete:
        _reduce(attention, row)
    if row.kv_heads is not None:
        merge_kv_heads(attention, row.kv_heads)
    attention.__class__ = _made_of_both(operated, stock)
    attention.layer_row = row
    attention.w_c = w_c if row.compensated else None
    align_heads(attention, row.heads_from)


def operate_cross(attention: Any, row: LayerRow) -> None:
    """Let a cross-attention use the map of its source's, in place."""
    give_up_parts(attention, frozenset({VALUE, OUTPUT}))
    attention.__class__ = _made_of_both(CrossReuse, stock_class(attention))
    attention.layer_row, attention.w_c, attention.head_index = row, None, None


def _made_of_both(operated: type[OperatedAttention], stock: type) -> type:
    if (stock, operated) not in _SUBCLASSES:
        name = operated.__name__.removesuffix("Attention") + stock.__name__
        _SUBCLASSES[stock, operated] = type(name, (operated, stock), {"stock": stock})
    return _SUBCLASSES[stock, operated]


def is_forwarded(attention: Any, row: LayerRow) -> bool:
    """Whether a layer of this row runs its family's own forward, as this does more than plans know."""
    former = isinstance(attention, tuple(FORWARDED.values()))
    return row.role in FORWARDED and (former or (type(attention) is stock_class(attention) and not is_plain(attention)))


def align_heads(attention: Any, heads_from: Sequence[int] | None) -> None:
    """Let each head of a reuse layer use the source head that `heads_from` [H] names; None: the one of its index."""
    attention.head_index = None if heads_from is None else HeadIndex(heads_from)
    if heads_from is not None:
        attention.num_key_value_groups = 1  # what the kernel expands keys and values by


def _reduce(attention: Any, row: LayerRow) -> None:
    """Delete what the layer no longer computes; of a fused projection keep the rows of what it still does.

    One part keeps the fused name; two become projections of their own.
    """
    kept = {module for projection in row.traits.projections for module in MODULES[projection]}
    fused, split = getattr(attention, FUSED, None), dict[str, nn.Linear]()
    if fused is not None and kept:
        rows = fused_rows(attention)
        split = {part: _rows_of(fused, span.start, span.stop) for part, span in rows.items() if part in kept}
        split = {FUSED: next(iter(split.values()))} if len(split) == 1 else split
        kept |= set(split)
    for name, _ in list(attention.named_children()):
        if name not in kept:
            delattr(attention, name)
    for name, _ in list(attention.named_parameters(recurse=False)):
        if not serves(name) & row.traits.projections:
            attention.register_parameter(name, None)
    for name, projection in split.items():
        setattr(attention, name, projection)


def _rows_of(linear: nn.Linear, start: int, stop: int) -> nn.Linear:
    """A projection of its own with rows `start` to `stop`; a copy, so that the others' memory is given back."""
    part = nn.Linear(linear.in_features, stop - start, bias=linear.bias is not None, device="meta")
    for name, parameter in linear.named_parameters():
        rows = parameter.detach()[start:stop].clone()
        setattr(part, name, nn.Parameter(rows, requires_grad=parameter.requires_grad))
    return part
