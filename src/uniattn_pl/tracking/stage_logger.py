"""The Lightning logger of one training stage, writing into the fit's MLflow run."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.loggers.logger import Logger

from uniattn_pl.tracking.mlflow_run import MLflowRun


class StageLogger(Logger):
    """Shifts a stage's steps by those of the stages before it, so that a fit is one curve.

    Args:
        run: the fit's run.
        step_offset: optimizer steps of earlier stages.
    """

    def __init__(self, run: MLflowRun, step_offset: int) -> None:
        super().__init__()
        self.run, self.step_offset = run, step_offset

    @property
    def name(self) -> str:
        return "mlflow"

    @property
    def version(self) -> str:
        return self.run.run_id or ""

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        # Lightning adds the epoch to metrics it logs by itself; as its own curve it says nothing
        kept = {key: value for key, value in metrics.items() if key != "epoch"}
        self.run.log_metrics(kept, (step or 0) + self.step_offset)

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """The fit records the parameters once."""

    def flush(self) -> None:
        """Make what is logged survive a power cut; called before each checkpoint."""
        self.run.flush()
