"""The row of a decoding step against the formula: the source's output, and other values under the same row."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.kernels.formula import Drawn, attention_by_formula, drawn_attention
from tests.kernels.interpreter import NEEDS_TRITON, runs_on

from uniattn_pl.kernels.map_handles import HeadIndex
from uniattn_pl.kernels.triton_maps.kept_rows import MOST_SPLITS, RowMap, row_attention, row_product, split

pytestmark = NEEDS_TRITON
# Scores are kept in float32; outputs are rounded to their own dtype, weights before the product too.
BOUNDS = {torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 3e-2}
MASKS = ("none", "padded", "holes", "a static cache", "per key head")


def visible(drawn: Drawn, kind: str) -> torch.Tensor | None:
    """Masks [B or 1, 1 or Hkv, 1, S] that show at least one key of every sequence."""
    batch, groups, keys = len(drawn.query), drawn.key.shape[1], drawn.keys
    generator = torch.Generator().manual_seed(keys)
    if kind == "none":
        return None
    if kind == "per key head":
        mask = torch.rand(batch, groups, 1, keys, generator=generator) > 0.5
        mask[..., keys // 2] = True
    elif kind == "holes":
        mask = torch.rand(1, 1, 1, keys, generator=generator) > 0.5
        mask[..., -1] = True
    elif kind == "a static cache":
        mask = (torch.arange(keys) <= keys // 3)[None, None, None]
    else:
        mask = torch.arange(keys) >= torch.linspace(0, keys - 1, batch)[:, None, None, None]
    return mask.to(drawn.query.device)


def on_both(drawn: Drawn, mask: torch.Tensor | None) -> RowMap:
    """Check the source and a reader of the case against the formula; returns the row."""
    options = {"scaling": drawn.scaling, "softcap": drawn.softcap, "sinks": drawn.sinks}
    output, row = row_attention(drawn.query, drawn.key, drawn.value, mask, **options)
    close = {"rtol": 0, "atol": BOUNDS[drawn.query.dtype]}
    torch.testing.assert_close(output.float(), attention_by_formula(drawn, drawn.value, mask), **close)
    for heads in (None, drawn.heads):
        read = row_product(row, drawn.other, None if heads is None else HeadIndex(heads))
        seen = mask
        if heads is not None and mask is not None and mask.shape[1] > 1:
            continue  # a mask per key head with heads of other groups: nobody asks for it
        torch.testing.assert_close(read.float(), attention_by_formula(drawn, drawn.other, seen, heads), **close)
    return row


@settings(max_examples=40, deadline=None)
@given(drawn=drawn_attention(one_query=True), kind=st.sampled_from(MASKS))
def test_source_and_readers_of_a_row_give_what_the_formula_gives(device: str, drawn: Drawn, kind: str) -> None:
    runs_on(device)
    drawn = drawn.to(device)
    on_both(drawn, visible(drawn, kind))


def test_rising_scores_of_a_row_are_rescaled(device: str) -> None:
    """Every part of the cache has scores far above those before it."""
    runs_on(device)
    drawn = Drawn.make(2, 2, 2, 1, 700, 64).to(device)
    drawn.key.copy_(drawn.query.mean(dim=(0, 1, 2)) * torch.linspace(0, 60, 700, device=device)[:, None])
    row = on_both(drawn, None)
    assert row.logits.amax() - row.logits.amin() > 10


def test_what_a_mask_hides_is_never_read(device: str) -> None:
    """NaN in the unused part of a static cache reaches nothing: a product with zero would keep it."""
    runs_on(device)
    drawn = Drawn.make(1, 2, 2, 1, 300, 64).to(device)
    mask = visible(drawn, "a static cache")
    assert mask is not None
    for tensor in (drawn.key, drawn.value, drawn.other):
        tensor[..., ~mask[0, 0, 0], :] = torch.nan
    output, row = row_attention(drawn.query, drawn.key, drawn.value, mask)
    assert output.isfinite().all()
    assert row_product(row, drawn.other).isfinite().all()


def test_values_may_be_of_another_size_than_keys(device: str) -> None:
    runs_on(device)
    drawn = Drawn.make(1, 2, 3, 1, 90, 64).to(device)
    _, row = row_attention(drawn.query, drawn.key, drawn.value)
    narrow = drawn.other[..., :24]
    expected = attention_by_formula(drawn, narrow, None)
    torch.testing.assert_close(row_product(row, narrow), expected, rtol=0, atol=1e-5)


def test_a_compiled_step_holds_the_kernels_as_they_are(device: str) -> None:
    runs_on(device)
    drawn = Drawn.make(1, 2, 2, 1, 130, 64).to(device)

    def step(value: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        output, row = row_attention(drawn.query, drawn.key, value)
        return output + row_product(row, other)

    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")(drawn.value, drawn.other)
    torch.testing.assert_close(compiled, step(drawn.value, drawn.other))


@given(st.integers(1, 300), st.integers(1, 200_000), st.sampled_from([16, 32, 64]))
def test_parts_of_a_cache_cover_it_once(pairs: int, keys: int, columns: int) -> None:
    splits, chunk = split(pairs, keys, columns, torch.device("cpu"))
    assert chunk % columns == 0
    assert (splits - 1) * chunk < keys <= splits * chunk
    assert splits <= MOST_SPLITS


@pytest.mark.parametrize("keys", [1, 64, 65])
def test_short_caches(device: str, keys: int) -> None:
    runs_on(device)
    on_both(Drawn.make(2, 1, 8, 1, keys, 64).to(device), None)
