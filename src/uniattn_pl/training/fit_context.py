"""The environment of a running fit: its ranks, signals, record, MLflow run and console."""

from __future__ import annotations

from dataclasses import dataclass

from rich.console import Console

from uniattn_pl.resilience.cluster import Cluster
from uniattn_pl.resilience.preemption import Preemption
from uniattn_pl.resilience.run_record import RunRecord
from uniattn_pl.training.fit_tracking import FitTracking


@dataclass(frozen=True)
class FitContext:
    """What every phase of a fit has in common, whatever it trains.

    Attributes:
        cluster: the ranks that run it together.
        preemption: the signals that end the job.
        record: how far it has come.
        tracking: logs to its MLflow run, on rank 0.
        console: prints, on rank 0.
    """

    cluster: Cluster
    preemption: Preemption
    record: RunRecord
    tracking: FitTracking
    console: Console
