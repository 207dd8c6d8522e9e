"""Stores that block, lock, lose answers or are damaged, on sqlite files in the test's own process."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow.entities import Metric
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import ErrorCode
from mlflow.tracking import MlflowClient

from uniattn_pl.config.sections.tracking_section import TrackingConfig
from uniattn_pl.errors import UserError
from uniattn_pl.tracking import delivery
from uniattn_pl.tracking.mlflow_run import MLflowRun, deliver_pending
from uniattn_pl.tracking.one_off_run import one_off_run

LogBatch = Callable[..., Any]


@pytest.fixture(scope="module")
def tracking(tmp_path_factory: pytest.TempPathFactory) -> TrackingConfig:
    """One sound store for the module: making its tables takes seconds."""
    folder = tmp_path_factory.mktemp("store")
    return TrackingConfig(f"sqlite:///{folder}/mlflow.db", artifact_location=str(folder / "artifacts"))


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery, "SILENT_S", 0.5)


def opened(tracking: TrackingConfig, folder: Path, said: list[str] | None = None) -> MLflowRun:
    tell = [].append if said is None else said.append
    return MLflowRun.open(tracking, name="a fit", fit_id=folder.name, run_id=None, tags={}, folder=folder, tell=tell)


def test_a_relative_store_is_that_of_the_working_folder(
    tmp_path: Path, tables: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mlflow.db").write_bytes(tables)
        monkeypatch.chdir(tmp_path / name)
        assert opened(TrackingConfig("sqlite:///mlflow.db"), tmp_path / name / "run").end("FINISHED")
        found = MlflowClient(f"sqlite:///{tmp_path / name}/mlflow.db").search_runs(["1"])
        assert [run.data.tags["uniattn_pl.fit_id"] for run in found] == ["run"]
        assert len(found) == 1


def points(tracking: TrackingConfig, run: MLflowRun, key: str = "loss") -> list[int]:
    """The steps MLflow has of a metric, as often as it has them."""
    return [point.step for point in MlflowClient(tracking.uri).get_metric_history(str(run.run_id), key)]


def log(run: MLflowRun, steps: range) -> None:
    for step in steps:
        run.log_metrics({"loss": 1.0 / step}, step)


def test_logging_never_waits_for_a_store_that_hangs(
    tracking: TrackingConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, released, log_batch = threading.Event(), threading.Event(), MlflowClient.log_batch

    def hanging(*args: Any, **kwargs: Any) -> Any:
        asked.set()
        assert released.wait(60)
        return log_batch(*args, **kwargs)

    monkeypatch.setattr(MlflowClient, "log_batch", hanging)
    run = opened(tracking, tmp_path)
    run.log_metrics({"loss": 1.0}, 1)
    with monkeypatch.context() as patch:
        patch.setattr(delivery, "ANSWER_S", 0.5)
        assert not run.drain()
    assert asked.wait(60)
    log(run, range(2, 1002))
    run.flush()
    assert run.pending == 1001
    assert len(run.history("loss")) == 1001
    released.set()
    assert run.end("FINISHED")
    assert points(tracking, run) == list(range(1, 1002))


def stamped(log_batch: LogBatch) -> LogBatch:
    """Send every point with a new timestamp: by the old one, MLflow's databases would recognise a repeated point."""

    def send(client: MlflowClient, run_id: str, metrics: Any = (), **others: Any) -> Any:
        return log_batch(client, run_id, [Metric(m.key, m.value, time.time_ns(), m.step) for m in metrics], **others)

    return send


@pytest.mark.parametrize("code", ["INTERNAL_ERROR", "BAD_REQUEST"])
def test_a_request_that_failed_before_or_after_it_was_carried_out_arrives_once(
    tracking: TrackingConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    log_batch, before, after = stamped(MlflowClient.log_batch), iter([False, True]), iter([True, False, True])

    def losing(*args: Any, **kwargs: Any) -> Any:
        missing = next(before, False)
        if not missing:
            log_batch(*args, **kwargs)
        if missing or next(after, False):
            raise MlflowException("the connection or the server's database failed", ErrorCode.Value(code))

    monkeypatch.setattr(MlflowClient, "log_batch", losing)
    monkeypatch.setattr(delivery, "METRICS_PER_REQUEST", 4)
    monkeypatch.setattr(delivery, "FIRST_PAUSE_S", 0.01)
    said: list[str] = []
    run = opened(tracking, tmp_path, said)
    log(run, range(1, 11))
    assert run.end("FINISHED")
    assert points(tracking, run) == list(range(1, 11))
    assert sum("does not answer" in line for line in said) == 3
    assert not any("refuses" in line for line in said)


def test_a_journal_whose_progress_is_lost_is_compared_with_the_store(
    tracking: TrackingConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MlflowClient, "log_batch", stamped(MlflowClient.log_batch))
    first = opened(tracking, tmp_path)
    log(first, range(1, 6))
    assert first.end("FAILED")
    (tmp_path / "tracking/delivered.json").write_text("{torn")
    second = opened(tracking, tmp_path)
    log(second, range(4, 9))
    assert second.end("FINISHED")
    assert second.run_id == first.run_id
    assert points(tracking, second) == list(range(1, 9))


def test_a_metric_that_mlflow_refuses_holds_up_no_other(tracking: TrackingConfig, tmp_path: Path) -> None:
    said: list[str] = []
    run = opened(tracking, tmp_path, said)
    run.log_metrics({"a": 1.0, "no;such name": 2.0, "z": 3.0}, 1)
    assert run.end("FINISHED")
    assert (points(tracking, run, "a"), points(tracking, run, "z")) == ([1], [1])
    (line,) = said
    assert line.startswith('MLflow refuses {"op": "metric", "key": "no;such name"')


def test_a_run_deleted_during_the_fit_gets_its_metrics_once_it_is_restored(
    tracking: TrackingConfig, tmp_path: Path
) -> None:
    run = opened(tracking, tmp_path)
    client = MlflowClient(tracking.uri)
    client.delete_run(str(run.run_id))
    log(run, range(1, 4))
    assert not run.end("FINISHED")
    client.restore_run(str(run.run_id))
    assert deliver_pending(tracking, tmp_path) == 0
    assert points(tracking, run) == [1, 2, 3]


def test_artifacts_that_cannot_be_stored_do_not_hold_up_metrics(tracking: TrackingConfig, tmp_path: Path) -> None:
    place, folder = tmp_path / "artifacts", tmp_path / "run"
    place.write_text("a file where the folder is to be")
    client = MlflowClient(tracking.uri)
    client.create_experiment("elsewhere", artifact_location=place.as_uri())
    config = TrackingConfig(tracking.uri, experiment="elsewhere")
    said: list[str] = []
    run = opened(config, folder, said)
    run.log_text("the plan", "plan.txt")
    log(run, range(1, 4))
    assert not run.end("FINISHED")
    assert run.pending == 1
    assert points(tracking, run) == [1, 2, 3]
    assert said[0].startswith("MLflow cannot store plan.txt (")
    place.unlink()
    assert deliver_pending(config, folder) == 0
    assert (place / str(run.run_id) / "artifacts/plan.txt").read_text() == "the plan"


def test_a_database_locked_by_another_process_only_delays_delivery(tracking: TrackingConfig, tmp_path: Path) -> None:
    run = opened(tracking, tmp_path)
    assert run.drain()
    lock = sqlite3.connect(tracking.uri.removeprefix("sqlite:///"))
    lock.execute("BEGIN EXCLUSIVE")
    log(run, range(1, 4))
    assert run.pending == 3
    lock.rollback()
    assert run.end("FINISHED")
    assert points(tracking, run) == [1, 2, 3]


def test_a_command_delivers_what_an_earlier_one_in_its_folder_could_not(
    tracking: TrackingConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    kept = []
    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "log_batch", _dead)
        with one_off_run(tracking, tmp_path, name="first", tags={}, tell=said.append) as first:
            first.log_metrics({"loss": 1.0}, 7)
            kept = [first.journal_folder]
    assert str(kept[0]) in said[-1]
    assert "the next such command" in said[-1]
    with one_off_run(tracking, tmp_path, name="second", tags={}) as second:
        second.log_metrics({"loss": 1.0}, 8)
    assert (points(tracking, first), points(tracking, second)) == ([7], [8])
    assert list(tmp_path.iterdir()) == []


def _dead(*args: Any, **kwargs: Any) -> None:
    raise MlflowException("API request failed with exception: connection refused")


def garbage(file: Path) -> None:
    file.write_bytes(b"not a database " * 1000)


def truncated(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def overwritten(file: Path) -> None:
    with file.open("r+b") as content:
        content.seek(file.stat().st_size // 4 // 4096 * 4096)
        content.write(b"\0" * 4096 * 20)


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """An empty MLflow database."""
    file = tmp_path_factory.mktemp("tables") / "mlflow.db"
    MlflowClient(f"sqlite:///{file}").search_experiments()
    return file.read_bytes()


def aliased(folder: Path, name: str) -> TrackingConfig:
    """The store in `folder`/store by another path: MLflow keeps an open connection for every path of a process."""
    (folder / name).symlink_to(folder / "store")
    return TrackingConfig(f"sqlite:///{folder / name}/mlflow.db", artifact_location=str(folder / "artifacts"))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [(garbage, "file is not a database"), (truncated, "database disk image is malformed"), (overwritten, "malformed")],
)
def test_a_damaged_database_is_told_at_the_start_and_a_new_one_gets_everything(
    tmp_path: Path, tables: bytes, damage: Callable[[Path], None], reason: str
) -> None:
    file, folder = tmp_path / "store/mlflow.db", tmp_path / "run"
    file.parent.mkdir()
    file.write_bytes(tables)
    first = opened(aliased(tmp_path, "one"), folder)
    first.log_text("the plan", "plan.txt")
    log(first, range(1, 6))
    assert first.end("FAILED")
    damage(file)
    again = aliased(tmp_path, "two")
    with pytest.raises(UserError) as refused:
        opened(again, folder)
    told = str(refused.value)
    for part in (f"{tmp_path}/two/mlflow.db", reason, "Move it away", f"is in {folder / 'tracking'}", "same command"):
        assert part in told
    file.rename(file.with_name("damaged.db"))

    second = opened(again, folder)
    log(second, range(4, 9))
    assert second.end("FINISHED")
    assert second.run_id != first.run_id
    assert points(again, second) == list(range(1, 9))
    assert Path(str(again.artifact_location), str(second.run_id), "artifacts/plan.txt").read_text() == "the plan"


def test_a_database_damaged_during_the_fit_ends_it_not(
    tmp_path: Path, tables: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    file, folder = tmp_path / "store/mlflow.db", tmp_path / "run"
    file.parent.mkdir()
    file.write_bytes(tables)
    said: list[str] = []
    config = aliased(tmp_path, "one")
    run = opened(config, folder, said)
    log(run, range(1, 4))
    assert run.drain()
    sound = file.read_bytes()
    garbage(file)
    log(run, range(4, 9))
    assert not run.end("FINISHED")
    assert len(run.history("loss")) == 8
    assert "does not answer" in said[0]
    assert "Traceback" not in "".join(capfd.readouterr())
    file.write_bytes(sound)
    assert deliver_pending(aliased(tmp_path, "two"), folder) == 0
    assert points(config, run) == list(range(1, 9))
