"""The error of a calibration report, summed batch by batch."""

from __future__ import annotations

import torch

from uniattn_pl.resilience.ranks import sum_over_ranks


class MeanNorm:
    """Mean over tokens of the L2 norm of vectors [B, L, d] where mask [B, L] is True."""

    def __init__(self) -> None:
        self.total, self.count = 0.0, 0

    def add(self, vectors: torch.Tensor, mask: torch.Tensor) -> None:
        """Add one batch."""
        norms = vectors.float().norm(dim=-1)[mask.to(vectors.device)]
        self.total += norms.double().sum().item()
        self.count += norms.numel()

    def sum_over_ranks(self) -> None:
        """Add up the sums of all ranks."""
        both = sum_over_ranks(torch.tensor([self.total, self.count], dtype=torch.float64))
        self.total, self.count = float(both[0]), int(both[1])

    @property
    def value(self) -> float:
        """The mean; 0 of no tokens."""
        return self.total / max(self.count, 1)
