"""The decoder layers of a served model, built of vLLM's own parts by what the plan says of each."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from vllm.config import VllmConfig
from vllm.distributed import get_tensor_model_parallel_rank, tensor_model_parallel_all_gather
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.layernorm import RMSNorm
from vllm.model_executor.layers.linear import (
    ColumnParallelLinear,
    QKVParallelLinear,
    ReplicatedLinear,
    RowParallelLinear,
)
from vllm.model_executor.layers.rotary_embedding import get_rope
from vllm.model_executor.models.llama import LlamaMLP

from uniattn_pl.plan import Heads, LayerRow
from uniattn_pl.plan.roles import KEY_VALUE, MAP, OUTPUT, QUERY, VALUE
from uniattn_pl.serving.vllm.layout import ServedLayout
from uniattn_pl.serving.vllm.separate_pages import PageShape, SeparatePages
from uniattn_pl.serving.vllm.sink_windows import KeptWindowAttention, SinkWindowAttention

Published = dict[int, tuple[torch.Tensor, torch.Tensor]]
"""Layer -> its queries [T, H, D] and the keys [T, Hkv, D] that it attends over, rotated, in one forward."""


class ServedLowRank(nn.Module):
    """A W_c of low rank: `up(down(x))`."""

    def __init__(self, read: int, added: int, rank: int, bias: bool, prefix: str) -> None:
        super().__init__()
        self.down = ReplicatedLinear(read, rank, bias=False, prefix=f"{prefix}.down", return_bias=False)
        self.up = ReplicatedLinear(rank, added, bias=bias, prefix=f"{prefix}.up", return_bias=False)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Shapes: states [T, in], returns [T, out]."""
        return self.up(self.down(states))


def served_compensation(layout: ServedLayout, row: LayerRow, prefix: str) -> nn.Module | None:
    """A layer's W_c, of the size and rank that its plan says, or None."""
    if row.compensation is None:
        return None
    config = layout.config
    heads = Heads(config.num_attention_heads, config.num_key_value_heads, layout.head_size, layout.head_size)
    read, added = row.compensation.sizes(heads, config.hidden_size)
    rank, bias = row.compensation.thin, row.compensation.bias
    if rank is not None:
        return ServedLowRank(read, added, rank, bias, prefix)
    linear: nn.Module = ReplicatedLinear(read, added, bias=bias, prefix=prefix, return_bias=False)
    return linear


class ServedSelfAttention(nn.Module):
    """What is left of a layer's attention under its role, W_c included."""

    def __init__(self, layout: ServedLayout, row: LayerRow, vllm_config: VllmConfig, prefix: str) -> None:
        super().__init__()
        config, family, self.layout, self.row = layout.config, layout.family, layout, row
        self.head_size, self.heads, self.kv_heads = layout.head_size, layout.heads, layout.kv_heads(row.index)
        query_bias = config.attention_bias if family.query_bias is None else family.query_bias
        output_bias = config.attention_bias if family.output_bias is None else family.output_bias
        self.worker = get_tensor_model_parallel_rank()
        hidden, width = config.hidden_size, config.num_attention_heads * self.head_size
        projections = row.traits.projections
        if row.traits.complete:
            self.qkv_proj = QKVParallelLinear(
                hidden,
                self.head_size,
                config.num_attention_heads,
                self.kv_heads * layout.workers,
                bias=query_bias,
                prefix=f"{prefix}.qkv_proj",
            )
        elif QUERY in projections:
            self.own_q = _own_projection(hidden, width, query_bias, f"{prefix}.own_q")
        elif VALUE in projections:
            values = self.kv_heads * layout.workers * self.head_size
            self.own_v = _own_projection(hidden, values, query_bias, f"{prefix}.own_v")
        if OUTPUT in projections:
            self.o_proj = RowParallelLinear(
                width, hidden, bias=output_bias, prefix=f"{prefix}.o_proj", return_bias=False
            )
        if QUERY in projections:
            self.rotary_emb = get_rope(
                self.head_size,
                max_position=config.max_position_embeddings,
                rope_parameters=config.rope_parameters,
                is_neox_style=True,
            )
            self.q_norm = RMSNorm(self.head_size, eps=config.rms_norm_eps) if family.query_norm else None
        if row.traits.complete:
            self.k_norm = RMSNorm(self.head_size, eps=config.rms_norm_eps) if family.query_norm else None
            if row.index not in layout.separate:
                self.attn = _attention(layout, row, vllm_config, f"{prefix}.attn")
        if row.index in layout.separate:
            self.keys = _pages(layout, row.index, vllm_config, f"{prefix}.keys")
        if row.index in layout.separate or row.traits.reads == MAP:
            self.values = _pages(layout, row.index, vllm_config, f"{prefix}.values")
        self.w_c = served_compensation(layout, row, f"{prefix}.w_c")

    def forward(
        self, positions: torch.Tensor, states: torch.Tensor, published: Published
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """What the attention adds to the stream [T, d], and what W_c adds behind the feed-forward, or None.

        Shapes: positions [T], states [T, d].
        """
        value = None
        if not self.row.traits.computes:
            heads = None
        elif self.row.traits.complete:
            heads = self._attend(positions, states, published)
        elif self.row.traits.reads == KEY_VALUE:
            heads = self._attend_over_shared(positions, states, published)
        else:
            value = self.own_v(states)
            heads = self._apply_map(value, published)
        return self._finish(heads, value, states)

    def _attend(self, positions: torch.Tensor, states: torch.Tensor, published: Published) -> torch.Tensor:
        qkv, _ = self.qkv_proj(states)
        width, kv_width = self.heads * self.head_size, self.kv_heads * self.head_size
        query, key, value = qkv.split([width, kv_width, kv_width], dim=-1)
        if self.k_norm is not None:
            query, key = _norm_heads(self.q_norm, query, self.head_size), _norm_heads(self.k_norm, key, self.head_size)
        query, key = self.rotary_emb(positions, query, key)
        published[self.row.index] = self._per_head(query), self._per_head(key)
        if self.row.index not in self.layout.separate:
            return self.attn(query, key, value)
        return self._attend_separately(*published[self.row.index], self._per_head(value), self.row.index)

    def _attend_over_shared(self, positions: torch.Tensor, states: torch.Tensor, published: Published) -> torch.Tensor:
        query = self.own_q(states)
        if self.q_norm is not None:
            query = _norm_heads(self.q_norm, query, self.head_size)
        query, _ = self.rotary_emb(positions, query, torch.empty_like(query))
        query, key = self._per_head(query), published[self._source][1]
        published[self.row.index] = query, key
        if self._source in self.layout.separate:
            return self._attend_separately(query, key, None, self._source)
        output = torch.empty_like(query)
        # The source's attention once more: keys and values of new tokens are in its cache already.
        torch.ops.vllm.unified_attention_with_output(query, key, key, output, self.layout.name(self._source, "attn"))
        return output.flatten(1)

    def _apply_map(self, value: torch.Tensor, published: Published) -> torch.Tensor:
        key_layer = self.layout.key_layer(self._source)
        return self._attend_separately(*published[self._source], self._per_head(value), key_layer)

    def _attend_separately(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor | None, key_layer: int
    ) -> torch.Tensor:
        """Over the keys of `key_layer`, and its values or, where the layer has some, its own."""
        value_layer = key_layer if value is None else self.row.index
        output, window = torch.empty_like(query, memory_format=torch.contiguous_format), self.layout.window(key_layer)
        torch.ops.vllm.uniattn_attend_separately(
            query,
            key,
            value,
            output,
            self.layout.name(key_layer, "keys"),
            self.layout.name(value_layer, "values"),
            self.layout.heads_from(self.row.index, self.worker),
            self.head_size**-0.5,
            -1 if window is None else window,
        )
        return output.flatten(1)

    def _finish(
        self, heads: torch.Tensor | None, value: torch.Tensor | None, states: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """W_o, and W_c where the plan reads and adds it."""
        compensation = self.row.compensation
        if self.w_c is None or compensation is None:
            return torch.zeros_like(states) if heads is None else self.o_proj(heads), None
        read: Any = {"attention_input": states, "value": value, "heads": heads}[compensation.input]
        if compensation.input != "attention_input" and self.layout.workers > 1:
            read = tensor_model_parallel_all_gather(read)
        correction = self.w_c(read)
        if compensation.output == "heads":
            own = correction.unflatten(-1, (self.layout.workers, -1))[:, self.worker]
            return self.o_proj(heads + own), None
        output = torch.zeros_like(states) if heads is None else self.o_proj(heads)
        if compensation.output == "layer_output":
            return output, correction
        return output + correction, None

    @property
    def _source(self) -> int:
        assert self.row.source is not None
        return self.row.source

    def _per_head(self, states: torch.Tensor) -> torch.Tensor:
        return states.unflatten(-1, (-1, self.head_size))


def _own_projection(hidden: int, width: int, bias: bool, prefix: str) -> ColumnParallelLinear:
    """A layer's queries, or values, where it has nothing else: each worker's heads of them."""
    return ColumnParallelLinear(hidden, width, bias=bias, prefix=prefix, return_bias=False)


def _norm_heads(norm: Any, states: torch.Tensor, size: int) -> torch.Tensor:
    return norm(states.unflatten(-1, (-1, size)).contiguous()).flatten(-2)


def _attention(layout: ServedLayout, row: LayerRow, vllm_config: VllmConfig, name: str) -> Attention:
    """The attention of a layer whose keys and values are together in vLLM's own pages, by its window."""
    window, kind = layout.window(row.index), Attention
    if row.sinks:
        kind = SinkWindowAttention
    elif window is not None and layout.keeps_all:
        kind = KeptWindowAttention
    attention: Any = kind(
        layout.heads,
        layout.head_size,
        layout.head_size**-0.5,
        num_kv_heads=layout.kv_heads(row.index),
        cache_config=vllm_config.cache_config,
        per_layer_sliding_window=None if row.sinks else window,
        prefix=name,
    )
    if row.sinks:
        attention.last, attention.sinks = window, row.sinks
    return attention


def _pages(layout: ServedLayout, index: int, vllm_config: VllmConfig, name: str) -> SeparatePages:
    """The pages of a layer's keys, or of its values; those of merged heads have room for all."""
    window = None if layout.keeps_all else layout.window(index)
    shape = PageShape(layout.kv_heads(index), layout.head_size, layout.most_kv_heads, window)
    return SeparatePages(vllm_config, name, shape, layout.heads)


class ServedDecoderLayer(nn.Module):
    """A decoder layer as its row says: the family's, without what the plan removed, and with W_c."""

    def __init__(self, layout: ServedLayout, vllm_config: VllmConfig, prefix: str) -> None:
        super().__init__()
        config = layout.config
        self.row = layout.plan.rows[int(prefix.rpartition(".")[2])]
        self.self_attn = ServedSelfAttention(layout, self.row, vllm_config, f"{prefix}.self_attn")
        if not self.row.traits.feed_forward:
            return
        self.mlp = LlamaMLP(
            config.hidden_size,
            config.intermediate_size,
            config.hidden_act,
            bias=getattr(config, "mlp_bias", False),
            prefix=f"{prefix}.mlp",
        )
        self.post_attention_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        reads = self.row.reads_stream
        self.input_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps) if reads else None

    def forward(
        self, positions: torch.Tensor, hidden: torch.Tensor, residual: torch.Tensor | None, published: Published
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The stream that leaves the layer in two parts, as vLLM adds them in the next norm; the second None: no part.

        Shapes: positions [T], hidden and residual [T, d].
        """
        if not self.row.traits.feed_forward:
            if self.self_attn.w_c is None:
                return hidden, residual
            stream = hidden if residual is None else hidden + residual
            return self.self_attn.w_c(stream), stream
        late = None
        if self.input_layernorm is not None:
            if residual is None:
                residual, hidden = hidden, self.input_layernorm(hidden)
            else:
                hidden, residual = self.input_layernorm(hidden, residual)
            hidden, late = self.self_attn(positions, hidden, published)
        if residual is None:
            residual, hidden = hidden, self.post_attention_layernorm(hidden)
        else:
            hidden, residual = self.post_attention_layernorm(hidden, residual)
        hidden = self.mlp(hidden)
        return hidden if late is None else hidden + late, residual
