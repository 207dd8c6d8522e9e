"""Per-step metrics, written before the step can be checkpointed."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
from torch import Tensor

from uniattn_pl.training.callbacks.step_loss import StepLoss
from uniattn_pl.training.optimizers import LEARNING_RATE, RATE_NAME


class StepMetrics(pl.Callback):
    """Logs loss and its terms, learning rates, gradient norm and routers' loss of every optimizer step.

    Lightning logs a step's metrics after its checkpoint callback ran, so a kill in between leaves a hole
    in the curve. This callback logs first and flushes the loggers before a checkpoint is written: what
    a checkpoint has seen, the logger has.

    Args:
        prefix: put before the metric names, for instance "stage1/".
    """

    def __init__(self, prefix: str = "train/") -> None:
        self.prefix = prefix
        self._loss = StepLoss()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._loss.start(trainer)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        loss = self._loss.update(trainer, pl_module, outputs)
        if loss is None or trainer.global_step % trainer.log_every_n_steps:  # type: ignore[attr-defined]
            return
        metrics = {"loss": float(loss)}
        if trainer.lr_scheduler_configs:
            # the scheduler has already moved on; the rate this step used is the one before
            metrics |= _rates_used(trainer)
        for name, attribute in (("grad_norm", "grad_norm"), ("router_loss", "step_router_loss")):
            value = getattr(pl_module, attribute, None)
            if isinstance(value, Tensor):
                metrics[name] = float(value)
        metrics |= {name: float(value) for name, value in getattr(pl_module, "step_terms", {}).items()}
        for logger in trainer.loggers:
            logger.log_metrics({self.prefix + name: value for name, value in metrics.items()}, trainer.global_step)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        for logger in trainer.loggers:
            getattr(logger, "flush", logger.save)()


def _rates_used(trainer: pl.Trainer) -> dict[str, float]:
    """The learning rate of each kind of parameter group, by name."""
    scheduler = trainer.lr_scheduler_configs[0].scheduler
    lambdas, bases = getattr(scheduler, "lr_lambdas", None), getattr(scheduler, "base_lrs", None)
    rates = {}
    for index, group in enumerate(trainer.optimizers[0].param_groups):
        rate = float(group["lr"])
        if lambdas and bases and scheduler.last_epoch > 0:
            rate = float(bases[index] * lambdas[index](scheduler.last_epoch - 1))
        rates[group.get(RATE_NAME, LEARNING_RATE)] = rate
    return rates
