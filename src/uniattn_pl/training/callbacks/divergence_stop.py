"""Stop at the first NaN, infinite or exploded loss, before it reaches a checkpoint."""

from __future__ import annotations

import math
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from torch import Tensor

from uniattn_pl.resilience import ranks
from uniattn_pl.resilience.failures import TrainingDivergedError
from uniattn_pl.training.callbacks.step_checkpoint import StepCheckpoint
from uniattn_pl.training.callbacks.step_loss import StepLoss

# A model that knows nothing loses ln(vocabulary) nats per token; one this many times worse has exploded.
EXPLODED = 3.0
SHOWN_ROWS = 16


class DivergenceStop(pl.Callback):
    """Raises when a step's loss, or the gradient norm of a module that keeps `grad_norm`, is not finite or exploded.

    Runs before Lightning's checkpoint callbacks, so the last checkpoint on disk is the last good one.

    Raises:
        TrainingDivergedError: names the step, its rows of training data, the last good checkpoint and what to try.
    """

    def __init__(self) -> None:
        self._loss = StepLoss()
        self._micro_batches: list[tuple[Tensor, Tensor]] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._loss.start(trainer)
        self._micro_batches = []

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if isinstance(batch, dict) and "rows" in batch:
            self._micro_batches.append((batch["rows"], outputs["loss"].detach()))
        loss = self._loss.update(trainer, pl_module, outputs)
        if loss is None:
            return
        suspects = {"loss": float(loss)}
        norm = getattr(pl_module, "grad_norm", None)
        # with a gradient scaler (16-mixed) an infinite gradient is routine: the scaler skips that step
        if isinstance(norm, Tensor) and getattr(trainer.precision_plugin, "scaler", None) is None:
            suspects["gradient norm"] = float(norm)
        for what, value in suspects.items():
            limit = _exploded(pl_module) if what == "loss" else math.inf
            if not math.isfinite(value) or value > limit:
                raise TrainingDivergedError(_message(trainer, what, value, self._rows()))
        self._micro_batches = []

    def _rows(self) -> list[int]:
        """The training rows, on all ranks, of the micro batches that are not finite; of all when each one is."""
        bad = [rows for rows, loss in self._micro_batches if not math.isfinite(float(loss))]
        chosen = bad or [rows for rows, _ in self._micro_batches]
        own = sorted({int(row) for rows in chosen for row in rows.flatten() if row >= 0})
        everyones = ranks.gather((bool(bad), own))
        some_bad = any(has_bad for has_bad, _ in everyones)
        return sorted({row for has_bad, rows in everyones if has_bad or not some_bad for row in rows})


def _exploded(module: Any) -> float:
    """Nats per token that no useful model reaches; infinite where the vocabulary is not known, or of another loss."""
    if not getattr(getattr(module, "objective", None), "per_token", True):
        return math.inf
    vocabulary = getattr(getattr(getattr(module, "model", None), "config", None), "vocab_size", None)
    return EXPLODED * math.log(vocabulary) if vocabulary else math.inf


def _message(trainer: pl.Trainer, what: str, value: float, rows: list[int]) -> str:
    good = next((path for path in map(_last_good, trainer.checkpoint_callbacks) if path), None) or trainer.ckpt_path
    kept = f"the last good checkpoint is {good}" if good else "no checkpoint had been written yet"
    shown = ", ".join(map(str, rows[:SHOWN_ROWS])) + (", ..." if len(rows) > SHOWN_ROWS else "")
    where = f" on training rows {shown} (counted from 0, as they are after the split)" if rows else ""
    return (
        f"the {what} became {value:g} at step {trainer.global_step}{where}; {kept}. "
        "A lower learning rate, a longer warm-up or float32 precision usually helps."
    )


def _last_good(callback: Checkpoint) -> str | None:
    if isinstance(callback, StepCheckpoint):
        newest = callback.store.newest()
        return None if newest is None else str(newest)
    if isinstance(callback, ModelCheckpoint):
        return callback.best_model_path or callback.last_model_path
    return None
