"""Fits whose plan is chosen by measurement: what they leave, killed searches, given plans, aligned and thin W_c."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow.tracking import MlflowClient
from safetensors.torch import load_file
from tests.driver_environment import driver_environment
from transformers import AutoModelForCausalLM, PreTrainedModel

from uniattn_pl.cli import main
from uniattn_pl.plan import LayerPlan
from uniattn_pl.plan.drawing import draw
from uniattn_pl.resilience.manifest import Manifest

CONFIG = """
name: measured
model: {source: tiny-llama, dtype: float32}
architecture: {name: search, budget: 0.8, candidates: 4, kinds: [reuse, drop], search_tokens: 16}
data: {max_length: 700, num_samples: 8, validation_size: 2}
calibration: {num_samples: 2, held_out_samples: 2}
training: {batch_size: 2, micro_batch_size: 2, stage1: {enabled: false}, stage2: {enabled: false}}
trainer: {accelerator: cpu, devices: 1}
evaluation: {num_samples: 2, texts: 0}
tracking: {uri: "sqlite:///%s/mlflow.db", artifact_location: "%s/artifacts"}
"""
RUN = Path("runs/measured")
FIT = ["fit", "--config", "measured.yaml"]
IDS = torch.arange(40).view(2, 20)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One store for all fits of the module: making its tables takes seconds."""
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="module")
def searches(store: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Working folders of an uninterrupted searched fit and of one killed in its search, and again right after it."""
    base = tmp_path_factory.mktemp("searches")
    for name in ("whole", "killed"):
        (base / name).mkdir()
        (base / name / "measured.yaml").write_text(CONFIG % (store, store), encoding="utf-8")
    driver = [sys.executable, "-m", "tests.training.search_driver", *FIT]
    done = subprocess.run(driver, cwd=base, env=driver_environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return base / "whole", base / "killed"


@pytest.fixture
def folder(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder with the experiment."""
    (tmp_path / "measured.yaml").write_text(CONFIG % (store, store), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def prepared(folder: Path) -> dict[str, Any]:
    manifest = Manifest.read(folder / RUN)
    assert manifest is not None
    return manifest.results["prepare"]


def points(folder: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((folder / RUN / "search/frontier/frontier.json").read_text())["points"]
    return found


def tried(folder: Path) -> list[str]:
    return (folder / "tried.txt").read_text().splitlines()


def test_the_frontier_is_beside_the_run_and_ends_with_its_plan(searches: tuple[Path, Path]) -> None:
    frontier, found = searches[0] / RUN / "search/frontier", points(searches[0])
    assert {file.name for file in frontier.iterdir()} == {
        "table.txt",
        "frontier.json",
        "frontier.png",
        "frontier.svg",
        "plans",
    }
    assert len(list((frontier / "plans").iterdir())) == len(found) >= 3
    chosen = prepared(searches[0])["plan"]
    assert json.loads((frontier / found[-1]["plan"]).read_text()) == chosen
    assert chosen["rows"]
    assert found[-1]["cost"] <= 0.8 < found[-2]["cost"]
    final = AutoModelForCausalLM.from_pretrained(searches[0] / RUN / "final")
    assert final.layer_plan == LayerPlan.from_dict(chosen)


def test_the_cache_holds_what_the_search_counted(searches: tuple[Path, Path]) -> None:
    cache = prepared(searches[0])["cache"]
    assert cache["measured"] == cache["predicted"] == round(points(searches[0])[-1]["cost"] * cache["unmodified"])


def test_the_mlflow_run_has_the_frontier_and_the_plan(searches: tuple[Path, Path], store: Path, tmp_path: Path) -> None:
    client = MlflowClient(f"sqlite:///{store}/mlflow.db")
    manifest = Manifest.read(searches[0] / RUN)
    assert manifest is not None
    run = str(manifest.mlflow_run_id)
    kept = {item.path for item in client.list_artifacts(run, "frontier")}
    assert {
        f"frontier/{name}" for name in ("table.txt", "frontier.json", "frontier.png", "frontier.svg", "plans")
    } == kept
    assert len(client.list_artifacts(run, "frontier/plans")) == len(points(searches[0]))
    drawn = Path(client.download_artifacts(run, "plan.txt", str(tmp_path))).read_text()
    assert drawn == draw(LayerPlan.from_dict(prepared(searches[0])["plan"])) + "\n"


def test_plan_refuses_before_the_fit_and_draws_the_choice_after_it(
    searches: tuple[Path, Path], folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", "--config", "measured.yaml"]) == 2
    assert "measured.yaml:4: architecture: search chooses the layers by measurement" in capsys.readouterr().err
    monkeypatch.chdir(searches[0])
    assert main(["plan", "--config", "measured.yaml"]) == 0
    assert draw(LayerPlan.from_dict(prepared(searches[0])["plan"])) in capsys.readouterr().out


def test_a_killed_search_ends_with_the_same_plan_and_weights(searches: tuple[Path, Path]) -> None:
    whole, killed = searches
    assert points(killed) == points(whole)
    assert prepared(killed) == prepared(whole)
    weights = [(folder / RUN / "final/model.safetensors").read_bytes() for folder in searches]
    assert weights[0] == weights[1]


def test_a_killed_search_evaluates_nothing_twice(searches: tuple[Path, Path]) -> None:
    whole, killed = searches
    assert len(tried(whole)) > len(possible_first_round())
    assert tried(killed) == tried(whole)


def possible_first_round() -> list[tuple[int, str]]:
    """What one layer of eight may become; layer 0 has no map below it."""
    return [(layer, kind) for layer in range(8) for kind in ("reuse", "drop") if (layer, kind) != (0, "reuse")]


def test_a_killed_search_continues_its_mlflow_run(searches: tuple[Path, Path], store: Path) -> None:
    client = MlflowClient(f"sqlite:///{store}/mlflow.db")
    (experiment,) = [e for e in client.search_experiments() if e.name == "uniattn_pl"]
    tag = f"tags.`uniattn_pl.run_folder` = '{searches[1] / RUN}'"
    (run,) = client.search_runs([experiment.experiment_id], tag)
    assert run.info.status == "FINISHED"
    assert all(len(client.get_metric_history(run.info.run_id, key)) == 1 for key in run.data.metrics)


def test_a_point_of_the_frontier_can_be_given(searches: tuple[Path, Path], folder: Path) -> None:
    file = searches[0] / RUN / "search/frontier" / points(searches[0])[1]["plan"]
    words = ["architecture.name=given", f"architecture.plan={file}"]
    text = (folder / "measured.yaml").read_text().splitlines()
    kept = [line for line in text if not line.startswith("architecture")]
    (folder / "measured.yaml").write_text("\n".join(kept), encoding="utf-8")
    assert main([*FIT, *words]) == 0
    plan = LayerPlan.from_dict(json.loads(file.read_text()))
    assert prepared(folder)["plan"] == plan.to_dict()
    assert AutoModelForCausalLM.from_pretrained(folder / RUN / "final").layer_plan == plan
    assert not (folder / RUN / "search").exists()


ALIGNED = [
    "architecture.name=uniattn",
    "architecture.superblock_size=4",
    "architecture.num_superblocks=1",
    "calibration.head_alignment=output_error",
    "calibration.rank=4",
    "calibration.bias=true",
    "calibration.refine.steps=2",
    "training.stage1.enabled=true",
    "training.stage1.max_steps=2",
]


@pytest.fixture(scope="module")
def aligned(store: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.Tensor]:
    """Working folder of a fit with aligned heads and thin W_c, and the logits of the model it saved last."""
    base, logits = tmp_path_factory.mktemp("aligned"), []
    text = [line for line in (CONFIG % (store, store)).splitlines() if not line.startswith("architecture")]
    (base / "measured.yaml").write_text("\n".join(text), encoding="utf-8")
    save = PreTrainedModel.save_pretrained

    def save_and_run(model: PreTrainedModel, *args: Any, **kwargs: Any) -> None:
        with torch.no_grad():
            logits.append(model.eval()(IDS).logits)
        save(model, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(base)
        patch.setattr(PreTrainedModel, "save_pretrained", save_and_run)
        assert main([*FIT, *ALIGNED]) == 0
    return base, logits[-1]


def test_aligned_heads_and_thin_compensations_are_saved_and_load_again(aligned: tuple[Path, torch.Tensor]) -> None:
    folder, expected = aligned
    plan = json.loads((folder / RUN / "final/config.json").read_text())["layer_plan"]
    rows = plan["rows"]
    assert [row["index"] for row in rows] == [5, 6, 7]
    assert all(len(row["heads_from"]) == 4 for row in rows), "the model has 4 heads"
    assert any(row["heads_from"] != [0, 1, 2, 3] for row in rows)
    assert [(row["compensation"]["rank"], row["compensation"]["bias"]) for row in rows] == [(4, True)] * 3
    manifest = Manifest.read(folder / RUN)
    assert manifest is not None
    assert all(row["refined"] in (True, False) for row in manifest.results["initialise"]["calibration"]["rows"])
    loaded = AutoModelForCausalLM.from_pretrained(folder / RUN / "final")
    assert loaded.layer_plan == LayerPlan.from_dict(plan)
    with torch.no_grad():
        assert torch.equal(loaded(IDS).logits, expected)


def test_stage_1_trains_both_factors_and_the_bias_and_nothing_else(aligned: tuple[Path, torch.Tensor]) -> None:
    before, after = (load_file(aligned[0] / RUN / name / "model.safetensors") for name in ("initial", "stage1"))
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    parts = ("down.weight", "up.weight", "up.bias")
    factors = {f"model.layers.{i}.self_attn.w_c.{part}" for i in (5, 6, 7) for part in parts}
    assert changed == factors
    assert all(before[name].abs().sum() > 0 for name in factors), "all start where calibration put them"


def test_a_searched_plan_gets_the_bias_of_the_config(folder: Path) -> None:
    assert main([*FIT, "calibration.bias=true", "architecture.candidates=1", "architecture.budget=0.95"]) == 0
    compensations = [row["compensation"] for row in prepared(folder)["plan"]["rows"]]
    assert compensations
    assert all(placed["bias"] for placed in compensations)
    weights = load_file(folder / RUN / "final" / "model.safetensors")
    biases = [weight for name, weight in weights.items() if name.endswith("w_c.bias")]
    assert len(biases) == len(compensations)
    assert all(weight.any() for weight in biases)
