"""What an encoder reads of each row, in one flat buffer."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch


@dataclass(frozen=True)
class EncodedSources:
    """The tokens of all sources, one after another, int32 [total tokens], and how many each row has, int64 [N]."""

    tokens: torch.Tensor
    lengths: torch.Tensor

    @cached_property
    def _ends(self) -> torch.Tensor:
        return self.lengths.cumsum(0)

    def __getitem__(self, index: int) -> torch.Tensor:
        end = int(self._ends[index])
        return self.tokens[end - int(self.lengths[index]) : end]
