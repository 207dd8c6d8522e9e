"""The device a model runs on: of a measurement, and of texts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from uniattn_pl.config.schema import ExperimentConfig


def trainer_device(config: ExperimentConfig) -> torch.device:
    """The one device that the Lightning Trainer would take.

    Raises:
        UserError: as `Cluster.alone`.
    """
    from uniattn_pl.resilience.cluster import Cluster

    return Cluster.alone(config).device


def fastest_device() -> torch.device:
    """The first card, where there is one, else the CPU: what `trainer.accelerator=auto` takes."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
