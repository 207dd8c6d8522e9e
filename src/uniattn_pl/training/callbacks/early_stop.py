"""Stop when a loss that is watched stops falling."""

from __future__ import annotations

import math
from typing import Any

import lightning.pytorch as pl


class EarlyStop(pl.Callback):
    """Stops a fit once a loss has not fallen for a while; children say which.

    The state is in the checkpoint; a resumed run that had already decided to stop does not train another step.

    Args:
        patience: values in a row without improvement before stopping.
        min_delta: smallest decrease that counts as improvement (nats per token).

    Attributes:
        stopped_at: the step at which it has decided to stop, or None.
    """

    def __init__(self, patience: int, min_delta: float) -> None:
        self.patience, self.min_delta = patience, min_delta
        self.best = math.inf
        self.steps_without_improvement = 0
        self.stopped_at: int | None = None

    def state_dict(self) -> dict[str, Any]:
        # plain keys only: Lightning attaches bound methods to callbacks, which weights_only loading refuses
        return {
            "best": self.best,
            "steps_without_improvement": self.steps_without_improvement,
            "stopped_at": self.stopped_at,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best, self.stopped_at = state_dict["best"], state_dict["stopped_at"]
        self.steps_without_improvement = state_dict["steps_without_improvement"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.stopped_at is not None:
            trainer.should_stop = True  # Lightning does not checkpoint should_stop

    def watch(self, trainer: pl.Trainer, value: float) -> None:
        """Take in a value, the same on every rank, and stop the fit if it is time."""
        if self.update(value):
            self.stopped_at = trainer.global_step
            trainer.should_stop = True

    def update(self, value: float) -> bool:
        """Take in a value; returns whether to stop."""
        if value < self.best - self.min_delta:
            self.best, self.steps_without_improvement = value, 0
        else:
            self.steps_without_improvement += 1
        return self.steps_without_improvement >= self.patience
