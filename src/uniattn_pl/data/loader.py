"""A training loader whose optimizer steps hold the same rows on any number of ranks, and that resumes in an epoch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch
from torch.utils.data import DataLoader

from uniattn_pl.data.collation import Batch, Collator
from uniattn_pl.data.encoded_rows import Example
from uniattn_pl.data.packing import Pack, PackCollator
from uniattn_pl.data.preference_pairs import Pair, PairCollator
from uniattn_pl.data.workers import iterate
from uniattn_pl.errors import UserError

OF_ITEMS = ("rows", "tokens", "contents")  # of a saved state, what other items change
MEGA_BATCH = 50  # global batches that are sorted by length together, as in transformers' group_by_length


class Items(Protocol):
    """What a loader draws from: `EncodedRows`, `PackedRows` or `PairedRows`."""

    @property
    def lengths(self) -> torch.Tensor:
        """Tokens of each item: int64 [N]."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example | Pack | Pair: ...

    def identity(self) -> dict[str, int | str]:
        """Return what must be unchanged for the items to be the same ones: counts, and a digest of their contents."""


def epoch_order(lengths: torch.Tensor, batch_size: int, seed: int, epoch: int) -> torch.Tensor:
    """Return the items of one epoch in order, each once, as int64 [N]: every `batch_size` of them are a global batch.

    All items are permuted, cut into mega-batches of `MEGA_BATCH` global batches, sorted by length inside each, cut
    into global batches, and these are shuffled: little padding, and still another order and other batches every
    epoch. The last global batch has what remains of the permutation. Inside a global batch the shortest come first.

    Args:
        lengths: int64 [N], tokens of each item.
        batch_size: items of one global batch.
        seed: of the experiment.
        epoch: from 0.
    """
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    order = torch.randperm(len(lengths), generator=generator)
    batches = len(order) // batch_size
    parts = order[: batches * batch_size].split(MEGA_BATCH * batch_size)
    grouped = torch.cat([_by_length(part, lengths) for part in parts]).view(batches, batch_size)
    shuffled = grouped[torch.randperm(batches, generator=generator)]
    return torch.cat([shuffled.flatten(), _by_length(order[batches * batch_size :], lengths)])


def _by_length(items: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    return items[torch.argsort(lengths[items], stable=True)]


class ResumableLoader:
    """Micro batches of one rank, epoch after epoch; `state_dict` is the protocol Lightning saves and restores.

    An optimizer step is a global batch of `batch_size` items, whatever the number of ranks and the size of a micro
    batch. Its items, sorted by length, are dealt to the ranks in turn, `micro_batch_size` to each, then again for
    the next micro batch: what runs at the same time has similar lengths. The last global batch of an epoch has the
    items that remain and takes as few micro batches as they need; places without an item hold a blank copy of the
    shortest one (no labels), so that sums over ranks count each item once.

    The state is the epoch and the number of micro batches taken out of it, counted when the consumer takes one.
    Batches that worker processes have prepared ahead do not count. Lightning does not prefetch from a loader with a
    length, so a checkpoint at the end of a training batch continues with exactly the next one. The state holds for
    every rank, so one checkpoint serves all.

    Each `iter()` that follows a taken batch begins the next epoch, so a loop over it never repeats an order.

    Args:
        items: encoded rows, or packs of them.
        collator: makes a batch.
        batch_size: items of one optimizer step, over all ranks and micro batches.
        micro_batch_size: items of one batch of one rank.
        seed: with the epoch, seeds the order.
        rank, world_size: which part of each global batch this rank takes.
        num_workers: processes that collate ahead; the batches are the same with any number.

    Attributes:
        takes_other_items: go on at the same place in other items than the saved ones, as the user has allowed.

    Raises:
        UserError: micro batches of all ranks do not divide `batch_size`.
        RunFailure: from an iteration, when a worker process was killed.
    """

    def __init__(
        self,
        items: Items,
        collator: Collator | PackCollator | PairCollator,
        *,
        batch_size: int,
        micro_batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        num_workers: int = 0,
    ) -> None:
        if batch_size % (micro_batch_size * world_size):
            raise UserError(
                f"a batch of {batch_size} items does not divide into micro batches of {micro_batch_size} on "
                f"{world_size} device(s); training.batch_size must be a multiple of {micro_batch_size * world_size}."
            )
        self.items, self.collator, self.seed = items, collator, seed
        self.batch_size, self.micro_batch_size = batch_size, micro_batch_size
        self.rank, self.world_size, self.num_workers = rank, world_size, num_workers
        self.epoch = 0
        self.position = 0
        self.takes_other_items = False
        self._at_start = True  # nothing taken since construction or load_state_dict

    @property
    def accumulate(self) -> int:
        """Micro batches of one rank that make an optimizer step."""
        return self.batch_size // self._items_at_once

    @property
    def _items_at_once(self) -> int:
        """Items of one micro batch of every rank."""
        return self.micro_batch_size * self.world_size

    @property
    def epoch_items(self) -> int:
        """Items of an epoch, over all ranks."""
        return len(self.items)

    def __len__(self) -> int:
        return -(-self.epoch_items // self._items_at_once)

    def source_counts(self) -> dict[str, float]:
        """What was taken so far of each source of a mixture or a stream, by all ranks; otherwise nothing."""
        return {}

    def source_lines(self) -> list[str]:
        """What was read of each source of a stream so far, in words; of rows in memory nothing."""
        return []

    def __iter__(self) -> Iterator[Batch]:
        if not self._at_start or self.position >= len(self):
            self.epoch, self.position = self.epoch + 1, 0
        self._at_start = False
        for batch in iterate(self._remaining()):
            self.position += 1
            yield batch

    def _remaining(self) -> DataLoader[Any]:
        return DataLoader(
            _Places(self.items),  # type: ignore[arg-type]  # a map-style data set by its methods
            batch_sampler=self._places()[self.position :, self.rank :: self.world_size].tolist(),
            collate_fn=self.collator,
            num_workers=self.num_workers,
            # A generator of its own: the global one, from which dropout draws, must not depend on when we resumed.
            generator=torch.Generator().manual_seed(self.seed),
        )

    def _places(self) -> torch.Tensor:
        """Items of the micro batches of all ranks: int64 [len(self), micro_batch_size * world_size]; ~i is i, blank."""
        order = self._order()
        last = (len(order) - 1) // self.batch_size * self.batch_size
        blanks = (~order[last : last + 1]).repeat(-len(order) % self._items_at_once)
        return torch.cat([order[:last], blanks, order[last:]]).view(len(self), self._items_at_once)

    def _order(self) -> torch.Tensor:
        """The items of this epoch in order, every `batch_size` of them a global batch: int64 [epoch_items]."""
        return epoch_order(self.items.lengths, self.batch_size, self.seed, self.epoch)

    def state_dict(self) -> dict[str, Any]:
        """Return where the loader is, and what must be unchanged for the position to mean the same."""
        return {"epoch": self.epoch, "position": self.position, "accumulate": self.accumulate, **self._identity()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue after the batch that was taken last when `state` was saved.

        Raises:
            UserError: the data, the batch size, the seed or the packing differ from the saved ones, or the state was
                saved inside an optimizer step and the micro batches are others now.
        """
        position = self.position_of(state)
        self.epoch, self.position, self._at_start = state["epoch"], position, True

    def position_of(self, state: dict[str, Any]) -> int:
        """The position of a saved state in micro batches of this loader. Raises UserError as `load_state_dict`."""
        allowed = OF_ITEMS if self.takes_other_items else ()
        changed = [
            f"{key} was {state.get(key)} and is now {value}"
            for key, value in self._identity().items()
            # former versions saved no digest of contents
            if state.get(key, value if key == "contents" else None) != value and key not in allowed
        ]
        if changed:
            raise UserError(
                f"the checkpoint cannot continue in the middle of these data: {', '.join(changed)}; "
                "use the settings it was saved with, or start a new run."
            )
        position, accumulate = state["position"], state["accumulate"]
        if accumulate == self.accumulate:
            return min(position, len(self))
        if position == -(-self.epoch_items // (self.batch_size // accumulate)):
            return len(self)
        steps, inside = divmod(position, accumulate)
        if inside:
            raise UserError(
                f"the checkpoint was saved inside an optimizer step, after {inside} of its {accumulate} micro batches, "
                "where training.micro_batch_size and the number of devices cannot change; use those it was saved with."
            )
        return min(steps * self.accumulate, len(self))

    def _identity(self) -> dict[str, int | str]:
        return {**self.items.identity(), "batch_size": self.batch_size, "seed": self.seed}


class _Places:
    """The items by index, and blank at ~index; picklable, for worker processes."""

    def __init__(self, items: Items) -> None:
        self.items = items

    def __getitem__(self, place: int) -> Example | Pack | Pair:
        return self.items[place] if place >= 0 else self.items[~place].blank()


class FixedBatches:
    """Batches made beforehand, as a loader: Lightning takes a plain list for several loaders."""

    def __init__(self, batches: Sequence[Batch]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def source_counts(self) -> dict[str, float]:
        """What was taken so far of each source of a mixture or a stream, by all ranks; otherwise nothing."""
        return {}

    def source_lines(self) -> list[str]:
        """What was read of each source of a stream so far, in words; of rows in memory nothing."""
        return []

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.batches)
