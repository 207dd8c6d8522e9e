"""Pairs of sequences: a prompt with its chosen response, and the same prompt with the rejected one."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from uniattn_pl.data.collation import Batch, Collator
from uniattn_pl.data.encoded_rows import EncodedRows, Example


@dataclass(frozen=True)
class Pair:
    """Both sequences of one row."""

    chosen: Example
    rejected: Example

    def blank(self) -> Pair:
        """The same tokens without anything to learn: fills a place for which there is no row."""
        return Pair(self.chosen.blank(), self.rejected.blank())


class PairedRows:
    """What a loader draws pairs from: the rows of which both sequences hold a token of their response.

    Args:
        chosen, rejected: the sequences of the same rows.
    """

    def __init__(self, chosen: EncodedRows, rejected: EncodedRows) -> None:
        self.chosen, self.rejected = chosen, rejected
        at = {row: index for index, row in enumerate(rejected.source_rows.tolist())}
        found = [(index, at[row]) for index, row in enumerate(chosen.source_rows.tolist()) if row in at]
        self._places = torch.tensor(found, dtype=torch.int64).view(-1, 2)

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> Pair:
        chosen, rejected = self._places[index].tolist()
        return Pair(self.chosen[chosen], self.rejected[rejected])

    @cached_property
    def lengths(self) -> torch.Tensor:
        """Tokens of each pair, both sequences together: int64 [N]."""
        chosen, rejected = self._places.T
        return self.chosen.lengths[chosen] + self.rejected.lengths[rejected]

    @property
    def rows(self) -> torch.Tensor:
        """Of each pair, which of the rows that were encoded it is: int64 [N]."""
        return self.chosen.source_rows[self._places[:, 0]]

    @cached_property
    def contents(self) -> str:
        """A digest of both sequences of every pair, in order."""
        both = "".join((self.chosen.contents, self.rejected.contents))
        return hashlib.sha256(both.encode() + self._places.numpy().tobytes()).hexdigest()[:16]

    def identity(self) -> dict[str, int | str]:
        """Return what a loader compares with its checkpoint before it resumes in the middle of the pairs."""
        return {"rows": len(self), "tokens": int(self.lengths.sum()), "packing": 0, "contents": self.contents}


@dataclass(frozen=True)
class PairCollator:
    """Make a batch of pairs; picklable, so that worker processes can use it.

    Args:
        collator: of single sequences.
    """

    collator: Collator

    def __call__(self, pairs: Sequence[Pair]) -> Batch:
        """Return the batch of B pairs: that of their B chosen sequences and, behind them, of the B rejected ones."""
        return self.collator([*(pair.chosen for pair in pairs), *(pair.rejected for pair in pairs)])
