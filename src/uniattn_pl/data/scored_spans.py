"""Which tokens of sequences carry the loss: spans of each sequence, those of all in one flat buffer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch


@dataclass(frozen=True)
class ScoredSpans:
    """The spans of N sequences, one after another: in order, apart from each other and none of them empty.

    A row of the paper's prompt has one, its response; a chat one for each turn that is learned.

    Args:
        bounds: int32 [M, 2], of each span its first token and the one behind its last, counted in its sequence.
        counts: int32 [N], spans of each sequence.
    """

    bounds: torch.Tensor
    counts: torch.Tensor

    @classmethod
    def behind(cls, given: torch.Tensor, lengths: torch.Tensor) -> ScoredSpans:
        """All that follows the given tokens of each sequence, int64 [N], up to its end."""
        bounds = torch.stack([given, lengths], dim=1).to(torch.int32)
        is_scored = given < lengths
        return cls(bounds[is_scored], is_scored.to(torch.int32))

    @cached_property
    def _ends(self) -> torch.Tensor:
        return self.counts.cumsum(0)

    def __len__(self) -> int:
        return len(self.counts)

    def __getitem__(self, index: int) -> torch.Tensor:
        """Of one sequence: int32 [spans, 2]."""
        end = int(self._ends[index])
        return self.bounds[end - int(self.counts[index]) : end]

    @property
    def tokens(self) -> int:
        """How many carry the loss."""
        return int((self.bounds[:, 1] - self.bounds[:, 0]).sum())

    def said(self, lengths: torch.Tensor) -> Iterator[torch.Tensor]:
        """Yield what a digest of the contents reads: what former versions did, where each has one span up to its end.

        Args:
            lengths: int64 [N], tokens of each sequence.
        """
        if torch.equal(self.counts, torch.ones_like(self.counts)) and torch.equal(self.bounds[:, 1].long(), lengths):
            yield self.bounds[:, 0].long()
        else:
            yield from (self.counts, self.bounds)
