"""Held-out response loss every so many steps, and at the end of every epoch."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import lightning.pytorch as pl
from torch import nn

from uniattn_pl.evaluation.held_out import HeldOut
from uniattn_pl.training.callbacks.throughput import Throughput


class Watcher(Protocol):
    """Who goes by the held-out loss."""

    def measured(self, trainer: pl.Trainer, loss: float) -> None:
        """Take in what was measured behind this step, the same on every rank."""


class HeldOutLoss(pl.Callback):
    """Logs `val/response_loss` (and answer accuracy), before the step can be checkpointed.

    Lightning's own validation runs after the checkpoint callback and would leave a hole when killed in
    between. Behind the last step of the fit it is left to the caller, who has the finished model, unless somebody
    watches. Every rank measures.

    Args:
        score: measures a model on held-out rows.
        every_n_steps: optimizer steps between measurements; None: at the ends of epochs alone.
        watchers: told of each measurement, in order.

    Attributes:
        last: what was measured last, or None.
    """

    def __init__(
        self,
        score: Callable[[nn.Module], HeldOut],
        every_n_steps: int | None = None,
        watchers: Sequence[Watcher] = (),
    ) -> None:
        self.score, self.every_n_steps, self.watchers = score, every_n_steps, watchers
        self.last: float | None = None
        self._stepped_to = 0

    def state_dict(self) -> dict[str, Any]:
        return {"last": self.last}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.last = state_dict["last"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._stepped_to = trainer.global_step

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self._stepped_to:
            return
        self._stepped_to = trainer.global_step
        if not self._is_due(trainer, batch_idx):
            return
        started = time.perf_counter()
        hosted = getattr(pl_module, "model", None)
        metrics = self.score(hosted if isinstance(hosted, nn.Module) else pl_module)
        self.last = metrics.watched
        for logger in trainer.loggers:
            logger.log_metrics(metrics.named("val/"), trainer.global_step)
        for watcher in self.watchers:
            watcher.measured(trainer, metrics.watched)
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, Throughput):
                callback.leave_out(time.perf_counter() - started)

    def _is_due(self, trainer: pl.Trainer, batch_idx: int) -> bool:
        if trainer.should_stop or trainer.global_step == trainer.max_steps:
            return bool(self.watchers)
        ends_epoch = batch_idx + 1 == trainer.num_training_batches
        return ends_epoch or (self.every_n_steps is not None and trainer.global_step % self.every_n_steps == 0)
