"""The device a model runs on: of a measurement, and of texts."""

from __future__ import annotations

import torch

from uniattn_pl.config.schema import ExperimentConfig
from uniattn_pl.resilience.cluster import Cluster


def trainer_device(config: ExperimentConfig) -> torch.device:
    """The one device that the Lightning Trainer would take.

    Raises:
        UserError: as `Cluster.alone`.
    """
    return Cluster.alone(config).device


def fastest_device() -> torch.device:
    """The first card, where there is one, else the CPU: what `trainer.accelerator=auto` takes."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
