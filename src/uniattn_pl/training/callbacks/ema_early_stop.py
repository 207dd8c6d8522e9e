"""Stop when the moving average of the training loss stops falling (paper Algorithm 1, stage 1)."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl

from uniattn_pl.training.callbacks.early_stop import EarlyStop
from uniattn_pl.training.callbacks.step_loss import StepLoss


class EMAEarlyStop(EarlyStop):
    """Stops a fit once the exponential moving average (EMA) of the training loss no longer improves.

    The loss is reduced over ranks first, so every rank decides alike.

    Args:
        decay: weight of the past in the moving average, in [0, 1).
        patience: optimizer steps without improvement before stopping.
        min_delta: smallest decrease of the average that counts as improvement (nats per token).
    """

    def __init__(self, decay: float = 0.9, patience: int = 20, min_delta: float = 1e-3) -> None:
        super().__init__(patience, min_delta)
        self.decay = decay
        self.ema: float | None = None
        self._loss = StepLoss()

    def state_dict(self) -> dict[str, Any]:
        return {"ema": self.ema, **super().state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.ema = state_dict["ema"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._loss.start(trainer)
        super().on_train_start(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        loss = self._loss.update(trainer, pl_module, outputs)
        if loss is not None:
            self.watch(trainer, float(loss))

    def update(self, value: float) -> bool:
        """Take in the loss of one optimizer step; returns whether to stop."""
        self.ema = value if self.ema is None else self.decay * self.ema + (1 - self.decay) * value
        return super().update(self.ema)
