"""Runs and whole projects that were moved or copied go on where they are; the former place is not written to."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import mlflow
import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient
from mlflow.tracking._tracking_service import utils
from tests.tiny_fit import BASE, ROWS

from uniattn_pl.cli import main
from uniattn_pl.inference.generation import generate
from uniattn_pl.resilience.checkpoints import CheckpointStore
from uniattn_pl.resilience.manifest import Manifest
from uniattn_pl.tracking.moved_store import follow

CONFIG = (
    BASE
    + """
training:
  batch_size: 2
  micro_batch_size: 2
  checkpoint_every_steps: 1
  stage1: {max_steps: 1}
  stage2: {max_steps: 3, max_epochs: 2, learning_rate: 1.0e-3}
"""
)
FIT = ["fit", "--config", "tiny.yaml"]
RUN = Path("runs/tiny")
State = dict[str, tuple[str, int]]


def killed_in_stage_2(store: CheckpointStore, *args: object, **options: object) -> None:
    SAVE(store, *args, **options)
    if store.folder.name == "stage2" and (store.folder / "step-00000002").exists():
        raise KeyboardInterrupt


SAVE = CheckpointStore.save


@pytest.fixture(scope="module")
def projects(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`whole` with a finished fit, and `begun` with one that was killed behind the second step of stage 2."""
    base = tmp_path_factory.mktemp("projects")
    for name, code in (("whole", 0), ("begun", 130)):
        folder = base / name
        folder.mkdir()
        (folder / "tiny.yaml").write_text(CONFIG, encoding="utf-8")
        (folder / "rows.jsonl").write_text(ROWS, encoding="utf-8")
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            if code:
                patch.setattr(CheckpointStore, "save", killed_in_stage_2)
            assert main(FIT) == code
    return base


@pytest.fixture
def place(projects: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Copies of both projects, to be moved about."""
    for name in ("whole", "begun"):
        shutil.copytree(projects / name, tmp_path / name)
        settle_store(tmp_path / name)
    utils._artifact_repos_cache.clear()  # of this process, which has written to the place before the move
    monkeypatch.chdir(tmp_path)
    return tmp_path


def settle_store(project: Path) -> None:
    """Let a copied project be one that was made where it is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project)
        manifest = Manifest.read(RUN)
        assert manifest is not None
        manifest.folder = str(RUN.resolve())
        manifest.write(RUN)
        delivered = json.loads((RUN / "tracking/delivered.json").read_text())
        delivered["place"] = f"sqlite:///{project.resolve()}/mlruns/mlflow.db"
        (RUN / "tracking/delivered.json").write_text(json.dumps(delivered))
        follow(Path("mlruns/mlflow.db"))


def state(folder: Path) -> State:
    """Content and time of change of every file, and the times of the folders."""
    return {
        str(path.relative_to(folder)): (
            hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "",
            path.stat().st_mtime_ns,
        )
        for path in folder.rglob("*")
    }


def runs(project: Path) -> list[Run]:
    client = MlflowClient(f"sqlite:///{project}/mlruns/mlflow.db")
    (experiment,) = [e for e in client.search_experiments() if e.name == "uniattn_pl"]
    return list(client.search_runs([experiment.experiment_id]))


def final(project: Path) -> bytes:
    return (project / RUN / "final/model.safetensors").read_bytes()


def curve(project: Path, run: Run, key: str) -> list[tuple[int, float]]:
    client = MlflowClient(f"sqlite:///{project}/mlruns/mlflow.db")
    return [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, key)]


def test_a_moved_project_resumes_and_ends_as_one_that_was_never_touched(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "begun").rename(place / "moved")
    monkeypatch.chdir(place / "moved")
    assert main(FIT) == 0
    assert final(place / "moved") == final(place / "whole")
    assert not (place / "begun").exists()
    (run,), (untouched,) = runs(place / "moved"), runs(place / "whole")
    assert run.info.status == "FINISHED"
    for key in ("stage2/loss", "val/response_loss"):
        assert curve(place / "moved", run, key) == curve(place / "whole", untouched, key), "without gaps or duplicates"
    artifacts = Path(run.info.artifact_uri.removeprefix("file://"))
    assert artifacts.is_relative_to(place / "moved")
    assert {"final_table.txt", "plan.txt", "config.yaml"} <= {path.name for path in artifacts.iterdir()}


def test_a_model_that_was_moved_with_its_store_loads_where_it_is(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / "whole").rename(place / "moved")
    monkeypatch.chdir(place / "moved")
    store = f"sqlite:///{place}/moved/mlruns/mlflow.db"
    assert main([*FIT, "tracking.register_as=moved"]) == 0, "which is finished, and registered now"
    (run,) = runs(place / "moved")
    (output,) = run.outputs.model_outputs
    model = MlflowClient(store).get_logged_model(output.model_id)
    assert model.artifact_location.removeprefix("file://").startswith(f"{place}/moved/")
    assert model.tags["uniattn_pl.final_model"] == str(place / "moved" / RUN / "final")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    loaded = mlflow.pyfunc.load_model("models:/moved/1")
    assert loaded.predict(["Count."], params={"max_new_tokens": 2}) == generate(
        place / "moved" / RUN / "final", ["Count."], max_new_tokens=2
    )
    (place / "moved").rename(place / "again")
    follow(place / "again/mlruns/mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{place}/again/mlruns/mlflow.db")
    (version,) = MlflowClient().search_model_versions("name = 'moved'")
    assert version.source == MlflowClient().get_logged_model(output.model_id).artifact_location
    assert Path(version.source.removeprefix("file://"), "MLmodel").is_file()


def test_a_copied_project_resumes_and_leaves_the_original_alone(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(place / "begun", place / "copy")
    before = state(place / "begun")
    monkeypatch.chdir(place / "copy")
    assert main(FIT) == 0
    assert main(["evaluate", "--config", "tiny.yaml", "evaluation.probes=[held_out]"]) == 0
    assert state(place / "begun") == before
    assert final(place / "copy") == final(place / "whole")
    (run,) = runs(place / "copy")
    assert run.info.status == "FINISHED", "the one that was copied with the store goes on"


def test_a_moved_run_folder_resumes_where_it_is(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(place / "begun/tiny.yaml", place)
    shutil.copy(place / "begun/rows.jsonl", place)
    (place / "elsewhere").mkdir()
    (place / "begun" / RUN).rename(place / "elsewhere/other")
    shutil.rmtree(place / "begun")
    assert main([*FIT, f"trainer.default_root_dir={place}/elsewhere/other"]) == 0
    assert (place / "elsewhere/other/final/model.safetensors").read_bytes() == final(place / "whole")
    told = [
        line for line in capsys.readouterr().out.splitlines() if line.startswith("MLflow: what this run has logged")
    ]
    assert len(told) == 1
    assert told[0].endswith("it is a new run, with all of it.")
    (run,), (untouched,) = runs(place), runs(place / "whole")
    assert curve(place, run, "stage1/loss") == curve(place / "whole", untouched, "stage1/loss")
    assert curve(place, run, "stage2/loss") == curve(place / "whole", untouched, "stage2/loss")
    assert not (place / "begun").exists()


def test_a_copied_run_needs_neither_its_store_nor_its_place(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "new/runs").mkdir(parents=True)
    shutil.copytree(place / "whole" / RUN, place / "new" / RUN)
    shutil.copy(place / "whole/rows.jsonl", place / "new")
    before = state(place / "whole")
    monkeypatch.chdir(place / "new")
    assert main(["evaluate", "--from", str(RUN), "evaluation.probes=[held_out]"]) == 0
    assert "at sqlite:///mlruns/mlflow.db it is a new run, with all of it." in capsys.readouterr().out
    assert main(["export", "--from", str(RUN), "--to", "exported"]) == 0
    assert main(["generate", "--from", str(RUN), "--prompt", "Hi", "--max-new-tokens", "2"]) == 0
    assert state(place / "whole") == before
    (run,) = runs(place / "new")
    assert run.data.tags["uniattn_pl.run_folder"] == str(place / "new" / RUN)
    assert {"eval/held_out/response_loss", "stage2/loss", "val/response_loss"} <= run.data.metrics.keys()
    assert Path(run.info.artifact_uri.removeprefix("file://")).is_relative_to(place / "new")
    shutil.rmtree(place / "whole")
    assert main(["evaluate", "--from", str(RUN), "evaluation.probes=[held_out]", "evaluation.num_samples=1"]) == 0
    assert len(runs(place / "new")) == 1
    assert not (place / "whole").exists()


def test_a_copy_beside_its_original_has_a_run_of_its_own_in_the_same_store(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place / "begun")
    shutil.copytree(RUN, "runs/copy")
    before = state(RUN)
    assert main([*FIT, "trainer.default_root_dir=runs/copy"]) == 0
    assert "runs/copy is a copy of the run in" in capsys.readouterr().out
    assert state(RUN) == before
    assert main(FIT) == 0
    copied, original = (Manifest.read(folder) for folder in (Path("runs/copy"), RUN))
    assert copied is not None
    assert original is not None
    assert copied.mlflow_run_id != original.mlflow_run_id
    by_id = {run.info.run_id: run for run in runs(place / "begun")}
    assert by_id.keys() == {copied.mlflow_run_id, original.mlflow_run_id}
    losses = [curve(place / "begun", run, "stage2/loss") for run in by_id.values()]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 3


def test_the_same_folder_by_another_path_is_no_copy(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / "link").symlink_to(place / "begun")
    manifest = Manifest.read(place / "begun" / RUN)
    assert manifest is not None
    manifest.folder = str(place / "link" / RUN)
    manifest.write(place / "begun" / RUN)
    monkeypatch.chdir(place / "begun")
    assert main(FIT) == 0
    assert len(runs(place / "begun")) == 1
