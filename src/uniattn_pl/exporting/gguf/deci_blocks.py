"""The blocks of a `deci` file: what each layer of a plan becomes there, and the weights it is made of.

full, heads         a block with H heads over this layer's Hkv
drop                a block without attention (no heads)
drop with W_c       a block whose W_o is W_c: heads, but none of keys and values, is llama.cpp's linear layer
... with a bias     two blocks: the linear layer adds no bias, so a feed-forward of zero weights does, whose W_down
                    has the bias: x + W_c norm(x) + b; the layer's own feed-forward follows in a block of its own
skip                no block at all

llama.cpp takes the size of heads from the first block, which therefore has heads: a dropped layer there is a linear one
of zeros.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from uniattn_pl.exporting.llama_blocks import linear_matrix
from uniattn_pl.plan import LayerPlan, LayerRow, ModelShape

if TYPE_CHECKING:
    import torch

CONSTANT_WIDTH = 32  # of a feed-forward that is there for its bias alone: one block of Q8_0, the least that is written


@dataclass(frozen=True)
class DeciBlock:
    """One block of the file.

    Attributes:
        row: of the layer it is made of.
        heads: H of its attention, or of the linear layer in its place; 0: neither.
        kv_heads: Hkv; 0 with heads: a linear layer.
        constant: it adds the bias of W_c in the place of the layer's feed-forward.
    """

    row: LayerRow
    heads: int
    kv_heads: int
    constant: bool = False


def deci_blocks(plan: LayerPlan, shape: ModelShape) -> list[DeciBlock]:
    """The blocks of a plan that `deci_problems` finds nothing wrong with, bottom first."""
    blocks = []
    for row, layer in zip(plan.rows, shape.layers, strict=True):
        heads = row.sized(layer).heads
        if not row.traits.feed_forward:
            continue
        if row.traits.attends:
            blocks.append(DeciBlock(row, heads.queries, heads.groups))
        elif row.compensation is None:
            blocks.append(DeciBlock(row, 0 if blocks else heads.queries, 0))  # the first one has heads
        elif row.compensation.bias:
            blocks += [DeciBlock(row, heads.queries, 0, constant=True), DeciBlock(row, 0, 0)]
        else:
            blocks.append(DeciBlock(row, heads.queries, 0))
    return blocks


def block_tensors(block: DeciBlock, layer: Any, head_dim: int) -> Iterator[tuple[str, Callable[[], torch.Tensor]]]:
    """Names within a block, and what makes each tensor when it is written.

    Args:
        block: one of `deci_blocks`.
        layer: the decoder layer of its row.
        head_dim: D.
    """
    attention, feed_forward = layer.self_attn, layer.mlp
    if block.heads:
        yield "attn_norm.weight", _as_it_is(_attention_norm(layer))
    if block.kv_heads:
        for name, projection, heads in (("q", attention.q_proj, block.heads), ("k", attention.k_proj, block.kv_heads)):
            for part, tensor in _parameters(projection):
                yield f"attn_{name}.{part}", _paired(tensor, heads, head_dim)
        for name, projection in (("v", attention.v_proj), ("output", attention.o_proj)):
            for part, tensor in _parameters(projection):
                yield f"attn_{name}.{part}", _as_it_is(tensor)
    elif block.heads:
        yield "attn_output.weight", _linear(attention.w_c, layer.post_attention_layernorm.weight)
    yield "ffn_norm.weight", lambda: layer.post_attention_layernorm.weight
    if block.constant:
        yield from _constant(attention.w_c)
        return
    for name, part in (("gate", "gate_proj"), ("up", "up_proj"), ("down", "down_proj")):
        for kind, tensor in _parameters(getattr(feed_forward, part)):
            yield f"ffn_{name}.{kind}", _as_it_is(tensor)


def _parameters(linear: Any) -> Iterator[tuple[str, torch.Tensor]]:
    yield "weight", linear.weight
    if linear.bias is not None:
        yield "bias", linear.bias


def _as_it_is(tensor: torch.Tensor) -> Callable[[], torch.Tensor]:
    return lambda: tensor


def _paired(tensor: torch.Tensor, heads: int, head_dim: int) -> Callable[[], torch.Tensor]:
    """Rows of W_q or W_k in llama.cpp's order: it rotates neighbours (2i, 2i + 1), transformers (i, i + D/2)."""
    return lambda: tensor.reshape(heads, 2, head_dim // 2, *tensor.shape[1:]).transpose(1, 2).reshape(tensor.shape)


def _attention_norm(layer: Any) -> torch.Tensor:
    """The norm before the attention [d]; ones where the layer has none since nothing reads it."""
    weight = getattr(getattr(layer, "input_layernorm", None), "weight", None)
    other: torch.Tensor = layer.post_attention_layernorm.weight
    return other.new_ones(other.shape) if weight is None else weight


def _linear(w_c: Any, norm: torch.Tensor) -> Callable[[], torch.Tensor]:
    """W_c, or zeros [d, d] where there is none."""
    return lambda: norm.new_zeros(len(norm), len(norm)) if w_c is None else linear_matrix(w_c)


def _constant(w_c: Any) -> Iterator[tuple[str, Callable[[], torch.Tensor]]]:
    """A feed-forward that gives W_c's bias b [d], whatever it reads: W_down (silu(0) * 0) + b."""
    import torch

    bias: torch.Tensor = (w_c.up if hasattr(w_c, "down") else w_c).bias
    wide = torch.zeros(CONSTANT_WIDTH, len(bias))
    yield "ffn_gate.weight", lambda: wide
    yield "ffn_up.weight", lambda: wide
    yield "ffn_down.weight", lambda: wide.T.contiguous()
    yield "ffn_down.bias", lambda: bias
