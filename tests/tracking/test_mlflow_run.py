"""The MLflow run of a fit on a real sqlite store."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from uniattn_pl.config.sections.tracking_section import TrackingConfig
from uniattn_pl.errors import UserError
from uniattn_pl.tracking.mlflow_run import MLflowRun
from uniattn_pl.tracking.run_above import parent_tag
from uniattn_pl.tracking.stage_logger import StageLogger


@pytest.fixture(scope="module")
def tracking(tmp_path_factory: pytest.TempPathFactory) -> TrackingConfig:
    folder = tmp_path_factory.mktemp("mlruns")
    return TrackingConfig(uri=f"sqlite:///{folder}/mlflow.db", artifact_location=str(folder / "artifacts"))


def opened(tracking: TrackingConfig, folder: Path, fit_id: str, run_id: str | None = None) -> MLflowRun:
    tags = {"uniattn_pl.run_folder": "/r"}
    return MLflowRun.open(tracking, name="a fit", fit_id=fit_id, run_id=run_id, tags=tags, folder=folder)


def stored(tracking: TrackingConfig, run: MLflowRun) -> Run:
    """The run as MLflow has it once everything is delivered."""
    assert run.drain()
    return MlflowClient(tracking.uri).get_run(str(run.run_id))


def test_a_resumed_run_is_continued_without_duplicates(tracking: TrackingConfig, tmp_path: Path) -> None:
    first = opened(tracking, tmp_path, "resumed")
    StageLogger(first, step_offset=10).log_metrics({"stage2/loss": 3.0, "epoch": 0}, 1)
    first.log_params({"seed": 1})
    assert first.end("FINISHED")

    second = opened(tracking, tmp_path, "resumed", first.run_id)
    assert stored(tracking, second).info.status == "RUNNING"
    second.log_params({"seed": 2, "late": "x"})
    for step in (1, 2):
        StageLogger(second, step_offset=10).log_metrics({"stage2/loss": 9.0 / step}, step)
    assert second.end("FINISHED")
    run = stored(tracking, second)
    points = MlflowClient(tracking.uri).get_metric_history(run.info.run_id, "stage2/loss")
    assert second.history("stage2/loss") == [(p.step, p.value) for p in points] == [(11, 3.0), (12, 4.5)]
    assert run.data.params == {"seed": "1", "late": "x"}
    assert set(run.data.metrics) == {"stage2/loss"}
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "a fit"


def test_a_run_whose_id_was_never_recorded_is_found_by_its_fit(tracking: TrackingConfig, tmp_path: Path) -> None:
    ids = []
    for folder, fit_id in (("one", "found"), ("two", "found"), ("three", "other")):
        run = opened(tracking, tmp_path / folder, fit_id)
        ids.append(run.run_id)
        assert run.end("FINISHED")
    assert ids[0] == ids[1] != ids[2]


def test_long_values_are_cut_and_credentials_left_out(tracking: TrackingConfig, tmp_path: Path) -> None:
    run = opened(tracking, tmp_path, "params")
    run.log_params({"long": "y" * 10_000, "uri": "https://me:secret@host/x?token=abc&page=2"})
    run.set_tag("where", "https://me:secret@host/x")
    run.log_text("from https://me:secret@host/x", "note.txt")
    data = stored(tracking, run).data
    assert len(data.params["long"]) <= 250
    assert data.params["long"].endswith("...")
    assert data.params["uri"] == "https://***@host/x?token=***&page=2"
    assert data.tags["where"] == "https://***@host/x"
    assert run.end("FINISHED")
    kept = [file.read_text() for file in run.journal_folder.rglob("*") if file.is_file()]
    assert len(kept) == 3, "the journal, how far it is delivered, and the note"
    assert not any("secret" in text for text in kept)


def test_artifacts_are_kept_where_the_config_says(tracking: TrackingConfig, tmp_path: Path) -> None:
    from uniattn_pl.tracking.fit_plots import loss_curve, milestones

    run = opened(tracking, tmp_path, "artifacts")
    run.log_text("the plan", "plan.txt")
    run.log_figure(loss_curve({"stage1": [(1, 3.0), (2, 2.5)], "stage2": []}, [(0, 3.1)]), "plots/loss")
    run.log_figure(milestones({"original": 3.0, "after stage 2": 2.0}), "plots/milestones")
    assert run.end("FINISHED")
    root = Path(str(tracking.artifact_location)) / str(run.run_id) / "artifacts"
    assert (root / "plan.txt").read_text() == "the plan"
    assert (root / "plots/loss.png").read_bytes().startswith(b"\x89PNG")
    assert (root / "plots/milestones.png").exists()


def test_mlflow_opens_the_experiment_on_its_training_pages(tracking: TrackingConfig, tmp_path: Path) -> None:
    assert opened(tracking, tmp_path, "kind").end("FINISHED")
    experiment = MlflowClient(tracking.uri).get_experiment_by_name(tracking.experiment)
    assert experiment is not None
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"


def test_a_run_that_is_not_in_the_store_is_refused(tracking: TrackingConfig, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot open run 0123"):
        opened(tracking, tmp_path, "gone", run_id="0123456789abcdef0123456789abcdef")


def test_a_deleted_run_is_refused_with_the_way_out(tracking: TrackingConfig, tmp_path: Path) -> None:
    run = opened(tracking, tmp_path, "deleted")
    assert run.end("FINISHED")
    MlflowClient(tracking.uri).delete_run(str(run.run_id))
    with pytest.raises(UserError, match=f"mlflow runs restore --run-id {run.run_id}"):
        opened(tracking, tmp_path, "deleted")


def test_a_deleted_experiment_is_refused_with_the_way_out(tracking: TrackingConfig, tmp_path: Path) -> None:
    client = MlflowClient(tracking.uri)
    client.delete_experiment(client.create_experiment("deleted"))
    with pytest.raises(UserError, match=r"'deleted' is deleted at .* or restore it with: .* restore --exp"):
        opened(replace(tracking, experiment="deleted"), tmp_path, "x")


@pytest.mark.parametrize(
    ("uri", "answer"),
    [
        ("./mlruns", r"sqlite:///mlruns/mlflow\.db"),
        ("file:///mlruns", r"sqlite:///mlruns/mlflow\.db"),
        ("htp://server:5000", "Did you mean 'http'?"),
        ("http:/server:5000", "names no server"),
        ("sqlite:mlflow.db", "names no database file"),
        ("postgres://me:secret@server/db", r"'postgres://\*\*\*@server/db' begins with 'postgres:'"),
    ],
)
def test_a_uri_that_cannot_be_one_is_refused_without_asking_anybody(tmp_path: Path, uri: str, answer: str) -> None:
    with pytest.raises(UserError, match=answer.replace("?", r"\?")):
        opened(TrackingConfig(uri), tmp_path, "x")
    assert list(tmp_path.iterdir()) == []


def test_what_measures_in_a_run_folder_is_shown_below_its_run(tracking: TrackingConfig, tmp_path: Path) -> None:
    run = opened(tracking, tmp_path, "fitted")
    assert run.end("FINISHED")
    folder = run.journal_folder.parent
    assert parent_tag(tracking, folder) == {"mlflow.parentRunId": run.run_id}
    assert parent_tag(tracking, tmp_path / "never") == {}
    other = replace(tracking, uri=f"sqlite:///{tmp_path}/other.db")
    assert parent_tag(other, folder) == {}, "the run is in another store"
