"""Resumable checkpoints at optimizer-step boundaries only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ModelCheckpoint


class StepCheckpoint(ModelCheckpoint):
    """Keeps one checkpoint file, replaced every few optimizer steps.

    Lightning's ModelCheckpoint forgets on resume which step it saved, and would save again after the first
    micro batch of the next step; resuming from that file loses the gradient accumulated so far. This one
    saves only when the optimizer has just stepped.

    Args:
        path: the file, ending in `.ckpt`.
        every_n_steps: optimizer steps between checkpoints.
    """

    def __init__(self, path: Path, every_n_steps: int) -> None:
        super().__init__(
            dirpath=path.parent,
            filename=path.stem,
            every_n_train_steps=every_n_steps,
            save_top_k=1,
            save_on_train_epoch_end=False,
            enable_version_counter=False,
        )
        self._stepped_to = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._stepped_to = trainer.global_step

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step != self._stepped_to:
            self._stepped_to = trainer.global_step
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
