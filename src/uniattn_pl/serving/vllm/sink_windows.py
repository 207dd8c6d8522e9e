"""Windows whose cache keeps every token: beside reused maps, and with sinks, which vLLM's kernels do not know."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from vllm.config import VllmConfig
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.attention.attention import get_attention_context
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheSpec

from uniattn_pl.serving.vllm.writing_ops import register_writing_op


class KeptWindowAttention(Attention):
    """vLLM's attention over a window, with a cache that keeps every token, as the layers beside it do."""

    def get_kv_cache_spec(self, vllm_config: VllmConfig) -> KVCacheSpec | None:
        """What vLLM allocates for this layer."""
        spec: Any = super().get_kv_cache_spec(vllm_config)
        return FullAttentionSpec(
            block_size=vllm_config.cache_config.block_size,
            num_kv_heads=spec.num_kv_heads,
            head_size=spec.head_size,
            head_size_v=spec.head_size_v,
            dtype=spec.dtype,
        )


class SinkWindowAttention(Attention):
    """An attention over the last tokens and the first few; its pages are plain rows, keys and then values of a token.

    Attributes:
        last: tokens of the window, the present one among them.
        sinks: first tokens of a text.
    """

    last: int
    sinks: int

    def forward(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        """Shapes, of T tokens of all requests: query [T, H * D], key and value [T, Hkv * D], returns [T, H * D]."""
        heads = query.view(-1, self.num_heads, self.head_size)
        output = torch.empty_like(heads)
        per_head = (-1, self.num_kv_heads, self.head_size)
        torch.ops.vllm.uniattn_attend_with_sinks(
            heads, key.view(per_head), value.view(per_head), output, self.layer_name, self.last, self.sinks
        )
        return output.flatten(1)


def attend_with_sinks(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    output: torch.Tensor,
    layer: str,
    window: int,
    sinks: int,
) -> None:
    """Keep keys and values of new tokens, and write into `output` what they attend to.

    Of each request only tokens are read that one of its queries sees, `sinks + window - 1 + L` at most for L queries.

    Shapes: query and output [T, H, D]; key and value [T, Hkv, D].
    """
    metadata, attention, pages, slots = get_attention_context(layer)
    if metadata is None:
        output.zero_()
        return
    size = pages.shape[2]
    if slots is not None:
        kept = slots >= 0
        page, row = slots[kept] // size, slots[kept] % size
        new = torch.cat([key, value], dim=-1)[: len(slots)][kept]  # [T, Hkv, 2 D]
        pages[page, :, row] = new.to(pages.dtype)
    starts, lengths = metadata.query_start_loc.tolist(), metadata.seq_lens.tolist()
    for request, total in enumerate(lengths):
        first, end = starts[request], starts[request + 1]
        count = end - first
        if not count:
            continue
        seen = max(total - count - window + 1, 0)
        tokens = torch.cat([torch.arange(min(sinks, seen)), torch.arange(seen, total)]).to(pages.device)
        page = metadata.block_table[request, tokens // size].long()
        held = pages[page, :, tokens % size].to(query.dtype)  # [S, Hkv, 2 D]
        keys, values = held.transpose(0, 1).chunk(2, dim=-1)  # [Hkv, S, D]
        positions = torch.arange(total - count, total, device=pages.device)[:, None]
        visible = (tokens <= positions) & ((tokens > positions - window) | (tokens < sinks))  # [L, S]
        attended = nn.functional.scaled_dot_product_attention(
            query[first:end].transpose(0, 1)[None],
            keys[None],
            values[None],
            attn_mask=visible,
            scale=attention.impl.scale,
            enable_gqa=True,
        )
        output[first:end] = attended[0].transpose(0, 1)


register_writing_op("uniattn_attend_with_sinks", attend_with_sinks)
