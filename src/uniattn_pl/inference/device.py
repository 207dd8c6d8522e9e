"""The device a measurement runs on."""

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
