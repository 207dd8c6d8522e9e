"""Attention and the reuse of its map, whatever computes them: `attend` and `apply_map`.

`attend` gives an output and a handle on the map; `apply_map` multiplies what the handle stands for with another
layer's values. Ways to do either are one file each beside this one; which one runs is decided in `choice.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from uniattn_pl.kernels.choice import (
    BACKEND,
    FAMILY,
    GROUPED,
    PLAIN_ARGUMENTS,
    ROWS,
    TILED,
    AttentionCall,
    Choice,
    choose,
)
from uniattn_pl.kernels.grouped import grouped_attention
from uniattn_pl.kernels.map_handles import SINKS, HeadIndex, KeptMap, MapHandle, ReplayedMap
from uniattn_pl.kernels.map_memory import map_bytes, map_limit
from uniattn_pl.kernels.stock import backend_kernel, backend_name, eager_attention, settings_of
from uniattn_pl.kernels.triton_maps.asked_attention import keep_row, keep_tiles, measured_tiles_for, triton_can
from uniattn_pl.kernels.triton_maps.tile_layout import MaskStructure
from uniattn_pl.plan.roles import TILES_FP8


@dataclass(frozen=True)
class AttentionRequest:
    """What a layer wants of its attention besides tensors.

    Attributes:
        attention: the layer's attention module, whose config and fields stock kernels read.
        arguments: what its family passes to a kernel: scaling, soft cap, window.
        visible_mask: the mask [B or 1, 1 or Hkv, L, S] of the tokens that the cache still holds, where it gave some
            up; otherwise the mask itself.
        map_read: other layers read the map.
        map_observed: the cache sums it.
        evicting: the cache gives tokens up.
        take: gives memory for the map (`MapBuffers.take` of this layer).
        masked_span: gives the columns that a boolean mask masks anywhere.
        structure: gives the structure that a mask over [L, S] has, if it has one (`structure_of`).
        causal: no mask stands for a causal one; to an encoder's states it does not, which Triton's kernels do not know.
    """

    attention: Any
    arguments: Mapping[str, Any]
    visible_mask: torch.Tensor | None
    map_read: bool
    map_observed: bool
    evicting: bool
    take: Callable[[tuple[int, ...], torch.Tensor], torch.Tensor]
    masked_span: Callable[[torch.Tensor], tuple[int, int]]
    structure: Callable[[torch.Tensor | None, int, int | None], MaskStructure | None]
    causal: bool = True


@dataclass(frozen=True)
class Attended:
    """An attention's output [B, L, H, D], its map [B, H, L, S] where one was computed, and a handle for readers."""

    output: torch.Tensor
    attention_map: torch.Tensor | None
    handle: MapHandle | None


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    request: AttentionRequest,
) -> Attended:
    """softmax(scale * Q K^T + mask) V as the layer's own kernel computes it, and a handle on the map.

    Shapes: query [B, H, L, D], key and value [B, Hkv, S, D], mask [B or 1, 1, L, S] as the stock kernel takes it.
    """
    attention, arguments, visible = request.attention, request.arguments, request.visible_mask
    tiles = measured_tiles_for(query, key, attention) if request.map_read and request.causal else None
    choice = choose(_call(query, key, request, tiles_faster=tiles is not None))
    if choice.kernel == ROWS:
        output, row = keep_row(query, key, value, visible, arguments)
        return Attended(output, None, row)
    if choice.kernel == TILED:
        structure = request.structure(mask, query.shape[-2], arguments.get("sliding_window"))
        if structure is not None:
            fp8 = settings_of(attention).reuse_mode == TILES_FP8
            output, tiled_map = keep_tiles(query, key, value, structure, arguments, fp8=fp8, shape=tiles)
            return Attended(output, None, tiled_map)
        choice = Choice(BACKEND, False, "the mask has no structure that tiles could follow")
    if visible is None and not request.causal and choice.kernel in (GROUPED, FAMILY):
        visible = query.new_ones((), dtype=torch.bool).expand(1, 1, query.shape[-2], key.shape[-2])
    attention_map: torch.Tensor | None
    if choice.kernel == GROUPED:
        output, attention_map = grouped_attention(
            query,
            key,
            value,
            visible,
            scaling=arguments.get("scaling"),
            take=request.take,
            masked_span=request.masked_span,
        )
    elif choice.kernel == FAMILY:
        output, attention_map = eager_attention(attention, query, key, value, visible, arguments)
    else:
        output, attention_map = backend_kernel(attention)(attention, query, key, value, visible, **arguments)
    handle: MapHandle | None = None
    # what kernels return beside sinks is not always the map: Granite's weighs it afterwards
    if choice.keeps_map and attention_map is not None and arguments.get(SINKS) is None:
        handle = KeptMap(attention_map)
    elif request.map_read:
        handle = ReplayedMap(query, key, mask, arguments)
    return Attended(output, attention_map, handle)


def apply_map(
    handle: MapHandle, value: torch.Tensor, attention: Any, heads: HeadIndex | None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The map behind `handle` times the values [B, Hkv, S, D] of another layer: [B, L, H, D], and the map if kept.

    Args:
        handle: of the source.
        value: the reader's own.
        attention: the reader's attention module.
        heads: which head of the source serves each head; None: the one of its index.
    """
    return handle.apply(value, attention, heads)


def _call(query: torch.Tensor, key: torch.Tensor, request: AttentionRequest, *, tiles_faster: bool) -> AttentionCall:
    config, arguments = settings_of(request.attention), request.arguments
    wanted = request.map_read and request.causal
    triton = wanted and triton_can(
        query, request.visible_mask, arguments, fp8=config.reuse_mode == TILES_FP8 and query.shape[-2] > 1
    )
    return AttentionCall(
        backend=backend_name(config),
        reuse_mode=config.reuse_mode,
        device=query.device.type,
        queries=query.shape[-2],
        keys=key.shape[-2],
        map_bytes=map_bytes(query, key),
        map_limit=map_limit(config, query.device),
        gradient=torch.is_grad_enabled(),
        compiling=torch.compiler.is_compiling(),
        plain=all(value is None or name in PLAIN_ARGUMENTS for name, value in arguments.items()),
        map_read=request.map_read,
        map_observed=request.map_observed,
        evicting=request.evicting,
        triton=triton,
        tiles_faster=tiles_faster,
    )
