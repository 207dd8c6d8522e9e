"""The loss of a whole optimizer step, for callbacks that must agree on every rank."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor


class StepLoss:
    """Turns micro-batch outputs into one loss per optimizer step, equal on all ranks.

    A module with a `step_loss` attribute (PostTrainingModule: exact mean over the response tokens of
    the global batch) is believed; any other gets the mean of its micro-batch losses, reduced over ranks.
    """

    def __init__(self) -> None:
        self._micro: list[Tensor] = []
        self._seen: int | None = None

    def start(self, trainer: pl.Trainer) -> None:
        """Call in `on_train_start`: forget an unfinished step and note where the (resumed) run stands."""
        self._micro, self._seen = [], trainer.global_step

    def update(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any) -> Tensor | None:
        """Call in `on_train_batch_end`; returns the step's loss (scalar tensor) once the optimizer stepped."""
        loss = outputs["loss"] if isinstance(outputs, Mapping) else outputs
        if loss is not None:
            # Lightning divided the loss by the number of accumulated micro batches
            self._micro.append(loss.detach().float() * trainer.accumulate_grad_batches)
        if trainer.global_step == self._seen or not self._micro:
            return None
        micro, self._micro, self._seen = self._micro, [], trainer.global_step
        exact = getattr(pl_module, "step_loss", None)
        if isinstance(exact, Tensor):
            return exact
        mean = torch.stack(micro).mean()
        reduced: Tensor = trainer.strategy.reduce(mean, reduce_op="mean")
        return reduced
