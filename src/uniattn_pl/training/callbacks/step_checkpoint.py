"""Resumable checkpoints at optimizer-step boundaries, every so often and when the job is about to end."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Checkpoint

from uniattn_pl.resilience.checkpoints import CheckpointStore
from uniattn_pl.resilience.preemption import Preempted, Preemption


class StepCheckpoint(Checkpoint):
    """Saves into a store when the optimizer has just stepped; on a preemption signal also at once, and ends the fit.

    Lightning's ModelCheckpoint forgets on resume which step it saved, and would save again after the first
    micro batch of the next step; resuming from that file loses the gradient accumulated so far.

    Args:
        store: of this stage.
        every_n_steps: optimizer steps between checkpoints.
        preemption: default: never.
        sharded: each rank writes its part.

    Raises:
        Preempted: a signal came, on any rank.
        CheckpointError: a checkpoint could not be written.
    """

    def __init__(
        self,
        store: CheckpointStore,
        every_n_steps: int,
        preemption: Preemption | None = None,
        *,
        sharded: bool = False,
    ) -> None:
        self.store, self.every_n_steps, self.sharded = store, every_n_steps, sharded
        self.preemption = preemption or Preemption()
        self._stepped_to = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._stepped_to = trainer.global_step
        self.preemption.install()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self._stepped_to:
            return
        self._stepped_to = trainer.global_step
        signal_number = self.preemption.on_any_rank()
        if signal_number or trainer.global_step % self.every_n_steps == 0:
            saved = self.store.save(trainer, sharded=self.sharded)
            if signal_number:
                raise Preempted(signal_number, f"step {trainer.global_step} is saved in {saved}")
