"""What one process has of a fit besides what it trains: ranks, signals, record, MLflow run, console."""

from __future__ import annotations

from dataclasses import dataclass

from rich.console import Console

from uniattn_pl.resilience.cluster import Cluster
from uniattn_pl.resilience.preemption import Preemption
from uniattn_pl.resilience.run_record import RunRecord
from uniattn_pl.training.fit_tracking import FitTracking


@dataclass(frozen=True)
class FitRun:
    """What keeps a fit going and tells of it, whatever it trains.

    Attributes:
        cluster: the ranks that run it together.
        preemption: what has been told to end.
        record: how far it has come.
        tracking: its MLflow run; rank 0's.
        console: where people read; rank 0's.
    """

    cluster: Cluster
    preemption: Preemption
    record: RunRecord
    tracking: FitTracking
    console: Console
