"""Inputs, the logged model, versions and tables on a real sqlite store: once each, and never in the way of metrics."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow.entities import LoggedModel
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import ErrorCode
from mlflow.tracking import MlflowClient

from uniattn_pl.config.sections.data_section import DataConfig
from uniattn_pl.config.sections.tracking_section import TrackingConfig
from uniattn_pl.errors import UserError
from uniattn_pl.tracking import delivery
from uniattn_pl.tracking.data_inputs import DataInput, held_out_rows, training_rows
from uniattn_pl.tracking.logged_model import ModelRecord
from uniattn_pl.tracking.mlflow_run import MLflowRun, deliver_pending, reopened
from uniattn_pl.tracking.store_check import check_store

DIGEST = "0123456789abcdef" * 4


@pytest.fixture(scope="module")
def tracking(tmp_path_factory: pytest.TempPathFactory) -> TrackingConfig:
    folder = tmp_path_factory.mktemp("store")
    return TrackingConfig(f"sqlite:///{folder}/mlflow.db", artifact_location=str(folder / "artifacts"))


@pytest.fixture
def client(tracking: TrackingConfig) -> MlflowClient:
    return MlflowClient(tracking.uri)


def opened(tracking: TrackingConfig, folder: Path, said: list[str] | None = None) -> MLflowRun:
    tell = [].append if said is None else said.append
    return MLflowRun.open(tracking, name="a fit", fit_id=folder.name, run_id=None, tags={}, folder=folder, tell=tell)


def record(folder: Path, **changes: Any) -> ModelRecord:
    fields = {
        "name": "llama-3.1",
        "kind": "uniattn",
        "folder": str(folder / "final"),
        "dtype": "float32",
        "params": {"seed": "0"},
        "tags": {"uniattn_pl.model": "tiny"},
        "what": "a model",
        "step": 7,
        "held_out": ("rows.jsonl", DIGEST[:12]),
        "register_as": None,
    }
    return ModelRecord(**{**fields, **changes})


def models(client: MlflowClient, run: MLflowRun) -> list[LoggedModel]:
    found = client.get_run(str(run.run_id))
    outputs = [output.model_id for output in found.outputs.model_outputs]
    logged = client.search_logged_models([found.info.experiment_id], f"source_run_id = '{run.run_id}'")
    assert sorted(outputs) == sorted(model.model_id for model in logged), "each is an output of the run, once"
    return list(logged)


def test_rows_are_inputs_by_source_and_digest(
    tracking: TrackingConfig, client: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").write_text("{}")
    run = opened(tracking, tmp_path / "run")
    config = DataConfig(source="rows.jsonl", validation_source="me/rows", split="test", further_sources=["self"])
    other = DIGEST[::-1]
    for _ in range(2):  # as a fit that goes on
        run.log_input(training_rows(config, DIGEST, 40))
        run.log_input(held_out_rows(config, other, 2))
        run.log_input(training_rows(DataConfig(source="rows.jsonl"), other, 3))
        run.log_input(training_rows(DataConfig(source="r*.jsonl", more_files=["a", "b", "c", "d"]), DIGEST, 9))
    assert run.end("FINISHED")
    logged = client.get_run(str(run.run_id)).inputs.dataset_inputs
    sources = {one.dataset.name: mlflow.data.get_source(one) for one in logged}
    assert {(one.dataset.name, one.dataset.digest, one.tags[0].value) for one in logged} == {
        ("rows.jsonl + self", DIGEST[:12], "training"),
        ("rows", other[:12], "validation"),
        ("rows.jsonl", other[:12], "training"),
        ("r*.jsonl + a + b + 2 more", DIGEST[:12], "training"),
    }
    assert {one.dataset.name: one.dataset.profile for one in logged}["rows"] == '{"num_rows": 2}'
    assert Path(sources["rows.jsonl"].load()) == tmp_path / "rows.jsonl"
    assert (sources["rows"].path, sources["rows"].split) == ("me/rows", "test")
    assert "rows.jsonl + self" in json.dumps(sources["rows.jsonl + self"].to_dict())


def test_a_model_that_is_sent_again_and_moved_stays_one(
    tracking: TrackingConfig, client: MlflowClient, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    run = opened(tracking, folder)
    run.log_metrics({"final/response_loss": 3.0, "stage1/loss": 4.0}, 3)
    run.log_metrics({"final/response_loss": 2.0, "cost/kv_retain_rate": 0.5}, 7)
    run.log_model(record(folder, register_as="registered"))
    assert run.end("FINISHED")
    (folder / "tracking/delivered.json").write_text("{torn")  # nobody knows what has arrived
    folder = folder.rename(tmp_path / "moved")
    with reopened(tracking, folder, name="a fit", fit_id="run", run_id=run.run_id) as again:
        again.log_model_metrics({"eval/held_out/loss": 1.5}, 7, DataInput.of(["a/b"], DIGEST, None, "evaluation"))
    assert again.pending == 0

    (model,) = models(client, run)
    assert (model.name, model.model_type, str(model.status)) == ("llama-3-1", "uniattn", "READY")
    assert model.params == {"seed": "0"}
    assert model.tags["uniattn_pl.final_model"] == str(folder / "final")
    assert str(folder / "final") in model.tags["mlflow.note.content"]
    points = {metric.key: metric for metric in model.metrics}
    assert {key: (point.step, point.value) for key, point in points.items()} == {
        "final/response_loss": (7, 2.0),
        "cost/kv_retain_rate": (7, 0.5),
        "eval/held_out/loss": (7, 1.5),
    }
    assert points["final/response_loss"].dataset_digest == DIGEST[:12]
    assert points["eval/held_out/loss"].dataset_name == "b"
    for key, steps in {"final/response_loss": [3, 7], "cost/kv_retain_rate": [7], "stage1/loss": [3]}.items():
        assert [point.step for point in client.get_metric_history(str(run.run_id), key)] == steps
    (version,) = client.search_model_versions("name = 'registered'")
    assert (version.run_id, version.source) == (run.run_id, model.artifact_location)
    assert version.tags == {"uniattn_pl.model": "tiny", "uniattn_pl.final_model": str(folder / "final")}
    assert json.loads(model.tags["mlflow.modelVersions"]) == [{"name": "registered", "version": version.version}]
    files = {item.path for item in client.list_logged_model_artifacts(model.model_id)}
    assert files == {"MLmodel", "load.py", "place.json"}
    assert client.get_run(str(run.run_id)).info.status == "FINISHED"


def test_every_finished_run_is_a_version_and_no_other(
    tracking: TrackingConfig, client: MlflowClient, tmp_path: Path
) -> None:
    runs = [opened(tracking, tmp_path / name) for name in ("one", "two")]
    for run in runs:
        run.log_model(record(tmp_path, register_as="versions"))
        assert run.end("FINISHED")
    versions = client.search_model_versions("name = 'versions'")
    assert {version.version: version.run_id for version in versions} == {1: runs[0].run_id, 2: runs[1].run_id}


def test_a_table_is_one_of_mlflows(
    tracking: TrackingConfig, client: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking.uri)  # load_table asks the store that is MLflow's default
    run = opened(tracking, tmp_path)
    run.log_table([{"row": 0, "loss": 1.0}], "tables/first.json")
    for loss in (2.5, float("nan")):
        run.log_table([{"row": 0, "loss": loss}, {"row": 1, "right": True}], "tables/second.json")
    assert run.end("FINISHED")
    table = client.load_table("1", "tables/second.json", [str(run.run_id)])
    assert list(table.columns) == ["row", "loss", "right"]
    assert table["row"].tolist() == [0, 1], "a later one takes its place"
    assert table["loss"].isna().all()
    assert client.load_table("1", "tables/first.json", [str(run.run_id)])["loss"].tolist() == [1.0]


def refusing(code: str) -> Any:
    def refuse(*args: object, **options: object) -> None:
        raise MlflowException("not here", ErrorCode.Value(code))

    return refuse


def test_a_store_without_a_registry_is_refused_at_the_start(
    tracking: TrackingConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MlflowClient, "search_registered_models", refusing("FEATURE_DISABLED"))
    config = TrackingConfig(tracking.uri, register_as="name")
    with pytest.raises(
        UserError, match=r"tracking\.register_as: the store at .* has no model registry .*set it to null"
    ):
        opened(config, tmp_path)
    with pytest.raises(UserError, match="no model registry"):
        check_store(config)  # of a dry run
    assert opened(tracking, tmp_path / "other").end("FINISHED")


def test_a_store_without_inputs_and_models_gets_all_else(
    tracking: TrackingConfig, client: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("log_inputs", "search_logged_models"):  # as a server of MLflow 2 answers
        monkeypatch.setattr(MlflowClient, name, refusing("ENDPOINT_NOT_FOUND"))
    said: list[str] = []
    run = opened(tracking, tmp_path, said)
    run.log_input(DataInput.of(["rows"], DIGEST, 1, "training"))
    run.log_model(record(tmp_path))
    run.log_model_metrics({"eval/loss": 1.0}, 1, None)
    assert run.end("FINISHED")
    assert client.get_run(str(run.run_id)).data.metrics == {"eval/loss": 1.0}
    assert [line.partition('"op": "')[2].partition('"')[0] for line in said] == ["input", "model"]
    assert all(len(line) < 400 and "stays in the journal only" in line for line in said)


def test_a_model_that_cannot_be_stored_now_holds_up_no_metric_and_comes_later(
    tracking: TrackingConfig, client: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(delivery, "SILENT_S", 0.5)
        patch.setattr(MlflowClient, "log_model_artifacts", refusing("INTERNAL_ERROR"))
        run = opened(tracking, tmp_path, said)
        run.log_model(record(tmp_path, register_as="later"))
        run.log_metrics({"loss": 1.0}, 1)
        assert not run.end("FINISHED")
        assert run.pending == 1
        assert client.get_run(str(run.run_id)).data.metrics == {"loss": 1.0}
        assert said[0].startswith("MLflow cannot store the model llama-3-1 (")
    assert deliver_pending(tracking, tmp_path) == 0
    (model,) = models(client, run)
    assert str(model.status) == "READY"
    assert len(client.search_model_versions("name = 'later'")) == 1


def test_artifacts_that_a_former_version_could_not_store_are_stored(
    tracking: TrackingConfig, client: MlflowClient, tmp_path: Path
) -> None:
    run = opened(tracking, tmp_path)
    assert run.end("FINISHED")
    state = json.loads((tmp_path / "tracking/delivered.json").read_text())
    (tmp_path / "tracking/artifacts").mkdir()
    (tmp_path / "tracking/artifacts/plan.txt").write_text("the plan")
    (tmp_path / "tracking/delivered.json").write_text(json.dumps({**state, "held": ["plan.txt"]}))
    assert deliver_pending(tracking, tmp_path) == 0
    assert [item.path for item in client.list_artifacts(str(run.run_id))] == ["plan.txt"]
