"""An attention as its layer asks for it, computed by the Triton kernels."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch

from uniattn_pl.kernels.map_memory import tiled_limit
from uniattn_pl.kernels.triton_maps.availability import can_compute, triton_runs_on
from uniattn_pl.kernels.triton_maps.kept_rows import RowMap, row_attention
from uniattn_pl.kernels.triton_maps.kept_tiles import TiledMap, tiled_attention
from uniattn_pl.kernels.triton_maps.measured_cards import tiles_for
from uniattn_pl.kernels.triton_maps.tile_layout import MaskStructure, TileShape


def triton_can(query: torch.Tensor, mask: torch.Tensor | None, arguments: Mapping[str, Any], *, fp8: bool) -> bool:
    """Whether the kernels run on this device, and compute all that is asked."""
    return triton_runs_on(query.device.type, fp8=fp8) and can_compute(query, mask, arguments)


def measured_tiles_for(query: torch.Tensor, key: torch.Tensor, attention: Any) -> TileShape | None:
    """The shape by which the tiles of this prompt's map win on this card; None: they do not, or are too large.

    Args:
        query: [B, H, L, D].
        key: [B, Hkv, S, D].
        attention: the source, which knows how many layers read its map.
    """
    batch, heads, length, head_dim = query.shape
    card = None if length == 1 or torch.compiler.is_compiling() else card_of(query.device)
    if card is None:
        return None
    pairs = length * (key.shape[-2] - length // 2)  # of a chunk: all that came before, and half of itself
    if batch * heads * pairs * query.element_size() > tiled_limit(attention.config):
        return None
    return tiles_for(card, query.dtype, head_dim, length, getattr(attention, "map_readers", 1))


@lru_cache
def card_of(device: torch.device) -> str | None:
    """The name of a card, by which measurements are kept."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else None


def keep_row(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    arguments: Mapping[str, Any],
) -> tuple[torch.Tensor, RowMap]:
    """`row_attention` with what a family passes its kernels."""
    return row_attention(query, key, value, mask, **_options(arguments))


def keep_tiles(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    structure: MaskStructure,
    arguments: Mapping[str, Any],
    *,
    fp8: bool,
    shape: TileShape | None,
) -> tuple[torch.Tensor, TiledMap]:
    """`tiled_attention` with what a family passes its kernels; in 8 bits, or in bfloat16 unless queries have more."""
    tile_dtype = torch.float8_e4m3fn if fp8 else query.dtype
    return tiled_attention(
        query, key, value, structure=structure, tile_dtype=tile_dtype, shape=shape, **_options(arguments)
    )


def _options(arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {name: arguments.get(given) for name, given in NAMES.items()}


NAMES = {"scaling": "scaling", "softcap": "softcap", "sinks": "s_aux"}
"""Our names for what transformers passes."""
