"""Keep the weights of the lowest held-out loss, and go back to them in the end."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch

from uniattn_pl.errors import RunFailure, UserError
from uniattn_pl.resilience.checkpoints import CheckpointStore, damage, state_in


class BestWeights(pl.Callback):
    """Saves what trains whenever the held-out loss is lower than ever, beside the checkpoints.

    One of `HeldOutLoss`'s watchers. Which step that was is in every checkpoint: a fit that is killed and resumed ends
    with the same weights.

    Args:
        store: of the stage's checkpoints, which holds them.
        sharded: each rank writes its part.

    Attributes:
        step, loss: of the best weights so far; step is None where there are none.
    """

    def __init__(self, store: CheckpointStore, *, sharded: bool = False) -> None:
        self.store, self.sharded = store, sharded
        self.step: int | None = None
        self.loss = math.inf

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step, "loss": self.loss}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.step, self.loss = state_dict["step"], state_dict["loss"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.store.take_best(self.step)
        if self.store.best is not None and state_in(self.store.best).is_dir() and _loader(trainer) is None:
            raise UserError(
                f"the best weights so far, in {self.store.best}, were written in shards, which training.strategy=fsdp "
                "reads, also on one device."
            )

    def measured(self, trainer: pl.Trainer, loss: float) -> None:
        """Save the weights if what was measured behind this step is the lowest loss of all."""
        if loss < self.loss:
            self.step, self.loss = trainer.global_step, loss
            self.store.save_best(trainer, sharded=self.sharded)

    def restore(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Put the best weights back into a module that was trained on; every rank calls this, when the fit is over.

        Raises:
            RunFailure: their files are damaged.
        """
        if self.step is None or self.step == trainer.global_step:
            return
        folder = self.store.best_of(self.step)
        problem = damage(folder)
        if problem is not None:
            raise RunFailure(
                f"the best weights, of step {self.step}, are damaged: {problem} in {folder}. Run the same command "
                f"again: it trains from a checkpoint that does not rest on them, or the stage anew."
            )
        load = _loader(trainer)
        if load is not None:
            load(state_in(folder))
            return
        saved = torch.load(state_in(folder), map_location="cpu", mmap=True, weights_only=True)["state_dict"]
        trained = {name for name, parameter in pl_module.named_parameters() if parameter.requires_grad}
        if saved.keys() != trained:
            names = ", ".join(sorted(saved.keys() ^ trained)[:3])
            raise RunFailure(f"the best weights in {folder} are not those of this module: {names} is in one of them.")
        pl_module.load_state_dict(saved, strict=False)


def _loader(trainer: pl.Trainer) -> Callable[[Path], Any] | None:
    """How a strategy that shards loads what was saved by any; None: the module itself does."""
    return getattr(trainer.strategy, "load_weights", None)
