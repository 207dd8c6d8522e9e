"""Epochs of a mixture: every source brings its share of the sequences, a small one again and again."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from uniattn_pl.data.loader import ResumableLoader, epoch_order


@dataclass(frozen=True)
class EpochShares:
    """How many sequences each source of a mixture brings to an epoch, and which.

    An epoch has as many sequences as all sources together. Source i brings `weight_i / sum of weights` of them, rounded
    so that they add up (the largest remainders are rounded up), one at least; without weights each brings all of its
    own. A source is drawn from as from an endless row of passes, each of which has every sequence once, in an order of
    its own: epoch e takes the next ones behind those of the epochs before. So no sequence of a source is drawn a second
    time before all of it were drawn once, whether a source is larger or smaller than its share.

    Args:
        counts: sequences of each source; they lie one after another among the items.
        weights: of each source; None: every source brings all of its own.
        seed: with source and pass, seeds the order.
    """

    counts: tuple[int, ...]
    weights: tuple[float, ...] | None
    seed: int

    @cached_property
    def drawn(self) -> tuple[int, ...]:
        """Sequences of each source in an epoch."""
        if self.weights is None:
            return self.counts
        return shares(sum(self.counts), self.weights)

    def epoch(self, epoch: int) -> torch.Tensor:
        """The items of an epoch, source by source: int64 [sum of `drawn`]."""
        firsts = torch.tensor([0, *self.counts]).cumsum(0).tolist()
        parts = [self._taken(source, epoch) + firsts[source] for source in range(len(self.counts))]
        return torch.cat(parts)

    def source_of(self, items: torch.Tensor) -> torch.Tensor:
        """Which source each item is of, counted from 0."""
        return torch.searchsorted(torch.tensor(self.counts).cumsum(0), items, right=True)

    def _taken(self, source: int, epoch: int) -> torch.Tensor:
        count, drawn = self.counts[source], self.drawn[source]
        start = epoch * drawn
        passes = range(start // count, -(-(start + drawn) // count))
        orders = torch.cat([self._order(source, number) for number in passes])
        return orders[start - passes.start * count :][:drawn]

    def _order(self, source: int, number: int) -> torch.Tensor:
        seed = int.from_bytes(hashlib.sha256(f"{self.seed} {source} {number}".encode()).digest()[:8], "big") >> 1
        return torch.randperm(self.counts[source], generator=torch.Generator().manual_seed(seed))


def shares(total: int, weights: Sequence[float]) -> tuple[int, ...]:
    """Divide a number by weights: whole numbers that add up to it, the largest remainders rounded up, each at least 1.

    Args:
        total: at least as many as there are weights.
        weights: above 0.
    """
    exact = [total * weight / sum(weights) for weight in weights]
    counts = [int(share) for share in exact]
    by_remainder = sorted(range(len(weights)), key=lambda i: (counts[i] - exact[i], i))
    for i in by_remainder[: total - sum(counts)]:
        counts[i] += 1
    while 0 in counts:
        counts[counts.index(max(counts))] -= 1
        counts[counts.index(0)] += 1
    return tuple(counts)


class MixtureLoader(ResumableLoader):
    """A `ResumableLoader` whose epochs are drawn from several sources.

    Args:
        shares: of the items.
        arguments, options: as of `ResumableLoader`.
    """

    def __init__(self, *arguments: Any, shares: EpochShares, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.shares = shares

    @property
    def epoch_items(self) -> int:
        return sum(self.shares.drawn)

    def source_counts(self) -> dict[str, float]:
        """How many sequences of each source were taken so far, by all ranks."""
        taken = torch.tensor(self.shares.drawn) * self.epoch
        places = self._places()[: self.position].flatten()
        counts = self.shares.source_of(places[places >= 0]).bincount(minlength=len(self.shares.counts))
        return {f"source_{number}/taken": float(count) for number, count in enumerate((taken + counts).tolist())}

    def _order(self) -> torch.Tensor:
        drawn = self.shares.epoch(self.epoch)
        return drawn[epoch_order(self.items.lengths[drawn], self.batch_size, self.seed, self.epoch)]

    def _identity(self) -> dict[str, int | str]:
        return {**super()._identity(), "mixture": ", ".join(map(str, self.shares.drawn))}
