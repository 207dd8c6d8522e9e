"""Where keeping the tiles of a prompt's map is faster than computing the map again: what was measured on a card.

A table of times per card, dtype and head size, one row per length. That of the package is beside this file; one that
`bench.tune_kernels` wrote on this machine comes before it. Without a row for a card nothing is kept.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import torch

from uniattn_pl.files import atomic_file, cache_folder
from uniattn_pl.kernels.triton_maps.tile_layout import TileShape

PACKAGED = Path(__file__).with_name("measured_cards.json")


@dataclass(frozen=True)
class MeasuredTiles:
    """Milliseconds of one attention with H heads and B sequences at one length, medians.

    Attributes:
        card: its name, as torch gives it.
        dtype: of queries, keys and values.
        head_dim: D.
        length: L = S, causal.
        stock_ms: the fused kernel that a replay runs once more for every reader.
        source_ms, reader_ms: of the tiled kernels.
        shape: of the tiles, the fastest that was tried.
    """

    card: str
    dtype: str
    head_dim: int
    length: int
    stock_ms: float
    source_ms: float
    reader_ms: float
    shape: TileShape

    def faster(self, readers: int) -> bool:
        """Whether a source and its readers take less time with tiles than with replays."""
        return self.source_ms + readers * self.reader_ms < (1 + readers) * self.stock_ms


def own_table() -> Path:
    """Where this machine's measurements are kept."""
    return cache_folder() / PACKAGED.name


def faster_tiles(rows: Iterable[MeasuredTiles], *, length: int, readers: int) -> TileShape | None:
    """The shape by which tiles win at a length, judged by the longest measured one that is not longer; None: never.

    Args:
        rows: of one card, dtype and head size.
        length: L.
        readers: layers that read the map.
    """
    below = max((row for row in rows if row.length <= length), key=lambda row: row.length, default=None)
    return below.shape if below is not None and below.faster(readers) else None


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def tiles_for(card: str, dtype: torch.dtype, head_dim: int, length: int, readers: int) -> TileShape | None:
    """What the tables say of a card: `faster_tiles` of its rows."""
    name = str(dtype).removeprefix("torch.")
    rows = [row for row in _tables() if (row.card, row.dtype, row.head_dim) == (card, name, head_dim)]
    return faster_tiles(rows, length=length, readers=readers)


def read_table(path: Path) -> list[MeasuredTiles]:
    """The rows of a table; none where there is none, or one that cannot be read: then nothing was measured."""
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        return [MeasuredTiles(**{**row, "shape": TileShape(**row["shape"])}) for row in rows]
    except (OSError, ValueError, TypeError, KeyError):
        return []


def write_table(path: Path, rows: Iterable[MeasuredTiles]) -> None:
    """Put rows in the place of those of the same card, dtype and head size; the file is whole at any time."""
    new = list(rows)
    replaced = {(row.card, row.dtype, row.head_dim) for row in new}
    kept = [row for row in read_table(path) if (row.card, row.dtype, row.head_dim) not in replaced]
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as file:
        file.write((json.dumps([asdict(row) for row in [*kept, *new]], indent=1) + "\n").encode())
    _tables.cache_clear()


@lru_cache(maxsize=1)
def _tables() -> tuple[MeasuredTiles, ...]:
    """The machine's own rows, and of the package's those that it has none for."""
    own = read_table(own_table())
    known = {(row.card, row.dtype, row.head_dim) for row in own}
    packaged = (row for row in read_table(PACKAGED) if (row.card, row.dtype, row.head_dim) not in known)
    return (*own, *packaged)
