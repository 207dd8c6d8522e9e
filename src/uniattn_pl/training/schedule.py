"""The learning-rate schedule of one stage, as a factor of its peak."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class WarmupDecay:
    """Linear warm-up, then cosine, linear or no decay; a callable for `LambdaLR` that counts this stage's steps.

    Args:
        total_steps: optimizer steps of the stage.
        warmup_ratio: fraction of them spent warming up (rounded up to whole steps).
        kind: "cosine", "linear" or "constant".
    """

    total_steps: int
    warmup_ratio: float
    kind: str

    def __call__(self, step: int) -> float:
        warmup = math.ceil(self.warmup_ratio * self.total_steps)
        if step < warmup:
            return (step + 1) / warmup
        progress = min(1.0, (step - warmup) / max(1, self.total_steps - warmup))
        if self.kind == "cosine":
            return 0.5 * (1.0 + math.cos(math.pi * progress))
        return 1.0 - progress if self.kind == "linear" else 1.0
