"""A Lightning Trainer for tests: quiet, on one device, for a number of optimizer steps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader


def fit(
    module: pl.LightningModule,
    batches: Sequence[dict[str, torch.Tensor]],
    folder: Path,
    *,
    steps: int,
    ckpt_path: Path | None = None,
    device: str = "cpu",
    **options: Any,
) -> pl.Trainer:
    """Fit `module` for `steps` on ready-made micro batches; `options` are the Trainer's."""
    settings: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "log_every_n_steps": 1} | options
    trainer = pl.Trainer(
        accelerator=device,
        devices=1,
        max_steps=steps,
        max_epochs=-1,
        default_root_dir=folder,
        enable_progress_bar=False,
        enable_model_summary=False,
        **settings,
    )
    trainer.fit(module, DataLoader(batches, batch_size=None), ckpt_path=ckpt_path, weights_only=True)  # type: ignore[arg-type]
    return trainer
