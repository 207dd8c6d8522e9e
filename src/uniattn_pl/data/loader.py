"""A training loader that resumes in the middle of an epoch and gives every rank the same number of batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader

from uniattn_pl.data.collation import Batch, Collator
from uniattn_pl.data.encoding import EncodedRows
from uniattn_pl.errors import UserError

MEGA_BATCH = 50  # global micro batches that are sorted by length together, as in transformers' group_by_length


def epoch_order(lengths: torch.Tensor, group_size: int, seed: int, epoch: int) -> torch.Tensor:
    """Return the row indices of one epoch as groups of similar length in random order: int64 [G, group_size].

    All rows are permuted, cut into mega-batches of `MEGA_BATCH` groups, sorted by length inside each, cut into
    groups, and the groups are shuffled: little padding, and still another order and other groups every epoch.
    Every row comes at least once; the last group is filled with the first rows of the permutation, so that each
    batch has its full size.

    Args:
        lengths: int64 [N], tokens of each row.
        group_size: rows of one micro batch over all ranks.
        seed: of the experiment.
        epoch: from 0.
    """
    rows = len(lengths)
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    groups = -(-rows // group_size)
    order = torch.randperm(rows, generator=generator)
    order = order.repeat(-(-groups * group_size // rows))[: groups * group_size]
    starts = range(0, len(order), MEGA_BATCH * group_size)
    parts = [order[start : start + MEGA_BATCH * group_size] for start in starts]
    sorted_parts = [part[torch.argsort(lengths[part], stable=True)] for part in parts]
    grouped = torch.cat(sorted_parts).view(groups, group_size)
    return grouped[torch.randperm(groups, generator=generator)]


class ResumableLoader:
    """Micro batches of one rank, epoch after epoch; `state_dict` is the protocol Lightning saves and restores.

    The state is the epoch and the number of batches taken out of it, counted when the consumer takes one. Batches
    that worker processes have prepared ahead do not count. Lightning does not prefetch from a loader with a length,
    so a checkpoint at the end of a training batch continues with exactly the next one. The state holds for every
    rank, so one checkpoint serves all.

    Each `iter()` that follows a taken batch begins the next epoch, so a loop over it never repeats an order.

    Args:
        rows: the encoded rows.
        collator: makes a batch.
        batch_size: micro batch of one rank.
        seed: with the epoch, seeds the order.
        rank, world_size: which share of each group of `batch_size * world_size` rows this rank takes.
        num_workers: processes that collate ahead; the batches are the same with any number.
    """

    def __init__(
        self,
        rows: EncodedRows,
        collator: Collator,
        *,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        num_workers: int = 0,
    ) -> None:
        self.rows, self.collator, self.batch_size, self.seed = rows, collator, batch_size, seed
        self.rank, self.world_size, self.num_workers = rank, world_size, num_workers
        self.epoch = 0
        self.position = 0
        self._at_start = True  # nothing taken since construction or load_state_dict

    def __len__(self) -> int:
        return -(-len(self.rows) // (self.batch_size * self.world_size))

    def __iter__(self) -> Iterator[Batch]:
        if not self._at_start or self.position >= len(self):
            self.epoch, self.position = self.epoch + 1, 0
        self._at_start = False
        for batch in self._remaining():
            self.position += 1
            yield batch

    def _remaining(self) -> DataLoader[Any]:
        order = epoch_order(self.rows.lengths, self.batch_size * self.world_size, self.seed, self.epoch)
        share = order[self.position :, self.rank :: self.world_size].tolist()
        return DataLoader(
            self.rows,  # type: ignore[arg-type]  # a map-style data set by its methods
            batch_sampler=share,
            collate_fn=self.collator,
            num_workers=self.num_workers,
            # A generator of its own: the global one, from which dropout draws, must not depend on when we resumed.
            generator=torch.Generator().manual_seed(self.seed),
        )

    def state_dict(self) -> dict[str, int]:
        """Return where the loader is, and what must be unchanged for the position to mean the same."""
        return {"epoch": self.epoch, "position": self.position, **self._identity()}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue after the batch that was taken last when `state` was saved.

        Raises:
            UserError: the data, the batch size, the seed or the number of ranks differ from the saved ones.
        """
        changed = [
            f"{key} was {state.get(key)} and is now {value}"
            for key, value in self._identity().items()
            if state.get(key) != value
        ]
        if changed:
            raise UserError(
                f"the checkpoint cannot continue in the middle of these data: {', '.join(changed)}; "
                "use the settings it was saved with, or start a new run."
            )
        self.epoch, self.position, self._at_start = state["epoch"], state["position"], True

    def _identity(self) -> dict[str, int]:
        return {
            "rows": len(self.rows),
            "tokens": len(self.rows.tokens),
            "micro_batch_size": self.batch_size,
            "devices": self.world_size,
            "seed": self.seed,
        }


class FixedBatches:
    """Batches made beforehand, as a loader: Lightning takes a plain list for several loaders."""

    def __init__(self, batches: Sequence[Batch]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.batches)
