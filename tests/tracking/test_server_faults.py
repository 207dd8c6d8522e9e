"""A tracking server that is not there, dies and comes back: nothing waits for it, everything arrives exactly once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient
from tests.tracking.mlflow_server import MLflowServer

from uniattn_pl.config.sections.tracking_section import TrackingConfig
from uniattn_pl.tracking import delivery
from uniattn_pl.tracking.mlflow_run import MLflowRun, deliver_pending

KEYS = ("stage1/loss", "stage1/lr")
DRIVER = Path(__file__).with_name("delivering_driver.py")
FIT = """
name: offline
model: {source: tiny-llama, dtype: float32}
architecture: {name: baseline}
data: {source: rows.jsonl, validation_size: 2}
training: {batch_size: 2, micro_batch_size: 2, stage2: {max_steps: 2}}
trainer: {accelerator: cpu, devices: 1}
evaluation: {num_samples: 2, texts: 0}
tracking: {register_as: offline}
"""
ROWS = "\n".join(json.dumps({"instruction": f"Count to {n}.", "input": "", "output": "1 2 3"}) for n in range(6))


@dataclass
class Timeline:
    """What was seen while the server came and went, and the runs as MLflow has them in the end."""

    uri: str
    folder: Path
    said: dict[str, list[str]] = field(default_factory=dict)
    seen: dict[str, object] = field(default_factory=dict)
    run_ids: dict[str, str | None] = field(default_factory=dict)

    def open(self, name: str) -> MLflowRun:
        self.said[name] = []
        return MLflowRun.open(
            TrackingConfig(self.uri),
            name=name,
            fit_id=name,
            run_id=None,
            tags={"kind": name},
            folder=self.folder / name,
            tell=self.said[name].append,
        )

    def run(self, name: str) -> Run:
        return MlflowClient(self.uri).get_run(str(self.run_ids[name]))

    def history(self, name: str, key: str) -> list[tuple[int, float]]:
        points = MlflowClient(self.uri).get_metric_history(str(self.run_ids[name]), key)
        return [(point.step, point.value) for point in points]


def log(run: MLflowRun, steps: range) -> None:
    for step in steps:
        run.log_metrics({key: float(step) for key in KEYS}, step)


def expected(steps: range) -> list[tuple[int, float]]:
    return [(step, float(step)) for step in steps]


def start_fit(folder: Path, uri: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "uniattn_pl", "fit", "--config", "offline.yaml", f"tracking.uri={uri}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def printed_by(fit: subprocess.Popen[str]) -> str:
    output, _ = fit.communicate()
    assert fit.returncode == 0, output
    return output


@pytest.fixture(scope="module")
def timeline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Timeline]:
    folder = tmp_path_factory.mktemp("faults")
    server = MLflowServer(folder)
    time = Timeline(server.uri, folder)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(delivery, "SILENT_S", delivery.ANSWERING_S)  # a server that starts has time to answer
            _play(server, time)
        yield time
    finally:
        server.kill()


@contextmanager
def nothing_answers() -> Iterator[None]:
    """Where the server is down it is not waited for."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(delivery, "SILENT_S", 1.0)
        yield


def _play(server: MLflowServer, time: Timeline) -> None:
    """Down, up, killed, up."""
    (time.folder / "offline.yaml").write_text(FIT, encoding="utf-8")
    (time.folder / "rows.jsonl").write_text(ROWS, encoding="utf-8")

    fit = start_fit(time.folder, time.uri)
    late, unheard = time.open("late"), time.open("unheard")
    time.seen["late id"] = late.run_id
    log(late, range(1, 6))
    late.log_params({"seed": 1})
    late.log_text("the plan", "plots/plan.txt")
    log(unheard, range(1, 1201))
    with nothing_answers():
        time.seen["unheard delivered"] = unheard.end("FINISHED")
    time.seen["unheard pending"], time.seen["unheard leftover"] = unheard.pending, unheard.leftover()
    time.seen["fit while down"] = printed_by(fit)

    server.start()
    fit = start_fit(time.folder, time.uri)
    log(late, range(6, 11))
    time.seen["late delivered"] = late.drain()
    time.seen["unheard left"] = deliver_pending(
        TrackingConfig(time.uri), time.folder / "unheard", tell=time.said["unheard"].append
    )
    killed = [sys.executable, str(DRIVER), time.uri, str(time.folder / "killed")]
    driven = subprocess.run(killed, capture_output=True, text=True, check=False)
    assert driven.returncode == 0, driven.stdout + driven.stderr
    time.seen["kills"] = driven.stdout.splitlines().count("killed")
    time.seen["fit while up"] = printed_by(fit)
    middle = time.open("middle")
    log(middle, range(1, 6))
    assert middle.drain()

    server.kill()
    log(middle, range(6, 1506))
    middle.flush()
    with nothing_answers():
        time.seen["middle delivered while down"] = middle.drain()
    time.seen["middle pending"] = middle.pending

    server.start()
    log(middle, range(1506, 1511))
    for name, run in (("late", late), ("middle", middle)):
        time.seen[f"{name} ended"] = run.end("FINISHED")
        time.run_ids[name] = run.run_id
    client = MlflowClient(time.uri)
    (experiment,) = [e for e in client.search_experiments() if e.name == "uniattn_pl"]
    for run in client.search_runs([experiment.experiment_id]):
        assert time.run_ids.setdefault(run.info.run_name, run.info.run_id) == run.info.run_id, "one run each"


def test_a_server_that_is_not_there_at_the_start_gets_everything_later(timeline: Timeline) -> None:
    assert timeline.seen["late id"] is None
    silent, again = timeline.said["late"][:2]
    assert silent.startswith(f"MLflow at {timeline.uri} does not answer ([Errno 111] Connection refused);")
    assert f"metrics are kept in {timeline.folder / 'late' / 'tracking'} and delivered when it does." in silent
    assert "answers again" in again
    assert timeline.seen["late delivered"]
    assert timeline.seen["late ended"]
    for key in KEYS:
        assert timeline.history("late", key) == expected(range(1, 11))
    run = timeline.run("late")
    assert (run.data.params, run.data.tags["kind"], run.info.status) == ({"seed": "1"}, "late", "FINISHED")
    items = MlflowClient(timeline.uri).list_artifacts(run.info.run_id, "plots")
    assert [item.path for item in items] == ["plots/plan.txt"]


def test_a_server_that_never_comes_leaves_everything_in_the_journal_for_later(timeline: Timeline) -> None:
    assert timeline.seen["unheard delivered"] is False
    # 2 x 1200 metrics, the beginning, a tag and the end
    assert timeline.seen["unheard pending"] == 2403
    kept = timeline.folder / "unheard" / "tracking"
    assert timeline.seen["unheard leftover"] == (
        f"2403 entries of this run are not in MLflow yet, as it does not answer; they are kept in {kept}"
    )
    assert timeline.seen["unheard left"] == 0
    for key in KEYS:
        assert timeline.history("unheard", key) == expected(range(1, 1201))
    assert timeline.run("unheard").info.status == "FINISHED"


def test_a_server_that_dies_in_the_middle_misses_nothing(timeline: Timeline) -> None:
    assert timeline.seen["middle delivered while down"] is False
    assert timeline.seen["middle pending"] == 3000
    assert timeline.seen["middle ended"]
    for key in KEYS:
        assert timeline.history("middle", key) == expected(range(1, 1511))
    assert [("does not answer" in line, "answers again" in line) for line in timeline.said["middle"]] == [
        (True, False),
        (False, True),
    ]


def test_a_process_killed_while_it_delivers_leaves_no_gap_and_sends_nothing_twice(timeline: Timeline) -> None:
    assert timeline.seen["kills"] == 17
    for key in KEYS:
        assert timeline.history("killed", key) == expected(range(1, 61))
    run = timeline.run("killed")
    assert run.data.params == {f"key{n}": str(n) for n in range(5)}
    assert run.info.status == "FINISHED"
    client = MlflowClient(timeline.uri)
    assert [item.path for item in client.list_artifacts(run.info.run_id)] == ["note.txt"]
    assert [one.dataset.name for one in run.inputs.dataset_inputs] == ["rows"]
    (output,) = run.outputs.model_outputs
    (model,) = client.search_logged_models([run.info.experiment_id], f"source_run_id = '{run.info.run_id}'")
    assert (model.model_id, len(model.params), str(model.status)) == (output.model_id, 150, "READY")
    (version,) = client.search_model_versions("name = 'killed'")
    assert json.loads(model.tags["mlflow.modelVersions"]) == [{"name": "killed", "version": int(version.version)}]


def test_a_fit_without_its_server_finishes_and_is_delivered_by_the_same_command(timeline: Timeline) -> None:
    printed = str(timeline.seen["fit while down"])
    assert printed.count("does not answer (") == 1
    assert "the same command delivers them" in printed
    assert "after stage 2" in printed
    assert "Traceback" not in printed
    assert "nothing was run" in str(timeline.seen["fit while up"])
    assert [step for step, _ in timeline.history("offline", "stage2/loss")] == [1, 2]
    run = timeline.run("offline")
    assert run.info.status == "FINISHED"
    assert run.data.params["training.stage2.max_steps"] == "2"
    items = {item.path for item in MlflowClient(timeline.uri).list_artifacts(run.info.run_id)}
    assert {"config.yaml", "plan.txt", "final_table.txt", "plots"} <= items
    assert [one.tags[0].value for one in run.inputs.dataset_inputs] == ["training", "validation"]
    (version,) = MlflowClient(timeline.uri).search_model_versions("name = 'offline'")
    assert version.run_id == run.info.run_id
    stored = MlflowClient(timeline.uri).get_logged_model(run.outputs.model_outputs[0].model_id)
    assert version.source == stored.artifact_location
    assert {metric.key for metric in stored.metrics} >= {"final/response_loss", "cost/kv_retain_rate"}
    assert timeline.history("offline", "final/response_loss")[-1] == (2, run.data.metrics["final/response_loss"])
