"""Stop when the held-out loss stops falling."""

from __future__ import annotations

import lightning.pytorch as pl

from uniattn_pl.training.callbacks.early_stop import EarlyStop


class HeldOutEarlyStop(EarlyStop):
    """Stops a fit once measurements of the held-out loss no longer improve; one of `HeldOutLoss`'s watchers.

    Args:
        patience: measurements without improvement before stopping.
        min_delta: smallest decrease that counts as improvement (nats per token).
    """

    def __init__(self, patience: int = 3, min_delta: float = 1e-3) -> None:
        super().__init__(patience, min_delta)

    def measured(self, trainer: pl.Trainer, loss: float) -> None:
        """Take in what was measured behind this step."""
        self.watch(trainer, loss)
