"""Use of the machine as metrics of a fit: measured by MLflow's own monitors, journaled as everything else is."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

from uniattn_pl.errors import UserError
from uniattn_pl.printed_commands import install
from uniattn_pl.tracking.mlflow_requests import short_reason
from uniattn_pl.tracking.mlflow_run import MLflowRun

PREFIX = "system/"  # MLflow's pages have a tab for these
DEFAULT_INTERVAL_S = 10.0


def check_monitors(*, wanted: bool) -> None:
    """Raise UserError where it is to be measured and psutil, by which MLflow does, is not installed."""
    if wanted and find_spec("psutil") is None:
        raise UserError(f"tracking.system_metrics needs the package psutil; install it with: {install('psutil')}")


class SystemMetrics:
    """A thread that measures every ten seconds ($MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL), on this machine.

    MLflow's `SystemMetricsMonitor` asks the server at every sample and ends when it is away; its monitors do not.

    Args:
        run: where the metrics go; their steps are samples, counted on where a fit goes on.
        tell: called with a line when measuring fails, which ends it.
    """

    def __init__(self, run: MLflowRun, tell: Callable[[str], None]) -> None:
        self.run, self.tell = run, tell
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._work, name="system-metrics", daemon=True)

    def start(self) -> None:
        """Begin to measure."""
        self._thread.start()

    def finish(self) -> None:
        """End it."""
        self._ending.set()
        self._thread.join()

    def _work(self) -> None:
        from mlflow.environment_variables import MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL as INTERVAL

        try:
            monitors, step = _monitors(), self.run.next_step(PREFIX)
            interval = INTERVAL.get() or DEFAULT_INTERVAL_S
            while not self._ending.wait(interval):
                metrics: dict[str, float] = {}
                for monitor in monitors:
                    monitor.collect_metrics()
                    metrics |= monitor.aggregate_metrics()
                    monitor.clear_metrics()
                self.run.log_metrics({f"{PREFIX}{name}": value for name, value in metrics.items()}, step)
                step += 1
        except Exception as error:
            with contextlib.suppress(Exception):
                self.tell(f"tracking.system_metrics: measuring failed and has ended ({short_reason(error)}).")


def _monitors() -> list[Any]:
    """Those of MLflow that work here: a card's needs its driver's Python package."""
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
    from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor
    from mlflow.system_metrics.metrics.rocm_monitor import ROCMMonitor

    logging.getLogger("mlflow.system_metrics").setLevel(logging.ERROR)
    monitors: list[Any] = [CPUMonitor(), DiskMonitor(), NetworkMonitor()]
    for card in (GPUMonitor, ROCMMonitor):
        with contextlib.suppress(Exception):
            monitors.append(card())
            break
    return monitors
