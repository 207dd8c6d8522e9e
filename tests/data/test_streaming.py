"""Rows that are read as they are trained on: once a pass, in bounded memory, gone on with exactly from anywhere."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice, pairwise, takewhile
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.data.conftest import byte_tokenizer

from uniattn_pl.data.collation import Collator
from uniattn_pl.data.records import Record, row_place
from uniattn_pl.data.streaming import row_stream, stream_loader
from uniattn_pl.data.streaming.encoded_chunks import ChunkEncoder, RowReader
from uniattn_pl.data.streaming.row_stream import Place, RowStream
from uniattn_pl.data.streaming.sequence_stream import EncodedStream
from uniattn_pl.data.streaming.stream_loader import StreamLoader, next_source
from uniattn_pl.errors import UserError

TOKENIZER = byte_tokenizer()
ROWS = 24  # three groups of two batches of four: twelve steps are two passes
SHARDS = st.lists(st.integers(0, ROWS), max_size=3).map(sorted).map(lambda cuts: [0, *cuts, ROWS])


@dataclass
class Numbers:
    """A shard of rows that are numbers, which counts those that were read."""

    name: str
    first: int
    count: int
    read: int = 0

    def records(self, first: int = 0) -> Iterator[Record]:
        for number in range(self.first + first, self.first + self.count):
            self.read += 1
            row = {"instruction": str(number), "input": "", "output": "y" * (1 + number % 7)}
            yield Record(row, partial(row_place, self.name, number))

    def contents(self) -> bytes:
        return self.name.encode()

    def size(self) -> None:
        return


def rows(borders: list[int], buffer: int = 5, seed: int = 0) -> RowStream:
    """Numbers from the first border to the last, in a shard between each two."""
    pairs = list(pairwise(borders))
    shards = [Numbers(f"shard {n}", begin, end - begin) for n, (begin, end) in enumerate(pairs)]
    return RowStream(shards, starts={}, buffer=buffer, seed=seed)


def numbers(units: list[list[Record]]) -> list[int]:
    return [int(record.value["instruction"]) for unit in units for record in unit]


def loader(*sources: list[int], weights: tuple[float, ...] = (1.0,), **options: Any) -> StreamLoader:
    encoder = ChunkEncoder(RowReader("alpaca"), TOKENIZER, 400, pack_documents=False)
    streams = [EncodedStream(f"s{n}", rows(borders, seed=n), encoder) for n, borders in enumerate(sources)]
    defaults = {"steps": 12, "batch_size": 4, "micro_batch_size": 1, "seed": 3}
    return StreamLoader(streams, weights, "contents", Collator(0), **{**defaults, **options})


def taken(batches: Any) -> list[list[int]]:
    """The numbers of every micro batch."""
    texts = [TOKENIZER.batch_decode(batch["input_ids"]) for batch in batches]
    return [[int(re.findall(r"Instruction:\n(\d+)", text)[0]) for text in of_batch] for of_batch in texts]


def steps(*ranks: StreamLoader) -> list[list[int]]:
    """What all ranks together take in every step, sorted."""
    found = [taken(one) for one in ranks]
    micro = ranks[0].accumulate
    return [
        sorted(number for one in found for batch in one[start : start + micro] for number in batch)
        for start in range(0, len(found[0]), micro)
    ]


def flat(parts: list[list[int]]) -> list[int]:
    return [one for part in parts for one in part]


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_loader, "GROUP", 2)
    monkeypatch.setattr(row_stream, "CHUNK", 2)


@settings(deadline=None, max_examples=50)
@given(SHARDS, st.integers(1, 12), st.integers(0, 3))
def test_a_pass_has_every_record_once_and_any_place_is_gone_on_from(
    borders: list[int], buffer: int, epoch: int
) -> None:
    found = takewhile(lambda chunk: chunk[0].epoch == epoch, rows(borders, buffer).chunks(Place(epoch)))
    order = [number for _, _, units in found for number in numbers(units)]
    assert sorted(order) == list(range(ROWS))
    assert (order == sorted(order)) == (buffer == 1)
    whole = [
        (place, first, numbers(units)) for place, first, units in islice(rows(borders, buffer).chunks(Place()), 20)
    ]
    for begin, (place, _, _) in enumerate(whole):
        again = islice(rows(borders, buffer).chunks(Place(*place.numbers())), 20 - begin)
        assert [(place, first, numbers(units)) for place, first, units in again] == whole[begin:]


@given(SHARDS, st.integers(1, 12))
def test_no_more_rows_are_held_than_the_buffer_has(borders: list[int], buffer: int) -> None:
    stream, given_back = rows(borders, buffer), 0
    for _, _, units in islice(stream.chunks(Place()), 20):
        read = sum(shard.read for shard in stream.shards)  # type: ignore[attr-defined]
        most = row_stream.CHUNK if buffer == 1 else buffer
        assert read - given_back <= most + 2, "the buffer, the row that finds it full, and one that might continue it"
        given_back += len(numbers(units))


@settings(deadline=None, max_examples=20)
@given(SHARDS, st.sampled_from([(1, 1), (1, 4), (2, 1), (2, 2), (4, 1)]))
def test_ranks_together_take_every_row_once_a_pass_in_the_steps_of_one(
    borders: list[int], sizes: tuple[int, int]
) -> None:
    ranks, micro = sizes
    alone = steps(loader(borders))
    assert sorted(flat(alone[:6])) == sorted(flat(alone[6:])) == list(range(ROWS))
    assert alone[:6] != alone[6:]
    parts = [loader(borders, rank=rank, world_size=ranks, micro_batch_size=micro) for rank in range(ranks)]
    assert steps(*parts) == alone


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 47), st.sampled_from([(1, 1), (1, 2), (2, 1)]), st.booleans())
def test_a_state_is_gone_on_from_with_other_ranks_and_micro_batches(
    position: int, sizes: tuple[int, int], two: bool
) -> None:
    sources: list[list[int]] = [[0, 10, ROWS], [1_000, 1_007]] if two else [[0, 10, ROWS]]
    weights = (2.0, 1.0) if two else (1.0,)
    whole = taken(loader(*sources, weights=weights))
    former = loader(*sources, weights=weights)
    batches = iter(former)
    assert taken(islice(batches, position)) == whole[:position]
    state = former.state_dict()
    resumed = loader(*sources, weights=weights)
    resumed.load_state_dict(state)
    assert taken(resumed) == whole[position:]
    assert resumed.source_counts() == counts_behind(loader(*sources, weights=weights))
    if position % 4 == 0:
        ranks, micro = sizes
        others = [
            loader(*sources, weights=weights, rank=r, world_size=ranks, micro_batch_size=micro) for r in range(ranks)
        ]
        for one in others:
            one.load_state_dict(state)
        assert steps(*others) == steps(loader(*sources, weights=weights))[position // 4 :]


def counts_behind(one: StreamLoader) -> dict[str, float]:
    taken(one)
    return one.source_counts()


@pytest.mark.parametrize("position", [0, 5])
def test_worker_processes_change_nothing(position: int) -> None:
    alone, shared = (loader([0, 10, ROWS], steps=5, num_workers=workers) for workers in (0, 2))
    batches = iter(shared)
    before = taken(islice(batches, position))
    resumed = loader([0, 10, ROWS], steps=5, num_workers=2)
    resumed.load_state_dict(shared.state_dict())
    assert before + taken(resumed) == taken(alone)


@settings(deadline=None, max_examples=20)
@given(st.lists(st.integers(1, 30), min_size=2, max_size=3), st.lists(st.floats(0.1, 5), min_size=3, max_size=3))
def test_sources_are_taken_by_weight_at_any_time_and_small_ones_again(sizes: list[int], weights: list[float]) -> None:
    sources = [[1_000 * n, 1_000 * n + size] for n, size in enumerate(sizes)]
    chosen = tuple(weights[: len(sizes)])
    found = loader(*sources, weights=chosen, steps=20)
    seen, groups = Counter[int](), flat(taken(found))
    for begin in range(0, len(groups), 8):
        seen.update(groups[begin : begin + 8])
        for n, (first, end) in enumerate(sources):
            times = [seen[number] for number in range(first, end)]
            assert max(times) - min(times) <= 1, "no row again before all rows"
            assert abs(sum(times) - chosen[n] / sum(chosen) * seen.total()) < 1
    assert [found.source_counts()[f"source_{n}/taken"] for n in range(len(sizes))] == [
        sum(seen[number] for number in range(*borders)) for borders in sources
    ]


def test_the_global_random_state_is_left_alone() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    taken(loader([0, ROWS], steps=3))
    assert torch.equal(before, torch.get_rng_state())


@given(st.lists(st.floats(0.01, 9), min_size=1, max_size=8))
def test_every_source_has_its_share_at_any_time_but_for_less_than_one(weights: list[float]) -> None:
    shares, counts = [weight / sum(weights) for weight in weights], [0] * len(weights)
    for total in range(1, 150):
        counts[next_source(shares, counts)] += 1
        assert all(abs(count - share * total) < 1 for count, share in zip(counts, shares, strict=True))


def test_a_state_of_other_shards_or_weights_is_refused() -> None:
    state = loader([0, ROWS], [1_000, 1_005], weights=(1, 1)).state_dict()
    with pytest.raises(UserError, match="mixture was 1, 1 and is now 1, 2"):
        loader([0, ROWS], [1_000, 1_005], weights=(1, 2)).load_state_dict(state)


def test_a_stream_without_a_usable_row_ends_instead_of_reading_for_ever() -> None:
    encoder = ChunkEncoder(RowReader("alpaca"), TOKENIZER, 100, pack_documents=False)
    streams = [EncodedStream("long", rows([0, 5]), encoder)]
    one = StreamLoader(streams, (1.0,), "", Collator(0), steps=3, batch_size=4, micro_batch_size=1, seed=0)
    with pytest.raises(
        UserError, match=r"no row of 'long' can be used: of 5 .* 5 have a prompt of data.max_length=100"
    ):
        next(iter(one))
    with pytest.raises(UserError, match="hold no record"):
        next(rows([0, 0]).chunks(Place()))
