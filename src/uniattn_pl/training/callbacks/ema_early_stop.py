"""Stop when the moving average of the training loss stops falling (paper Algorithm 1, stage 1)."""

from __future__ import annotations

import math
from typing import Any

import lightning.pytorch as pl

from uniattn_pl.training.callbacks.step_loss import StepLoss


class EMAEarlyStop(pl.Callback):
    """Stops a fit once the exponential moving average (EMA) of the training loss no longer improves.

    The loss is reduced over ranks first, so every rank decides alike. The state is in the checkpoint;
    a resumed run that had already decided to stop does not train another step.

    Args:
        decay: weight of the past in the moving average, in [0, 1).
        patience: optimizer steps without improvement before stopping.
        min_delta: smallest decrease of the average that counts as improvement (nats per token).
    """

    def __init__(self, decay: float = 0.9, patience: int = 20, min_delta: float = 1e-3) -> None:
        self.decay, self.patience, self.min_delta = decay, patience, min_delta
        self.ema: float | None = None
        self.best = math.inf
        self.steps_without_improvement = 0
        self.stopped_at: int | None = None
        self._loss = StepLoss()

    def state_dict(self) -> dict[str, Any]:
        # plain keys only: Lightning attaches bound methods to callbacks, which weights_only loading refuses
        return {
            "ema": self.ema,
            "best": self.best,
            "steps_without_improvement": self.steps_without_improvement,
            "stopped_at": self.stopped_at,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.ema, self.best = state_dict["ema"], state_dict["best"]
        self.steps_without_improvement = state_dict["steps_without_improvement"]
        self.stopped_at = state_dict["stopped_at"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._loss.start(trainer)
        if self.stopped_at is not None:
            trainer.should_stop = True  # Lightning does not checkpoint should_stop

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        loss = self._loss.update(trainer, pl_module, outputs)
        if loss is not None and self.update(float(loss)):
            self.stopped_at = trainer.global_step
            trainer.should_stop = True

    def update(self, loss: float) -> bool:
        """Take in the loss of one optimizer step; returns whether to stop."""
        self.ema = loss if self.ema is None else self.decay * self.ema + (1 - self.decay) * loss
        if self.ema < self.best - self.min_delta:
            self.best, self.steps_without_improvement = self.ema, 0
        else:
            self.steps_without_improvement += 1
        return self.steps_without_improvement >= self.patience
