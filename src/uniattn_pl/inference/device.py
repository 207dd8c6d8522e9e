"""The device a measurement runs on."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch


def trainer_device(accelerator: str) -> torch.device:
    """The one device that the Lightning Trainer would take."""
    silent: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return pl.Trainer(accelerator=accelerator, devices=1, max_steps=0, **silent).strategy.root_device
