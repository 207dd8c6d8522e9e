"""Where the tiles of a causal map lie: those on and below the diagonal, packed one after the other.

A map [L, S] is cut into tiles of `rows` x `columns`. Of a row of tiles those that any of its queries sees are kept,
from `first_tiles` on, and begin at `tile_starts` in the packed memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch


@dataclass(frozen=True)
class TileShape:
    """The size of a tile, and how the kernels that make and read it are run.

    Attributes:
        rows, columns: queries and keys of a tile.
        warps, stages: of Triton.
    """

    rows: int = 128
    columns: int = 64
    warps: int = 8
    stages: int = 3


def untuned(head_bytes: int) -> TileShape:
    """A shape that fits the 99 KiB of shared memory of every card since 2020, for a head of so many bytes.

    What a shape takes is what Triton says as it compiles (`tests/kernels/test_cards.py`).
    """
    if head_bytes <= 128:  # D = 64 in bfloat16
        return TileShape()
    if head_bytes <= 256:
        return TileShape(stages=2)
    if head_bytes <= 512:
        return TileShape(rows=64, columns=32, warps=4, stages=2)
    return TileShape(rows=32, columns=16, warps=4, stages=1)


@dataclass(frozen=True)
class MaskStructure:
    """Which keys a query sees, without a mask: query r of sequence b sees key c where

    max(starts[b], first_position + r - window + 1) <= c <= first_position + r.

    Attributes:
        first_position: which key the first query's own is: the tokens before a chunk.
        window: keys that a query sees at most; None: all.
        starts: first key of each sequence [B], where sequences are padded on the left; None: the first.
    """

    first_position: int = 0
    window: int | None = None
    starts: torch.Tensor | None = None

    def as_mask(self, queries: int, keys: int, device: torch.device) -> torch.Tensor:
        """The boolean mask [B or 1, 1, L, S], True: sees."""
        last = self.first_position + torch.arange(queries, device=device)[:, None]  # [L, 1]
        column = torch.arange(keys, device=device)[None]  # [1, S]
        seen = column <= last
        if self.window is not None:
            seen = seen & (column > last - self.window)
        if self.starts is None:
            return seen[None, None]
        return seen[None, None] & (column >= self.starts.to(device)[:, None])[:, None, None]


def structure_of(mask: torch.Tensor | None, *, queries: int, window: int | None) -> MaskStructure | None:
    """The structure that a boolean mask [B or 1, 1, L, S] has, or None where it has another; waits for the device.

    Args:
        mask: as an sdpa kernel takes it; None: causal from the top left.
        queries: L.
        window: that the layer's family passes its kernel.
    """
    if mask is None:
        return MaskStructure()
    if mask.dtype != torch.bool or mask.dim() != 4 or mask.shape[1] != 1:
        return None
    keys = mask.shape[-1]
    seen = mask[:, 0].any(dim=1)  # [B, S]: what any query sees
    last = keys - int(mask[0, 0, -1].flip(0).int().argmax())  # one past what the last query sees
    starts = seen.int().argmax(dim=-1).int()  # [B]
    found = MaskStructure(last - queries, window, starts if bool(starts.any()) else None)
    if found.first_position < 0:
        return None
    # A query of padding sees nothing here, whatever it sees there: nobody reads it.
    rebuilt = found.as_mask(queries, keys, mask.device)
    return found if torch.equal(rebuilt & mask.any(-1, keepdim=True), mask & rebuilt.any(-1, keepdim=True)) else None


@dataclass(frozen=True)
class TileLayout:
    """The tiles of one head's map: int32 on the device, `first_tiles` [row blocks], `tile_starts` and its end."""

    shape: TileShape
    first_tiles: torch.Tensor
    tile_starts: torch.Tensor
    row_blocks: int
    tiles: int


@lru_cache(maxsize=256)
def tile_layout(
    queries: int, keys: int, first_position: int, window: int | None, shape: TileShape, device: torch.device
) -> TileLayout:
    """The layout of a causal map [L, S]; the same for every layer of a forward, so made once."""
    firsts, starts = [], [0]
    for top in range(0, queries, shape.rows):
        bottom = min(top + shape.rows, queries)
        first = 0 if window is None else max(0, first_position + top - window + 1) // shape.columns
        end = -(-min(first_position + bottom, keys) // shape.columns)
        firsts.append(first)
        starts.append(starts[-1] + end - first)
    first_tiles, tile_starts = (torch.tensor(held, dtype=torch.int32, device=device) for held in (firsts, starts))
    return TileLayout(shape, first_tiles, tile_starts, row_blocks=len(firsts), tiles=starts[-1])
