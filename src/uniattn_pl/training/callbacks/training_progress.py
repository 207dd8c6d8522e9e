"""One line of progress per stage: steps, loss, tokens per second and time left."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
from rich.console import Console

from uniattn_pl.display.progress import ProgressReporter
from uniattn_pl.training.callbacks.held_out_loss import HeldOutLoss
from uniattn_pl.training.callbacks.step_loss import StepLoss
from uniattn_pl.training.callbacks.throughput import Throughput


class TrainingProgress(pl.Callback):
    """A rich bar on a terminal, about ten plain lines otherwise; silent on ranks other than 0.

    Args:
        label: what is shown in front.
        console: default: standard output.
    """

    def __init__(self, label: str = "training", console: Console | None = None) -> None:
        self.label, self.console = label, console or Console()
        self._loss = StepLoss()
        self._reporter: ProgressReporter | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._loss.start(trainer)
        if trainer.is_global_zero:
            self._reporter = ProgressReporter(self.label, self.console)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        loss = self._loss.update(trainer, pl_module, outputs)
        if loss is None or self._reporter is None:
            return
        throughput, held_out = (_first(trainer, kind) for kind in (Throughput, HeldOutLoss))
        rate = throughput.tokens_per_second if throughput else None
        measured = held_out.last if held_out else None
        speed = "" if rate is None else f"  {rate:,.0f} tokens/s"
        quality = "" if measured is None else f", held out {measured:.4f}"
        total = int(trainer.estimated_stepping_batches)
        self._reporter.update(trainer.global_step, total, f"loss {float(loss):.4f}{quality}{speed}")

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._close()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._close()

    def _close(self) -> None:
        if self._reporter is not None:
            self._reporter.close()


def _first(trainer: pl.Trainer, kind: type[pl.Callback]) -> Any:
    """The first callback of a kind, or None."""
    return next((c for c in trainer.callbacks if isinstance(c, kind)), None)  # type: ignore[attr-defined]
