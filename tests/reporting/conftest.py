"""One MLflow database for all tests of a process: making its tables takes seconds. Each test has its own experiment."""

from __future__ import annotations

from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient
from tests.reporting.tracked import Tracked

from uniattn_pl.config.sections.tracking_section import TrackingConfig
from uniattn_pl.tracking.mlflow_store import connect


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> tuple[MlflowClient, str]:
    uri = f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"
    return connect(TrackingConfig(uri=uri)), uri


@pytest.fixture
def tracked(store: tuple[MlflowClient, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tracked:
    monkeypatch.chdir(tmp_path)
    return Tracked(tmp_path, *store)
