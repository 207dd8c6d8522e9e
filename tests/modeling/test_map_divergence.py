"""The divergence of a source's map from its readers': in blocks what it is of whole maps, and a loss that trains."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from uniattn_pl.losses.map_divergence import MapInputs, map_divergence

SCALING = 8**-0.5


def layer(seed: int, length: int = 11, heads: int = 4, kv_heads: int = 2, batch: int = 2) -> MapInputs:
    generator = torch.Generator().manual_seed(seed)
    queries = torch.randn(batch, heads, length, 8, generator=generator)
    return MapInputs(queries, torch.randn(batch, kv_heads, length, 8, generator=generator))


def dense(source: MapInputs, readers: list[MapInputs], segments: torch.Tensor, window: int | None) -> float:
    """By the definition, pair by pair, in float64."""
    batch, heads, length, _ = source.queries.shape
    groups = heads // source.keys.shape[1]
    total, tokens = 0.0, int((segments >= 0).sum())
    for b in range(batch):
        for t in range(length):
            if segments[b, t] < 0:
                continue
            keys = [j for j in range(t + 1) if segments[b, j] == segments[b, t] and (window is None or j > t - window)]
            for h in range(heads):
                q, *others = (
                    (one.keys[b, h // groups, keys].double() @ one.queries[b, h, t].double() * SCALING).softmax(0)
                    for one in (source, *readers)
                )
                total += sum(float((p * (p.log() - q.log())).sum()) for p in others)
    return total / (heads * tokens)


@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 2), min_size=11, max_size=11).map(sorted), min_size=2, max_size=2),
    st.integers(0, 10),
    st.sampled_from([None, 1, 3]),
    st.integers(1, 12),
    st.integers(1, 3),
)
def test_in_blocks_it_is_what_the_definition_says(
    packed: list[list[int]], padding: int, window: int | None, rows: int, count: int
) -> None:
    segments = torch.tensor(packed)
    segments[1, 11 - padding :] = -1
    source, readers = layer(0), [layer(seed) for seed in range(1, 1 + count)]
    found = map_divergence(source, readers, segments, scaling=SCALING, window=window, rows=rows)
    assert float(found) == pytest.approx(dense(source, readers, segments, window), rel=1e-5, abs=1e-6)


def test_gradients_do_not_depend_on_the_blocks_and_reach_the_source_alone() -> None:
    segments = torch.zeros(2, 11, dtype=torch.int64)
    gradients = []
    for rows in (2, 64):
        source, reader = layer(0), layer(1)
        inputs = [source.queries, source.keys, reader.queries, reader.keys]
        for tensor in inputs:
            tensor.requires_grad_()
        map_divergence(source, [reader], segments, scaling=SCALING, rows=rows).backward()
        assert [tensor.grad is None for tensor in inputs] == [False, False, True, True]
        gradients.append([source.queries.grad, source.keys.grad])
    for blocks, whole in zip(*gradients, strict=True):
        assert torch.allclose(blocks, whole, atol=1e-7)
        assert whole.abs().max() > 1e-4


def test_it_is_zero_of_equal_maps_and_falls_by_descent() -> None:
    segments = torch.zeros(2, 11, dtype=torch.int64)
    assert float(map_divergence(layer(0), [layer(0)], segments, scaling=SCALING)) == pytest.approx(0, abs=1e-6)
    source, readers = layer(0), [layer(1), layer(2)]
    parameters = [source.queries.requires_grad_(), source.keys.requires_grad_()]
    optimizer = torch.optim.Adam(parameters, lr=0.05)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = map_divergence(source, readers, segments, scaling=SCALING)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.6 * losses[0]


def test_a_batch_of_padding_alone_is_zero() -> None:
    segments = torch.full((2, 11), -1)
    assert float(map_divergence(layer(0), [layer(1)], segments, scaling=SCALING)) == 0
