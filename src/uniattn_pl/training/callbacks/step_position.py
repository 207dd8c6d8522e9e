"""Where in an epoch a checkpoint is, in a form that another number of ranks understands."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl

KEY = "step_position"


class StepPosition(pl.Callback):
    """Translates Lightning's count of micro batches when a fit resumes with other ranks or micro batches.

    Lightning counts micro batches of one rank; with half the ranks a step has twice as many. Checkpoints lie between
    steps, where the translation is exact.

    Args:
        micro_batches: of one rank in an epoch.
    """

    def __init__(self, micro_batches: int) -> None:
        self.micro_batches = micro_batches

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint[KEY] = {"accumulate": trainer.accumulate_grad_batches, "micro_batches": self.micro_batches}

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        saved = checkpoint[KEY]
        now = {"accumulate": trainer.accumulate_grad_batches, "micro_batches": self.micro_batches}
        if saved == now:
            return
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        for name, before in progress["current"].items():
            epochs = (progress["total"][name] - before) // saved["micro_batches"]
            after = _translated(before, saved, now)
            progress["current"][name] = after
            progress["total"][name] = epochs * now["micro_batches"] + after


def _translated(count: int, saved: dict[str, int], now: dict[str, int]) -> int:
    """Micro batches of this epoch, the last and perhaps shorter step included."""
    if count >= saved["micro_batches"]:
        return now["micro_batches"]
    return count // saved["accumulate"] * now["accumulate"]
