"""Keys and values in pages of their own, and vLLM's CPU kernel on the keys of one layer and the values of another.

Of a layer that reuses a map vLLM is to keep values alone: half of what a token costs elsewhere. Its kernel takes keys
and values as two tensors, but one set of strides for both, those of the keys. In vLLM's pages, which hold both, heads
are twice as far apart as in a page of values; so where a map is reused its source, too, keeps keys and values in two
pages, each as large as those of its readers. All of them have the one block table that vLLM's layers of full attention
have in common: prefix caching, chunked prefill and continuous batching need nothing else.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from vllm import _custom_ops as kernels
from vllm.config import VllmConfig
from vllm.forward_context import get_forward_context
from vllm.model_executor.layers.attention.attention import get_attention_context
from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase
from vllm.v1.attention.backend import AttentionBackend
from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend, _get_attn_isa
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheSpec, SlidingWindowSpec

from uniattn_pl.serving.vllm.writing_ops import register_writing_op


@dataclass(frozen=True)
class PageShape:
    """What a page of keys, or of values, holds of a token.

    Attributes:
        heads: of keys or values.
        size: D, of each.
        room: heads that there is room for: as many as in the pages that the kernel reads together with these.
        window: tokens that are kept; None: all.
    """

    heads: int
    size: int
    room: int
    window: int | None


class SeparatePages(nn.Module, AttentionLayerBase):
    """The pages of a layer's keys, or of its values, known to vLLM as if they were an attention's."""

    def __init__(self, vllm_config: VllmConfig, name: str, shape: PageShape, queries: int) -> None:
        """
        Args:
            name: of these pages.
            queries: H, by which vLLM's kernel plans a forward.
        """
        super().__init__()
        vllm_config.compilation_config.static_forward_context[name] = self
        self.shape, self.num_heads = shape, queries
        self.kv_cache = torch.tensor([])  # [P, Hkv, N, D] once vLLM has given it memory

    def get_attn_backend(self) -> type[AttentionBackend]:
        """The one whose kernel reads these pages."""
        return CPUAttentionBackend

    def get_kv_cache_spec(self, vllm_config: VllmConfig) -> KVCacheSpec | None:
        """What vLLM allocates for these pages."""
        shape, window = self.shape, self.shape.window
        kind = FullAttentionSpec if window is None else SlidingWindowSpec
        spec: Any = kind(
            block_size=vllm_config.cache_config.block_size,
            num_kv_heads=shape.room,
            head_size=shape.size,
            head_size_v=0,
            dtype=vllm_config.model_config.dtype,
            **({} if window is None else {"sliding_window": window}),
        )
        if shape.heads == shape.room:
            return spec
        return replace(spec, num_kv_heads=shape.heads, page_size_padded=spec.page_size_bytes)


def attend_separately(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor | None,
    output: torch.Tensor,
    keys: str,
    values: str,
    heads_from: list[int],
    scale: float,
    window: int,
) -> None:
    """Keep new keys and values, and write into `output` what queries attend to over the pages `keys` and `values`.

    Shapes, of T tokens of all requests: query [T, H, D]; key [T, Hkv, D], rotated; value [T, Hkv, D]; output [T, H, D].

    Args:
        key: of a layer that reuses a map its source's, which are in their pages already.
        value: None: keys and values are in their pages already.
        heads_from: head h uses the map of the head `heads_from[h]` of `query`; empty: of head h.
        window: last tokens that a query sees; -1: all.
    """
    metadata, _, key_pages, slots = get_attention_context(keys)
    if metadata is None:  # vLLM looks how much memory a forward takes, before there is a cache
        output.zero_()
        return
    value_pages = get_forward_context().no_compile_layers[values].kv_cache
    isa = _get_attn_isa(query.dtype, key_pages.shape[2], query.shape[2])
    if value is not None and slots is not None:
        # The one kernel that knows the layout of pages writes both; keys that are there are written again, as they are.
        count = key.shape[1]
        for first in range(0, value.shape[1], count):
            some = slice(first, first + count)
            kernels.cpu_attn_reshape_and_cache(key, value[:, some], key_pages, value_pages[:, some], slots, isa)
    call = _KernelCall(metadata, scale, window, isa)
    tokens, heads = metadata.num_actual_tokens, query.shape[1]
    query, output = query[:tokens], output[:tokens]
    if not heads_from and key_pages.shape[1] == value_pages.shape[1]:
        call.attend(query, key_pages, value_pages, output, metadata.scheduler_metadata)
        return
    # The kernel has one number of heads for keys and values, and neighbouring queries use the same of both: so a call
    # for each pair of a head of keys and one of values that meet anywhere.
    meeting: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
    for head, of_map in enumerate(heads_from or range(heads)):
        meeting[of_map * key_pages.shape[1] // heads, head * value_pages.shape[1] // heads].append((head, of_map))
    for (of_key, of_value), pairs in meeting.items():
        own, of_maps = map(list, zip(*pairs, strict=True))
        part = query[:, of_maps]
        result = torch.empty_like(part)
        pages = key_pages[:, of_key : of_key + 1], value_pages[:, of_value : of_value + 1]
        call.attend(part, *pages, result, call.schedule(part))
        output[:, own] = result


@dataclass(frozen=True)
class _KernelCall:
    """vLLM's kernel on the requests of one forward."""

    metadata: Any
    scale: float
    window: int
    isa: str

    def schedule(self, query: torch.Tensor) -> torch.Tensor:
        """How the kernel divides its work, for queries [T, n, D] of one head of keys and values."""
        return kernels.cpu_attn_get_scheduler_metadata(
            num_reqs=len(self.metadata.seq_lens),
            num_heads=query.shape[1],
            num_kv_heads=1,
            head_dim=query.shape[2],
            seq_lens=self.metadata.seq_lens,
            dtype=query.dtype,
            query_start_loc=self.metadata.query_start_loc,
            causal=self.metadata.causal,
            sliding_window_size=self.window,
            isa=self.isa,
            enable_kv_split=False,
        )

    def attend(
        self,
        query: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        output: torch.Tensor,
        schedule: torch.Tensor,
    ) -> None:
        """Shapes: query and output [T, H, D], keys and values [P, Hkv, N, D] of the same strides."""
        kernels.cpu_attention_with_kv_cache(
            query=query,
            key_cache=keys,
            value_cache=values,
            output=output,
            query_start_loc=self.metadata.query_start_loc,
            seq_lens=self.metadata.seq_lens,
            scale=self.scale,
            causal=self.metadata.causal,
            alibi_slopes=None,
            sliding_window=self.window,
            block_table=self.metadata.block_table,
            softcap=0,
            scheduler_metadata=schedule,
            s_aux=None,
        )


register_writing_op("uniattn_attend_separately", attend_separately)
