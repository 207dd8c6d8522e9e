"""Stop at the first NaN or infinite loss, before it reaches a checkpoint."""

from __future__ import annotations

import math
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from uniattn_pl.training.callbacks.step_loss import StepLoss
from uniattn_pl.training.errors import TrainingDivergedError


class NonFiniteStop(pl.Callback):
    """Raises when an optimizer step's loss, or the gradient norm of a module that keeps `grad_norm`, is not finite.

    Runs before Lightning's checkpoint callback, so the last checkpoint on disk is the last good one.

    Raises:
        TrainingDivergedError: names the step, the last good checkpoint and what to try.
    """

    def __init__(self) -> None:
        self._loss = StepLoss()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._loss.start(trainer)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        loss = self._loss.update(trainer, pl_module, outputs)
        if loss is None:
            return
        suspects = {"loss": loss}
        norm = getattr(pl_module, "grad_norm", None)
        # with a gradient scaler (16-mixed) an infinite gradient is routine: the scaler skips that step
        if isinstance(norm, Tensor) and getattr(trainer.precision_plugin, "scaler", None) is None:
            suspects["gradient norm"] = norm
        for what, value in suspects.items():
            if not math.isfinite(float(value)):
                raise TrainingDivergedError(_message(trainer, what, float(value)))


def _message(trainer: pl.Trainer, what: str, value: float) -> str:
    paths = [
        c.best_model_path or c.last_model_path for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint)
    ]
    good = next((path for path in paths if path), None) or trainer.ckpt_path
    kept = f"the last good checkpoint is {good}" if good else "no checkpoint had been written yet"
    return (
        f"the {what} became {value} at step {trainer.global_step}; {kept}. "
        "A lower learning rate, a longer warm-up or float32 precision usually helps."
    )
