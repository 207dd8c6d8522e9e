"""Held-out response loss at the end of every epoch but the last."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
from torch import nn

from uniattn_pl.evaluation.held_out import HeldOut


class HeldOutLoss(pl.Callback):
    """Logs `val/response_loss` (and answer accuracy) at epoch ends, before the step can be checkpointed.

    Lightning's own validation runs after the checkpoint callback and would leave a hole when killed in
    between. The last step of the fit is left to the caller, who has the finished model. Every rank measures.

    Args:
        score: measures a model on held-out rows.
    """

    def __init__(self, score: Callable[[nn.Module], HeldOut]) -> None:
        self.score = score

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx + 1 != trainer.num_training_batches or trainer.global_step == trainer.max_steps:
            return
        model = pl_module.model if isinstance(pl_module.model, nn.Module) else pl_module
        metrics = self.score(model)
        for logger in trainer.loggers:
            logger.log_metrics(metrics.named("val/"), trainer.global_step)
