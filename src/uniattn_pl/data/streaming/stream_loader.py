"""A training loader over streams: steps that hold the same rows on any number of ranks, gone on with exactly."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import torch

from uniattn_pl.data.collation import Batch, Collator
from uniattn_pl.data.encoded_rows import Example
from uniattn_pl.data.loader import ResumableLoader, epoch_order
from uniattn_pl.data.streaming.encoded_chunks import StreamCounts
from uniattn_pl.data.streaming.row_stream import VERSION
from uniattn_pl.data.streaming.sequence_stream import EncodedStream, SequenceStream

GROUP = 20  # global batches that are sorted by length together


def next_source(weights: Sequence[float], taken: Sequence[int]) -> int:
    """Which source the next sequence is of, so that at any time each has brought its share but for less than one.

    Of those that may take one without running too far ahead, it is the one that must take one soonest (Tijdeman, "The
    chairman assignment problem", 1980).

    Args:
        weights: of each source; they add up to 1.
        taken: sequences of each source so far.
    """
    if len(weights) == 1:
        return 0
    margin, total = 1 / (2 * len(weights) - 2), sum(taken) + 1
    behind = [weight * total - count for weight, count in zip(weights, taken, strict=True)]
    may = [source for source, share in enumerate(behind) if share >= margin - 1e-9]
    return min(may, key=lambda source: (1 - margin - behind[source]) / weights[source])


class StreamMix:
    """Takes sequences from several streams by weight, as `next_source` says.

    Args:
        sources: one or more.
        weights: of each.
        num_workers: processes of each stream, in all of them together.
        state: of another one, which this one goes on from.
    """

    def __init__(
        self,
        sources: Sequence[EncodedStream],
        weights: Sequence[float],
        num_workers: int,
        state: dict[str, Any] | None = None,
    ) -> None:
        self.weights = [weight / sum(weights) for weight in weights]
        states = [None] * len(sources) if state is None else state["streams"]
        self.taken: list[int] = [0] * len(sources) if state is None else list(state["taken"])
        workers = max(1, num_workers // len(sources)) if num_workers else 0
        self.streams = [SequenceStream(one, workers, found) for one, found in zip(sources, states, strict=True)]

    def take(self) -> tuple[int, Example]:
        """The next sequence, and the number of its source. Raises as `SequenceStream.take`."""
        source = next_source(self.weights, self.taken)
        self.taken[source] += 1
        return source, self.streams[source].take()

    def state(self) -> dict[str, Any]:
        """Where every stream is, in plain numbers."""
        return {"streams": [stream.state() for stream in self.streams], "taken": list(self.taken)}

    def close(self) -> None:
        """End all worker processes."""
        for stream in self.streams:
            stream.close()


class StreamIdentity:
    """What a `StreamLoader` compares with its checkpoint, in the place of items."""

    def __init__(self, contents: str, steps: int, batch_size: int, about: dict[str, int | str]) -> None:
        self.contents, self.count, self.about = contents, steps * batch_size, about

    lengths = torch.empty(0, dtype=torch.int64)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Example:
        raise IndexError(index)

    def identity(self) -> dict[str, int | str]:
        """See `Items.identity`."""
        return {"contents": self.contents, **self.about}


class StreamLoader(ResumableLoader):
    """Micro batches of one rank for a given number of optimizer steps.

    Sequences are taken from the streams in one order, which is the same on every rank. `GROUP` global batches of them
    are sorted by length together, cut into global batches and these shuffled, as `epoch_order` does with an epoch; each
    is dealt to the ranks as by `ResumableLoader`. Every rank reads, and tokenises, all rows, and keeps those of its
    own.

    The state is where the streams were as the present group began, and the number of micro batches taken; a resumed
    loader makes that group again. As there, it holds for every rank and any number of them, of workers, and, between
    steps, of micro batches.

    Args:
        sources, weights: as of `StreamMix`.
        contents: a digest of what the shards are.
        collator: makes a batch.
        steps: optimizer steps until it ends; a source that ends before begins again, in another order.
        options: `batch_size`, `micro_batch_size`, `seed`, `rank`, `world_size`, `num_workers` of `ResumableLoader`.
    """

    def __init__(
        self,
        sources: Sequence[EncodedStream],
        weights: Sequence[float],
        contents: str,
        collator: Collator,
        *,
        steps: int,
        **options: Any,
    ) -> None:
        shares = ", ".join(f"{weight:g}" for weight in weights)
        about: dict[str, int | str] = {"shuffle_buffer": sources[0].stream.buffer, "mixture": shares, "order": VERSION}
        items = StreamIdentity(contents, steps, options["batch_size"], about)
        super().__init__(items, collator, **options)
        self.sources, self.weights = sources, weights
        self.taken = [0] * len(sources)  # sequences of each source, of all ranks
        self._group = 0
        self._start: dict[str, Any] | None = None  # where the streams were as the present group began
        self._counts: list[StreamCounts] = []
        self._passes: list[int] = []

    def __iter__(self) -> Iterator[Batch]:
        mix = StreamMix(self.sources, self.weights, self.num_workers, self._start)
        try:
            while self.position < len(self):
                yield from self._group_of(mix)
        finally:
            mix.close()

    def _group_of(self, mix: StreamMix) -> Iterator[Batch]:
        """The micro batches of this rank in a group, as far as they were not taken yet."""
        self._start = mix.state()
        drawn = [mix.take() for _ in range(GROUP * self.batch_size)]
        behind = mix.state()
        self._counts = [stream.counts for stream in mix.streams]
        self._passes = [stream.place.epoch for stream in mix.streams]
        lengths = torch.tensor([example.counted_tokens for _, example in drawn])
        order = epoch_order(lengths, self.batch_size, self.seed, self._group)
        places = order.view(-1, self._items_at_once).tolist()
        begin = self._group * len(places)
        for place in places[self.position - begin : len(self) - begin]:
            batch = self.collator([drawn[index][1] for index in place[self.rank :: self.world_size]])
            self.position += 1
            for index in place:
                self.taken[drawn[index][0]] += 1
            if self.position == begin + len(places):
                self._group, self._start = self._group + 1, behind
            yield batch

    def state_dict(self) -> dict[str, Any]:
        read = {"counts": [asdict(counts) for counts in self._counts], "passes": list(self._passes)}
        place = {"group": self._group, "start": self._start, "taken": list(self.taken)}
        return {**super().state_dict(), **place, **read}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self._group, self._start, self.taken = state["group"], state["start"], list(state["taken"])
        self._counts, self._passes = [StreamCounts(**counts) for counts in state["counts"]], list(state["passes"])

    def source_counts(self) -> dict[str, float]:
        """Of each source: sequences taken, and what became of its records."""
        counts = {f"source_{number}/taken": float(taken) for number, taken in enumerate(self.taken)}
        for number, of_source in enumerate(self._counts):
            counts |= {f"source_{number}/{name}": float(value) for name, value in asdict(of_source).items()}
        return counts

    def source_lines(self) -> list[str]:
        """Of each source the same in words."""
        found = zip(self.sources, self.taken, self._counts, self._passes, strict=False)
        return [
            f"{source.name}: {taken:,} sequences taken, {counts.rows_read:,} rows read{counts.lost()}, "
            + (f"{passes:,} times to its end" if passes > 1 else "once to its end" if passes else "not to its end")
            for source, taken, counts, passes in found
        ]
