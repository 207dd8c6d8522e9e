"""`tracking`: where MLflow keeps runs."""

from __future__ import annotations

from dataclasses import dataclass

from uniattn_pl.options import option


@dataclass
class TrackingConfig:
    """Where MLflow keeps runs."""

    uri: str = option("sqlite:///mlruns/mlflow.db", "MLflow tracking URI", path=True)
    experiment: str = option("uniattn_pl", "MLflow experiment name")
    artifact_location: str | None = option(
        "mlruns/artifacts", "artifact folder of a new experiment on a local store", path=True
    )
    parent_run: str | None = option(None, "MLflow run that this one is shown under; a sweep sets it for its points")
