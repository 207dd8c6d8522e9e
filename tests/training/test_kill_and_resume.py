"""A fit that is killed again and again ends with the weights and the MLflow history of one that never was."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient
from tests.driver_environment import driver_environment

from uniattn_pl.cli import main
from uniattn_pl.modeling.loading.pretrained import load_shape
from uniattn_pl.plan import LayerPlan
from uniattn_pl.plan.compensation_cost import CompensationCost
from uniattn_pl.plan.drawing import draw
from uniattn_pl.resilience.manifest import Manifest
from uniattn_pl.tracking.tags import plan_digest

CONFIG = """
name: killed
model: {source: tiny-llama, dtype: float32}
architecture: {name: uniattn, superblock_size: 3, num_superblocks: 1}
data: {source: rows.jsonl, validation_size: 4}
calibration: {num_samples: 4, held_out_samples: 2, rank: auto}
training:
  batch_size: 4
  micro_batch_size: 2
  checkpoint_every_steps: 3
  stage1: {learning_rate: 1.0e-3, max_epochs: 2}
  stage2: {learning_rate: 1.0e-3, max_epochs: 2}
  early_stop: {patience: 100}
trainer: {accelerator: cpu, devices: 1}
evaluation: {num_samples: 4, texts: 0}
"""
# 12 training rows: six micro batches and three optimizer steps an epoch
ROWS = "\n".join(
    json.dumps({"instruction": f"Count to {n}.", "input": "", "output": "1 2 3 4 5"[: n + 1]}) for n in range(16)
)
ARGUMENTS = ["fit", "--config", "killed.yaml"]
# what a clock measured; everything else must be the same to the last bit
CLOCKED = ("tokens_per_second", "step_seconds", "seconds_left")
TIMED = {f"stage{stage}/{name}" for stage in (1, 2) for name in CLOCKED}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Working folders of an uninterrupted fit and of one killed at every kill point and then resumed."""
    whole, killed = (tmp_path_factory.mktemp(name) for name in ("whole", "killed"))
    for folder in (whole, killed):
        (folder / "killed.yaml").write_text(CONFIG, encoding="utf-8")
        (folder / "rows.jsonl").write_text(ROWS, encoding="utf-8")
    environment = driver_environment({"HF_HUB_OFFLINE": "1"})
    fit = [sys.executable, "-m", "uniattn_pl", *ARGUMENTS]
    driver = [sys.executable, str(Path(__file__).with_name("killing_driver.py")), *ARGUMENTS]
    uninterrupted = subprocess.Popen(
        fit, cwd=whole, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    deaths = subprocess.run(driver, cwd=killed, env=environment, capture_output=True, text=True, check=False)
    output, _ = uninterrupted.communicate()
    assert uninterrupted.returncode == 0, output
    assert deaths.returncode == 0, deaths.stdout + deaths.stderr
    resumed = subprocess.run(fit, cwd=killed, env=environment, capture_output=True, text=True, check=False)
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    return whole, killed


@pytest.mark.parametrize("folder", ["initial", "stage1", "final"])
def test_the_weights_are_the_same_bit_for_bit(runs: tuple[Path, Path], folder: str) -> None:
    digests = [
        hashlib.sha256((run / "runs/killed" / folder / "model.safetensors").read_bytes()).digest() for run in runs
    ]
    assert digests[0] == digests[1]


def test_training_changed_the_weights_in_both_stages(runs: tuple[Path, Path]) -> None:
    whole = runs[0] / "runs/killed"
    digests = {(whole / folder / "model.safetensors").read_bytes() for folder in ("initial", "stage1", "final")}
    assert len(digests) == 3


def test_the_ranks_that_were_chosen_are_recorded_saved_and_drawn(
    runs: tuple[Path, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, killed = (Manifest.read(run / "runs/killed") for run in runs)
    assert whole is not None
    assert killed is not None
    assert whole.plan == killed.plan
    plan = LayerPlan.from_dict(whole.plan or {})
    ranks = [row.compensation.rank for row in plan.rows if row.compensation]
    assert [isinstance(rank, int) and 1 <= rank < 16 for rank in ranks] == [True, True], "in full: 16"
    for run in runs:
        config = json.loads((run / "runs/killed/final/config.json").read_text())
        assert LayerPlan.from_dict(config["layer_plan"]) == plan
        client, tracked = _run(run)
        assert tracked.data.tags["uniattn_pl.plan"] == plan_digest(plan)
        ((_, spent),) = history(run)["cost/compensation_parameters"]
        assert spent == CompensationCost.of(plan, load_shape("tiny-llama")).parameters
        drawn = Path(client.download_artifacts(tracked.info.run_id, "plan.txt", str(run))).read_text()
        assert drawn == draw(plan) + "\n"
    monkeypatch.chdir(runs[1])
    assert main(["plan", *ARGUMENTS[1:]]) == 0
    printed = capsys.readouterr().out
    assert draw(plan) in printed
    assert "not chosen yet" not in printed


def test_there_is_one_finished_mlflow_run(runs: tuple[Path, Path]) -> None:
    _, run = _run(runs[1])
    assert run.info.status == "FINISHED"
    assert run.data.tags["uniattn_pl.run_folder"] == str(runs[1] / "runs/killed")
    assert json.loads((runs[1] / "runs/killed/manifest.json").read_text())["mlflow_run_id"] == run.info.run_id
    assert run.data.params == _run(runs[0])[1].data.params
    inputs = [[(one.dataset.digest, one.tags[0].value) for one in _run(f)[1].inputs.dataset_inputs] for f in runs]
    assert sorted(inputs[0]) == sorted(inputs[1])
    assert (len(run.inputs.dataset_inputs), len(run.outputs.model_outputs)) == (2, 1), "logged once"


def test_the_history_has_no_gaps_and_no_duplicates(runs: tuple[Path, Path]) -> None:
    whole, killed = (history(run) for run in runs)
    assert killed.keys() == whole.keys()
    assert [step for step, _ in whole["stage1/loss"]] == [1, 2, 3, 4, 5, 6]
    assert [step for step, _ in whole["stage2/loss"]] == [7, 8, 9, 10, 11, 12]
    for key in whole:
        if key in TIMED:
            assert [step for step, _ in killed[key]] == [step for step, _ in whole[key]], key
        else:
            assert killed[key] == whole[key], key


def test_a_finished_fit_shows_its_table_again(runs: tuple[Path, Path], capfd: pytest.CaptureFixture[str]) -> None:
    from uniattn_pl.config import load_config
    from uniattn_pl.training.fit import fit

    before = (runs[0] / "runs/killed/final/model.safetensors").stat().st_mtime_ns
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(runs[0])
        result = fit(load_config([Path("killed.yaml")], []))
    assert (runs[0] / "runs/killed/final/model.safetensors").stat().st_mtime_ns == before
    assert [milestone.name for milestone in result.milestones] == [
        "original",
        "no_compensation",
        "initial",
        "stage1",
        "stage2",
    ]
    assert result.cache.measured == result.cache.predicted
    assert "after stage 2" in capfd.readouterr().out


def _run(folder: Path) -> tuple[MlflowClient, Any]:
    client = MlflowClient(f"sqlite:///{folder}/mlruns/mlflow.db")
    (experiment,) = [e for e in client.search_experiments() if e.name == "uniattn_pl"]
    (run,) = client.search_runs([experiment.experiment_id])
    return client, run


def history(folder: Path) -> dict[str, list[tuple[int, float]]]:
    client, run = _run(folder)
    return {
        key: [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, key)]
        for key in run.data.metrics
    }
