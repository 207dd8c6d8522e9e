"""A prompt's attention that keeps the tiles of its map, and the product of these with a reader's values.

Bound per layer, B sequences, L = S tokens, n = L^2 / 2 weights of a head: a source 2 n (D + Dv) H FLOPs and a write
of n H (2 bytes in bfloat16, 1 in fp8); a reader 2 n Dv H FLOPs and one read of the same.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch

from uniattn_pl.kernels.map_handles import HeadIndex
from uniattn_pl.kernels.triton_maps.tile_layout import MaskStructure, TileLayout, TileShape, tile_layout, untuned

# exp(s - m) lies between 0 and 1: by 256 it fills the range of e4m3 (448), whose least number is then 2^-17 of it.
FP8_SCALE = 256.0
TILE_DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float8_e4m3fn)


@dataclass(frozen=True)
class TiledMap:
    """A map as its source left it.

    Attributes:
        tiles: exp(s - m) [B, H, tiles, rows, columns], times a constant in fp8.
        maxima: m of each row of each tile [B, H, tiles, rows], to the base 2.
        lse: log2 of the sum of exp(s) of each row [B, H, L].
        layout: which tiles these are.
        queries, keys: L and S.
    """

    tiles: torch.Tensor
    maxima: torch.Tensor
    lse: torch.Tensor
    layout: TileLayout
    queries: int
    keys: int

    @property
    def nbytes(self) -> int:
        """Of all that a reader reads besides its values."""
        return self.tiles.nbytes + self.maxima.nbytes + self.lse.nbytes

    def apply(self, value: torch.Tensor, attention: Any, heads: HeadIndex | None) -> tuple[torch.Tensor, None]:
        """`tiled_product`, and no map: there is none as a whole."""
        return tiled_product(self, value, heads), None

    def to(self, device: torch.device | str, *, non_blocking: bool) -> TiledMap:
        """The same on another device."""
        tiles, maxima, lse = (
            tensor.to(device, non_blocking=non_blocking) for tensor in (self.tiles, self.maxima, self.lse)
        )
        layout = replace(
            self.layout,
            first_tiles=self.layout.first_tiles.to(device),
            tile_starts=self.layout.tile_starts.to(device),
        )
        return replace(self, tiles=tiles, maxima=maxima, lse=lse, layout=layout)


def tiled_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    structure: MaskStructure = MaskStructure(),  # noqa: B008 - frozen
    scaling: float | None = None,
    softcap: float | None = None,
    sinks: torch.Tensor | None = None,
    tile_dtype: torch.dtype = torch.bfloat16,
    shape: TileShape | None = None,
) -> tuple[torch.Tensor, TiledMap]:
    """Attend causally, and keep the tiles of the map; not differentiable.

    Args:
        query: [B, H, L, D].
        key, value: [B, Hkv, S, D] and [B, Hkv, S, Dv], H a multiple of Hkv; values are never repeated.
        structure: which keys a query sees.
        scaling: of the products; None: 1 / sqrt(D).
        softcap: c of c tanh(s / c), by which some families bound their scores (Gemma-2).
        sinks: one score per head [H] that takes part in the softmax and has no value (gpt-oss).
        tile_dtype: of the tiles that are kept.
        shape: of the tiles; None: one that needs no tuning.

    Returns:
        The output [B, L, H, Dv] and the map's tiles.

    Raises:
        ValueError: a dtype that tiles cannot have.
    """
    from uniattn_pl.kernels.triton_maps.tiled_kernels import source_kernel

    if tile_dtype not in TILE_DTYPES:
        raise ValueError(f"tiles are kept in {', '.join(map(str, TILE_DTYPES))}, not in {tile_dtype}.")
    batch, heads, queries, head_dim = query.shape
    keys, value_dim = value.shape[-2:]
    shape = untuned(max(head_dim, value_dim) * query.element_size()) if shape is None else shape
    layout = tile_layout(queries, keys, structure.first_position, structure.window, shape, query.device)
    query, key, value = (rows_whole(tensor) for tensor in (query, key, value))
    output = query.new_empty(batch, queries, heads, value_dim)
    tiles = query.new_empty(batch, heads, layout.tiles, shape.rows, shape.columns, dtype=tile_dtype)
    maxima = query.new_empty(batch, heads, layout.tiles, shape.rows, dtype=torch.float32)
    lse = query.new_empty(batch, heads, queries, dtype=torch.float32)
    with launching_on(query.device):
        source_kernel[layout.row_blocks, batch * heads](
            query,
            key,
            value,
            output,
            tiles,
            maxima,
            lse,
            layout.first_tiles,
            layout.tile_starts,
            None if structure.starts is None else structure.starts.expand(batch).contiguous(),
            sinks,
            *query.stride()[:3],
            *key.stride()[:3],
            *value.stride()[:3],
            *output.stride()[:3],
            heads,
            heads // key.shape[1],
            queries,
            keys,
            structure.first_position,
            layout.tiles,
            head_dim**-0.5 if scaling is None else scaling,
            softcap or 0.0,
            window=structure.window or 0,
            has_starts=structure.starts is not None,
            has_sinks=sinks is not None,
            has_cap=softcap is not None,
            stored_scale=stored_scale(tile_dtype),
            precision=precision_of(query.dtype),
            rows=shape.rows,
            columns=shape.columns,
            head_size=head_dim,
            value_size=value_dim,
            head_block=block_of(head_dim),
            value_block=block_of(value_dim),
            num_warps=shape.warps,
            num_stages=shape.stages,
        )
    return output, TiledMap(tiles, maxima, lse, layout, queries, keys)


def tiled_product(tiled_map: TiledMap, value: torch.Tensor, heads_from: HeadIndex | None = None) -> torch.Tensor:
    """A tiled map times the values [B, Hkv, S, Dv] of another layer: [B, L, H, Dv].

    Args:
        tiled_map: of the source.
        value: the reader's own.
        heads_from: which head of the source serves each head; None: the one of its index.
    """
    from uniattn_pl.kernels.triton_maps.tiled_kernels import reader_kernel

    layout, shape = tiled_map.layout, tiled_map.layout.shape
    batch, source_heads = tiled_map.tiles.shape[:2]
    heads = source_heads if heads_from is None else len(heads_from.heads)
    value = rows_whole(value)
    value_dim = value.shape[-1]
    output = value.new_empty(batch, tiled_map.queries, heads, value_dim)
    with launching_on(value.device):
        reader_kernel[layout.row_blocks, batch * heads](
            tiled_map.tiles,
            tiled_map.maxima,
            tiled_map.lse,
            value,
            output,
            layout.first_tiles,
            layout.tile_starts,
            None if heads_from is None else heads_from.on(value.device),
            *value.stride()[:3],
            *output.stride()[:3],
            heads,
            source_heads,
            heads // value.shape[1],
            tiled_map.queries,
            tiled_map.keys,
            layout.tiles,
            aligned=heads_from is not None,
            stored_scale=stored_scale(tiled_map.tiles.dtype),
            precision=precision_of(value.dtype),
            rows=shape.rows,
            columns=shape.columns,
            value_size=value_dim,
            value_block=block_of(value_dim),
            num_warps=shape.warps,
            num_stages=shape.stages,
        )
    return output


def launching_on(device: torch.device) -> AbstractContextManager[Any]:
    """Triton launches on the current card, which need not be the one that holds a layer."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def stored_scale(tile_dtype: torch.dtype) -> float:
    """What tiles are multiplied with before they are stored."""
    return FP8_SCALE if tile_dtype == torch.float8_e4m3fn else 1.0


def rows_whole(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor [.., D] itself, or a copy, so that the numbers of a row lie side by side."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def precision_of(dtype: torch.dtype) -> str:
    """How products of float32 are taken: in float32, as torch does by default; of others it changes nothing."""
    return "ieee" if dtype == torch.float32 else "tf32"


def block_of(size: int) -> int:
    """The power of two that holds a head of this size; products need 16 at least."""
    return max(16, 1 << (size - 1).bit_length())
