"""Measuring on a card where tiles of a prompt's map beat computing it again, for the table that decides it.

At every length the fused kernel that a replay runs, and source and reader of every shape of tiles, are timed in turn;
the shape with the fastest Superblock of four is kept.
"""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from rich.console import Console
from torch.nn.functional import scaled_dot_product_attention
from transformers import PreTrainedModel

from uniattn_pl.display.text_table import print_table
from uniattn_pl.errors import UserError
from uniattn_pl.families.model_shape import shape_of
from uniattn_pl.kernels.triton_maps.asked_attention import card_of
from uniattn_pl.kernels.triton_maps.availability import triton_runs_on
from uniattn_pl.kernels.triton_maps.kept_tiles import tiled_attention, tiled_product
from uniattn_pl.kernels.triton_maps.measured_cards import MeasuredTiles, own_table, write_table
from uniattn_pl.kernels.triton_maps.tile_layout import TileShape
from uniattn_pl.plan.shape import Heads

SHAPES = (
    TileShape(),
    TileShape(rows=128, columns=64, warps=4, stages=3),
    TileShape(rows=128, columns=128, warps=8, stages=2),
    TileShape(rows=64, columns=64, warps=4, stages=3),
    TileShape(rows=64, columns=32, warps=4, stages=2),
    TileShape(rows=32, columns=16, warps=4, stages=1),  # fits any card, whatever the head and the dtype
)
READERS = 3
COLUMNS = ("tokens", "fused kernel", "source", "reader", f"1 + {READERS} layers", "tile", "kept by auto")


def check_tunable(device: torch.device) -> None:
    """Raise UserError where there is no card that the kernels run on."""
    if not triton_runs_on(device.type):
        raise UserError(
            "bench.tune_kernels measures Triton kernels on a CUDA card of compute capability 8.0 or more, and the "
            f"device of this run is {device}; leave it out here."
        )


def tune_kernels(model: PreTrainedModel, lengths: Sequence[int], *, rounds: int, console: Console) -> None:
    """Measure the model's heads at these lengths, print the table and keep it for this machine."""
    heads = shape_of(model.config).layers[0].heads
    card = card_of(model.device) or model.device.type
    measured = []
    for length in sorted(set(lengths)):
        console.print(f"tiles of {length} tokens", highlight=False)
        tensors = _random(heads, length, model)
        measured.append(measured_tiles(card, *tensors, rounds=rounds, shapes=SHAPES))
    write_table(own_table(), measured)
    print_table(f"Milliseconds of one attention on {card}", COLUMNS, [_row(row) for row in measured])
    console.print(f"kept in {own_table()}: reuse=auto decides by it from now on", highlight=False, soft_wrap=True)


def measured_tiles(
    card: str,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    rounds: int,
    shapes: Sequence[TileShape],
) -> MeasuredTiles:
    """Time the fused kernel, and source and reader of every shape, in turn; the best shape's medians.

    Args:
        card: by whose name the row is kept.
        query: [B, H, L, D].
        key, value: [B, Hkv, L, D].
        rounds: timings of each, after one that compiles.
        shapes: of tiles; one that does not fit the card's shared memory is left out.
    """
    stock: list[float] = []
    source, reader = defaultdict[TileShape, list[float]](list), defaultdict[TileShape, list[float]](list)
    left = list(shapes)
    for _ in range(rounds + 1):
        spent, _ = _timed(scaled_dot_product_attention, query, key, value, is_causal=True, enable_gqa=True)
        stock.append(spent)
        for shape in list(left):
            try:
                source_ms, (_, tiled_map) = _timed(tiled_attention, query, key, value, shape=shape)
                reader_ms, _ = _timed(tiled_product, tiled_map, value)
            except Exception as error:
                if type(error).__name__ != "OutOfResources":  # Triton's, which is not imported without a card
                    raise
                left.remove(shape)
                continue
            source[shape].append(source_ms)
            reader[shape].append(reader_ms)
    warm = slice(1, None)  # the first of each compiles
    medians = {
        shape: (statistics.median(source[shape][warm]), statistics.median(reader[shape][warm])) for shape in left
    }
    best = min(left, key=lambda shape: medians[shape][0] + READERS * medians[shape][1])
    source_best, reader_best = medians[best]
    return MeasuredTiles(
        card=card,
        dtype=str(query.dtype).removeprefix("torch."),
        head_dim=query.shape[-1],
        length=query.shape[-2],
        stock_ms=statistics.median(stock[warm]),
        source_ms=source_best,
        reader_ms=reader_best,
        shape=best,
    )


def _timed(work: Callable[..., Any], *args: Any, **kwargs: Any) -> tuple[float, Any]:
    """Milliseconds of some work, the device's included, and what it gave."""
    _wait()
    start = time.perf_counter()
    result = work(*args, **kwargs)
    _wait()
    return 1000 * (time.perf_counter() - start), result


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _random(heads: Heads, length: int, model: PreTrainedModel) -> tuple[torch.Tensor, ...]:
    """Query, key and value of one sequence, as this model's first layer would have them."""
    generator = torch.Generator(device=model.device).manual_seed(0)
    options: dict[str, Any] = {"generator": generator, "device": model.device, "dtype": model.dtype}
    query = torch.randn(1, heads.queries, length, heads.size, **options)
    key, value = torch.randn(2, 1, heads.groups, length, heads.size, **options)
    return query, key, value


def _row(row: MeasuredTiles) -> list[str]:
    tiled, again = row.source_ms + READERS * row.reader_ms, (1 + READERS) * row.stock_ms
    shape = f"{row.shape.rows} x {row.shape.columns}, {row.shape.warps} warps, {row.shape.stages} stages"
    times = [f"{value:.3f}" for value in (row.stock_ms, row.source_ms, row.reader_ms)]
    kept = "tiles" if row.faster(READERS) else "no, computed again"
    return [str(row.length), *times, f"{tiled:.3f} against {again:.3f}", shape, kept]
