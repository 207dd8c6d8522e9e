"""Tiles of a prompt's map against the formula: the source's output, and other values under the same map."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.kernels.formula import Drawn, attention_by_formula, drawn_attention
from tests.kernels.interpreter import NEEDS_TRITON, runs_on

from uniattn_pl.kernels.map_handles import HeadIndex
from uniattn_pl.kernels.triton_maps.kept_tiles import TiledMap, tiled_attention, tiled_product
from uniattn_pl.kernels.triton_maps.tile_layout import MaskStructure, TileShape, structure_of, tile_layout

pytestmark = NEEDS_TRITON
SMALL = TileShape(rows=16, columns=16, warps=2, stages=1)
# By the rounding of what is stored: none in float32 but the order of sums; 2^-9 of each weight in bfloat16, 2^-4 in 8
# bits, with weights that sum to 1 and values of about 1, of which the largest is near 4.
BOUNDS = {torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 3e-2, torch.float8_e4m3fn: 2.5e-1}


def on_both(drawn: Drawn, structure: MaskStructure, tile_dtype: torch.dtype, shape: TileShape) -> TiledMap:
    """Check the source and a reader of the case against the formula; returns the map."""
    mask = structure.as_mask(drawn.queries, drawn.keys, drawn.query.device)
    options: dict[str, Any] = {"scaling": drawn.scaling, "softcap": drawn.softcap, "sinks": drawn.sinks}
    output, tiled_map = tiled_attention(
        drawn.query, drawn.key, drawn.value, structure=structure, tile_dtype=tile_dtype, shape=shape, **options
    )
    close = {"rtol": 0, "atol": BOUNDS[drawn.query.dtype]}
    expected = attention_by_formula(drawn, drawn.value, mask)
    torch.testing.assert_close(output.float(), expected, **close)
    close = {"rtol": 0, "atol": max(BOUNDS[drawn.query.dtype], BOUNDS[tile_dtype])}
    for heads in (None, drawn.heads):
        read = tiled_product(tiled_map, drawn.other, None if heads is None else HeadIndex(heads))
        torch.testing.assert_close(read.float(), attention_by_formula(drawn, drawn.other, mask, heads), **close)
    return tiled_map


def structure_for(drawn: Drawn, window: int | None, padded: bool) -> MaskStructure:
    starts = None
    if padded:  # one sequence of padding but for its last token
        limits = torch.linspace(0, drawn.keys - 1, len(drawn.query))
        starts = limits.int().to(drawn.query.device)
    return MaskStructure(drawn.keys - drawn.queries, window, starts)


@settings(max_examples=25, deadline=None)
@given(
    drawn=drawn_attention(),
    tile_dtype=st.sampled_from(list(BOUNDS)),
    window=st.sampled_from([None, None, 1, 5, 21]),
    padded=st.booleans(),
)
def test_source_and_readers_give_what_the_formula_gives(
    device: str, drawn: Drawn, tile_dtype: torch.dtype, window: int | None, padded: bool
) -> None:
    runs_on(device)
    drawn = drawn.to(device)
    on_both(drawn, structure_for(drawn, window, padded), tile_dtype, SMALL)


@pytest.mark.parametrize("head_dim", [64, 128, 256])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_untuned_tiles_are_right_at_every_head_size(device: str, head_dim: int, dtype: torch.dtype) -> None:
    runs_on(device)
    drawn = Drawn.make(1, 1, 2, 130, 150, head_dim, dtype=dtype).to(device)
    _, tiled_map = tiled_attention(drawn.query, drawn.key, drawn.value, structure=structure_for(drawn, None, False))
    on_both(drawn, structure_for(drawn, None, False), dtype, tiled_map.layout.shape)


def test_rising_scores_are_rescaled(device: str) -> None:
    """Every tile's maximum is far above the one before: a reader that forgot to rescale would be far off."""
    runs_on(device)
    drawn = Drawn.make(1, 1, 1, 64, 64, 64).to(device)
    drawn.key.copy_(drawn.query.mean(dim=(0, 1, 2)) * torch.linspace(0, 30, 64, device=device)[:, None])
    tiled_map = on_both(drawn, MaskStructure(), torch.float32, SMALL)
    last = tiled_map.layout.tile_starts.tolist()[-2:]
    maxima = tiled_map.maxima[0, 0, last[0] : last[1], -1]
    assert maxima[-1] - maxima[0] > 1


@pytest.mark.parametrize("tile_dtype", [torch.bfloat16, torch.float8_e4m3fn])
def test_only_tiles_that_a_query_sees_exist(device: str, tile_dtype: torch.dtype) -> None:
    """n (n + 1) / 2 of n x n tiles, in 2 bytes or 1, with a maximum per row and tile and one sum per row."""
    runs_on(device)
    drawn = Drawn.make(2, 1, 2, 128, 128, 16).to(device)
    _, tiled_map = tiled_attention(drawn.query, drawn.key, drawn.value, tile_dtype=tile_dtype, shape=SMALL)
    blocks, heads = 128 // 16, 2 * 2
    tiles = heads * blocks * (blocks + 1) // 2
    assert tiled_map.nbytes == tiles * (16 * 16 * tile_dtype.itemsize + 16 * 4) + heads * 128 * 4


def test_padding_that_all_sequences_have_in_common(device: str) -> None:
    """A mask of one sequence stands for all of a batch, and so do its starts."""
    runs_on(device)
    drawn = Drawn.make(3, 1, 2, 40, 40, 16).to(device)
    mask = MaskStructure(starts=torch.tensor([7], dtype=torch.int32, device=device)).as_mask(40, 40, drawn.query.device)
    structure = structure_of(mask, queries=40, window=None)
    assert structure is not None
    assert structure.starts is not None
    on_both(drawn, structure, torch.float32, SMALL)


def test_a_window_leaves_out_what_lies_before_it() -> None:
    layout = tile_layout(512, 512, 0, 64, TileShape(rows=64, columns=32), torch.device("cpu"))
    assert layout.first_tiles.tolist() == [0, *(2 * block - 2 for block in range(1, 8))]
    assert layout.tile_starts.tolist() == [0, 2, *(2 + 4 * block for block in range(1, 8))]


def test_a_dtype_that_tiles_cannot_have_is_refused() -> None:
    drawn = Drawn.make(1, 1, 1, 4, 4, 16)
    with pytest.raises(ValueError, match=r"tiles are kept in torch\.bfloat16, .*, not in torch\.int8"):
        tiled_attention(drawn.query, drawn.key, drawn.value, tile_dtype=torch.int8)


@settings(max_examples=80, deadline=None)
@given(
    st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(0, 9)),
    st.sampled_from([None, 1, 3, 8]),
    st.lists(st.integers(0, 8), min_size=3, max_size=3),
)
def test_the_structure_of_a_mask_is_found_again(
    sizes: tuple[int, int, int], window: int | None, starts: list[int]
) -> None:
    batch, queries, past = sizes
    keys = queries + past
    padding = torch.tensor([min(start, keys - 1) for start in starts[:batch]], dtype=torch.int32)
    mask = MaskStructure(past, window, padding).as_mask(queries, keys, torch.device("cpu"))
    found = structure_of(mask, queries=queries, window=window)
    if bool(mask[:, :, -1].any(-1).all()):  # the last token of every sequence is one
        assert found is not None
        real = mask.any(-1, keepdim=True)
        assert torch.equal(found.as_mask(queries, keys, mask.device) & real, mask)


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 8), st.data())
def test_a_mask_of_another_structure_has_none(length: int, data: st.DataObject) -> None:
    """One key in the middle hidden from one query that sees those around it, or one beyond its own shown."""
    mask = torch.ones(length, length, dtype=torch.bool).tril()[None, None]
    row = data.draw(st.integers(0, length - 2))
    column = data.draw(st.integers(1, length - 1))
    mask[0, 0, row, column] = not mask[0, 0, row, column]
    found = structure_of(mask, queries=length, window=None)
    assert found is None or torch.equal(found.as_mask(length, length, mask.device)[0, 0, row], mask[0, 0, row])
