"""The divergence of a source's map from its readers': in blocks what it is of whole maps, and a loss that trains."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from uniattn_pl.losses.map_divergence import MapInputs, map_divergence

SIZE = 8
SCALING = SIZE**-0.5


def layer(seed: int, length: int = 11, heads: int = 4, kv_heads: int = 2, batch: int = 2, **options: Any) -> MapInputs:
    generator = torch.Generator().manual_seed(seed)
    queries = torch.randn(batch, heads, length, SIZE, generator=generator)
    keys = torch.randn(batch, kv_heads, length, SIZE, generator=generator)
    return MapInputs(queries, keys, scaling=SCALING, **options)


def log_row(layer: MapInputs, b: int, h: int, t: int, keys: list[int]) -> torch.Tensor:
    """Log probabilities, in float64, of the keys that are seen."""
    group = h // (layer.queries.shape[1] // layer.keys.shape[1])
    scores = layer.keys[b, group, keys].double() @ layer.queries[b, h, t].double() * layer.scaling
    if layer.softcap is not None:
        scores = layer.softcap * (scores / layer.softcap).tanh()
    return scores.log_softmax(0)


def dense(source: MapInputs, readers: list[MapInputs], segments: torch.Tensor, counted: torch.Tensor) -> float:
    """By the definition, pair by pair, in float64."""
    batch, heads, length, _ = source.queries.shape
    total = 0.0
    for b in range(batch):
        for t in range(length):
            if segments[b, t] < 0 or not counted[b, t]:
                continue
            keys = [j for j in range(t + 1) if segments[b, j] == segments[b, t]]
            of_source = [j for j in keys if source.window is None or j > t - source.window]
            for reader in readers:
                seen = [j for j in of_source if reader.window is None or j > t - reader.window]
                for h in range(heads):
                    served_by = h if reader.heads_from is None else reader.heads_from[h]
                    p = log_row(reader, b, h, t, seen)
                    q = log_row(source, b, served_by, t, of_source)[[of_source.index(j) for j in seen]]
                    total += float((p.exp() * (p - q)).sum()) / heads
    return total


@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 2), min_size=11, max_size=11).map(sorted), min_size=2, max_size=2),
    st.integers(0, 10),
    st.lists(st.booleans(), min_size=22, max_size=22),
    st.sampled_from([(None, None), (None, 2), (3, 3), (3, 1)]),
    st.sampled_from([None, 0.7]),
    st.lists(st.none() | st.lists(st.integers(0, 3), min_size=4, max_size=4), min_size=1, max_size=3),
    st.integers(1, 12),
)
def test_in_blocks_it_is_what_the_definition_says(
    packed: list[list[int]],
    padding: int,
    counts: list[bool],
    windows: tuple[int | None, int | None],
    softcap: float | None,
    served_by: list[list[int] | None],
    rows: int,
) -> None:
    segments, counted = torch.tensor(packed), torch.tensor(counts).view(2, 11)
    segments[1, 11 - padding :] = -1
    counted[1, 11 - padding :] = False
    # a source may have keys of its own number, and readers a narrower window
    source = layer(0, kv_heads=1, window=windows[0], softcap=softcap)
    of_readers = {"window": windows[1], "softcap": softcap}
    readers = [layer(seed, heads_from=heads, **of_readers) for seed, heads in enumerate(served_by, start=1)]
    found = map_divergence(source, readers, segments, counted, rows=rows)
    assert float(found) == pytest.approx(dense(source, readers, segments, counted), rel=1e-5, abs=1e-5)


WHOLE = torch.zeros(2, 11, dtype=torch.int64)
ALL = torch.ones(2, 11, dtype=torch.bool)


def test_gradients_do_not_depend_on_the_blocks_and_reach_the_source_alone() -> None:
    gradients = []
    for rows in (2, 64):
        source, reader = layer(0), layer(1, heads_from=[1, 1, 0, 3])
        inputs = [source.queries, source.keys, reader.queries, reader.keys]
        for tensor in inputs:
            tensor.requires_grad_()
        map_divergence(source, [reader], WHOLE, ALL, rows=rows).backward()
        assert [tensor.grad is None for tensor in inputs] == [False, False, True, True]
        gradients.append([source.queries.grad, source.keys.grad])
    for blocks, whole in zip(*gradients, strict=True):
        assert torch.allclose(blocks, whole, atol=1e-6)
        assert whole.abs().max() > 1e-3


def test_it_is_zero_of_equal_maps_and_falls_by_descent() -> None:
    assert float(map_divergence(layer(0), [layer(0)], WHOLE, ALL)) == pytest.approx(0, abs=1e-5)
    source, readers = layer(0), [layer(1), layer(2)]
    parameters = [source.queries.requires_grad_(), source.keys.requires_grad_()]
    optimizer = torch.optim.Adam(parameters, lr=0.05)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = map_divergence(source, readers, WHOLE, ALL)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.6 * losses[0]


def test_autocast_rounds_nothing() -> None:
    exact = map_divergence(layer(0), [layer(1)], WHOLE, ALL)
    with torch.autocast("cpu", torch.bfloat16):
        assert float(map_divergence(layer(0), [layer(1)], WHOLE, ALL)) == float(exact)


def test_a_batch_of_padding_alone_is_zero() -> None:
    assert float(map_divergence(layer(0), [layer(1)], WHOLE - 1, ~ALL)) == 0
