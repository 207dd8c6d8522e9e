"""`tracking`: where MLflow keeps runs, and what else it is told of a fit."""

from __future__ import annotations

from dataclasses import dataclass

from uniattn_pl.options import option

OTHER_LOGGERS = {
    "csv": "one table of all metrics",
    "tensorboard": "event files",
    "wandb": "offline runs, for `wandb sync`",
}


@dataclass
class TrackingConfig:
    """Where MLflow keeps runs, and what else it is told of a fit."""

    uri: str = option(
        "sqlite:///mlruns/mlflow.db",
        "MLflow tracking URI; where it is not set, $MLFLOW_TRACKING_URI if there is one",
        path=True,
    )
    experiment: str = option("uniattn_pl", "MLflow experiment name")
    artifact_location: str | None = option(
        "mlruns/artifacts", "artifact folder of a new experiment on a local store", path=True
    )
    parent_run: str | None = option(None, "MLflow run that this one is shown under; a sweep sets it for its points")
    register_as: str | None = option(
        None, "name in MLflow's model registry; every finished fit becomes a version of it; default: not registered"
    )
    system_metrics: bool = option(
        False, "use of CPU, memory, disk, network and GPU as curves `system/...` of a fit, a point every 10 s"
    )
    also: list[str] = option(
        [], f"what else writes a fit's metrics, into its run folder: {', '.join(OTHER_LOGGERS)}; by Lightning's loggers"
    )
