"""Held-out response loss at the end of every epoch but the last."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
from torch import nn

from uniattn_pl.evaluation.held_out import held_out_metrics


class HeldOutLoss(pl.Callback):
    """Logs `val/response_loss` (and answer accuracy) at epoch ends, before the step can be checkpointed.

    Lightning's own validation runs after the checkpoint callback and would leave a hole when killed in
    between. The last step of the fit is left to the caller, who has the finished model.

    Args:
        batches: validation batches as `InstructionDataModule.validation_batches` gives them.
    """

    def __init__(self, batches: Sequence[dict[str, Any]]) -> None:
        self.batches = batches

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx + 1 != trainer.num_training_batches or trainer.global_step == trainer.max_steps:
            return
        model = pl_module.model if isinstance(pl_module.model, nn.Module) else pl_module
        metrics = held_out_metrics(model, self.batches)
        for logger in trainer.loggers:
            logger.log_metrics(metrics.named("val/"), trainer.global_step)
