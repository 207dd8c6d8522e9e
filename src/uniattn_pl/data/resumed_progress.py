"""Resuming with other micro batches or another number of devices than a checkpoint was saved with."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl

from uniattn_pl.data.loader import ResumableLoader


class ResumedProgress(pl.Callback):
    """Lets Lightning's own count of micro batches follow the loader's converted position.

    Lightning ends an epoch, and an accumulation, by that count, which its checkpoint holds in the former micro batches.

    Args:
        loader: the one that is about to be trained on.
    """

    def __init__(self, loader: ResumableLoader) -> None:
        self.loader = loader

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Move the counts before Lightning reads them. Raises UserError as `ResumableLoader.load_state_dict`."""
        loop = checkpoint["loops"]["fit_loop"]
        (state,) = loop["state_dict"]["combined_loader"]
        moved = self.loader.position_of(state) - state["position"]
        progress = loop["epoch_loop.batch_progress"]
        for counts in (progress["current"], progress["total"]):
            for name in counts:
                counts[name] += moved
