"""The MLflow run of a fit on a real sqlite store."""

from __future__ import annotations

from pathlib import Path

import pytest

from uniattn_pl.config.schema import TrackingConfig
from uniattn_pl.errors import UserError
from uniattn_pl.tracking.mlflow_run import MLflowRun
from uniattn_pl.tracking.stage_logger import StageLogger


@pytest.fixture(scope="module")
def tracking(tmp_path_factory: pytest.TempPathFactory) -> TrackingConfig:
    folder = tmp_path_factory.mktemp("mlruns")
    return TrackingConfig(uri=f"sqlite:///{folder}/mlflow.db", artifact_location=str(folder / "artifacts"))


def opened(tracking: TrackingConfig, fit_id: str, run_id: str | None = None) -> MLflowRun:
    return MLflowRun.open(tracking, name="a fit", fit_id=fit_id, run_id=run_id, tags={"uniattn_pl.run_folder": "/r"})


def test_a_resumed_run_is_continued_without_duplicates(tracking: TrackingConfig) -> None:
    first = opened(tracking, "resumed")
    StageLogger(first, step_offset=10).log_metrics({"stage2/loss": 3.0, "epoch": 0}, 1)
    first.log_params({"seed": 1})
    first.end("FINISHED")

    second = opened(tracking, "resumed", first.run_id)
    assert second.client.get_run(second.run_id).info.status == "RUNNING"
    second.log_params({"seed": 2, "late": "x"})
    for step in (1, 2):
        StageLogger(second, step_offset=10).log_metrics({"stage2/loss": 9.0 / step}, step)
    second.end("FINISHED")
    run = second.client.get_run(second.run_id)
    assert second.history("stage2/loss") == [(11, 3.0), (12, 4.5)]
    assert run.data.params == {"seed": "1", "late": "x"}
    assert set(run.data.metrics) == {"stage2/loss"}
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "a fit"


def test_a_run_whose_id_was_never_recorded_is_found_by_its_fit(tracking: TrackingConfig) -> None:
    assert opened(tracking, "found").run_id == opened(tracking, "found").run_id
    assert opened(tracking, "other").run_id != opened(tracking, "found").run_id


def test_long_values_are_cut_and_credentials_left_out(tracking: TrackingConfig) -> None:
    run = opened(tracking, "params")
    run.log_params({"long": "y" * 10_000, "uri": "https://me:secret@host/x?token=abc&page=2"})
    params = run.client.get_run(run.run_id).data.params
    assert len(params["long"]) <= 250
    assert params["long"].endswith("...")
    assert params["uri"] == "https://***@host/x?token=***&page=2"


def test_artifacts_are_kept_where_the_config_says(tracking: TrackingConfig) -> None:
    from uniattn_pl.tracking.plots import loss_curve, milestones

    run = opened(tracking, "artifacts")
    run.log_text("the plan", "plan.txt")
    run.log_figure(loss_curve({"stage1": [(1, 3.0), (2, 2.5)], "stage2": []}, [(0, 3.1)]), "plots/loss.png")
    run.log_figure(milestones({"original": 3.0, "after stage 2": 2.0}), "plots/milestones.png")
    root = Path(str(tracking.artifact_location)) / run.run_id / "artifacts"
    assert (root / "plan.txt").read_text() == "the plan"
    assert (root / "plots/loss.png").read_bytes().startswith(b"\x89PNG")
    assert (root / "plots/milestones.png").exists()


def test_a_run_that_is_not_in_the_store_is_refused(tracking: TrackingConfig) -> None:
    with pytest.raises(UserError, match="cannot open run 0123"):
        opened(tracking, "gone", run_id="0123456789abcdef0123456789abcdef")


def test_a_plain_folder_is_refused_with_the_way_out() -> None:
    with pytest.raises(UserError, match=r"sqlite:///mlruns/mlflow\.db"):
        opened(TrackingConfig(uri="./mlruns"), "x")
