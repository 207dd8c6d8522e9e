"""Whole fits on a tiny model: which phases run, what they leave, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import huggingface_hub
import pytest
import torch
from mlflow.tracking import MlflowClient
from transformers import AutoModelForCausalLM

from uniattn_pl.config import LoadedConfig, load_config
from uniattn_pl.errors import UserError
from uniattn_pl.families.catalogue import named_model
from uniattn_pl.resilience.failures import TrainingDivergedError
from uniattn_pl.resilience.manifest import Manifest, exclusive
from uniattn_pl.training.fit import fit

CONFIG = """
name: tiny
model: {source: tiny-llama, dtype: float32}
data: {source: rows.jsonl, validation_size: 2}
calibration: {num_samples: 2, held_out_samples: 2}
training: {batch_size: 2, micro_batch_size: 2, stage1: {max_steps: 1}, stage2: {max_steps: 1}}
trainer: {accelerator: cpu, devices: 1}
evaluation: {num_samples: 2, texts: 0}
tracking: {uri: "sqlite:///%s", artifact_location: artifacts}
"""
EXACT = "training.precision=32-true"
ROWS = "\n".join(json.dumps({"instruction": f"Count to {n}.", "input": "", "output": "1 2 3"}) for n in range(6))


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One store for all tests of the module: making its tables takes seconds."""
    return tmp_path_factory.mktemp("store") / "mlflow.db"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, database: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "tiny.yaml").write_text(CONFIG % database, encoding="utf-8")
    (tmp_path / "rows.jsonl").write_text(ROWS, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def config(*overrides: str) -> LoadedConfig:
    return load_config(
        [Path("tiny.yaml")], ["architecture.superblock_size=2", "architecture.num_superblocks=1", *overrides]
    )


def test_a_plan_that_does_not_fit_is_refused_before_anything_is_tracked(folder: Path) -> None:
    store = folder / "other.db"
    with pytest.raises(UserError, match=r"rank 1000; it must be from 1 to 32"):
        fit(config("calibration.rank=1000", f"tracking.uri=sqlite:///{store}"))
    assert not store.exists()
    assert {path.name for path in (folder / "runs" / "tiny").iterdir()} <= {"manifest.json", ".lock"}


def test_a_model_with_nothing_to_compensate_skips_initialisation_and_stage_1() -> None:
    result = fit(load_config([Path("tiny.yaml")], ["architecture.name=baseline"]))
    assert [milestone.name for milestone in result.milestones] == ["original", "stage2"]
    assert [stage.name for stage in result.stages] == ["stage2"]
    assert result.gap_closed is None
    assert result.cache.retain_rate == 1.0
    assert AutoModelForCausalLM.from_pretrained(result.model_folder).config.model_type == "llama"


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("word", ["training.precision=bf16-mixed", "model.dtype=bfloat16", EXACT])
def test_bfloat16_in_software_is_warned_of(
    word: str, native: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": native}, raising=False)
    fit(load_config([Path("tiny.yaml")], ["architecture.name=baseline", "training.stage2.enabled=false", word]))
    warned = "precision: this machine has no bfloat16 in hardware" in capsys.readouterr().out
    assert warned == (not native and word != EXACT)


def test_without_stage_2_the_result_is_that_of_stage_1(folder: Path) -> None:
    result = fit(config("training.stage2.enabled=false"))
    assert [stage.name for stage in result.stages] == ["stage1"]
    weights = [(folder / "runs/tiny" / name / "model.safetensors").read_bytes() for name in ("stage1", "final")]
    assert weights[0] == weights[1]
    assert (result.model_folder / "tokenizer.json").exists()
    assert AutoModelForCausalLM.from_pretrained(result.model_folder).layer_plan.compensated == (7,)


def test_the_run_and_the_folder_find_each_other(folder: Path, database: Path) -> None:
    result = fit(config("training.stage1.enabled=false"))
    client = MlflowClient(f"sqlite:///{database}")
    run = client.get_run(str(result.mlflow_run_id))
    assert run.data.tags["uniattn_pl.final_model"] == str(result.model_folder.resolve())
    artifacts = {item.path for item in client.list_artifacts(run.info.run_id)}
    assert {"config.yaml", "plan.txt", "provenance.json", "calibration.json", "final_table.txt", "plots"} <= artifacts
    assert run.data.metrics["cost/kv_retain_rate"] == result.cache.retain_rate
    assert run.data.params["training.stage1.enabled"] == "False"


def test_another_config_in_the_same_folder_is_refused() -> None:
    loaded = config("training.stage1.enabled=false", "training.stage2.enabled=false")
    fit(loaded)
    with pytest.raises(UserError, match="seed was 0"):
        fit(config("training.stage1.enabled=false", "training.stage2.enabled=false", "seed=1"))


def test_a_hubs_model_is_its_commit(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = folder / "hub"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(hub))
    commits = {name: name * 40 for name in "ab"}
    repository = hub / "models--me--tiny"
    for commit in commits.values():
        shutil.copytree(named_model("tiny-llama"), repository / "snapshots" / commit)
    (repository / "refs").mkdir()

    def main_is(name: str) -> None:
        (repository / "refs" / "main").write_text(commits[name])

    main_is("a")
    words = ["model.source=me/tiny", "name=hub"]
    result = fit(config(*words))
    main_is("b")
    with pytest.raises(UserError, match=r"'me/tiny' was at commit a{40} and is now at b{40}"):
        fit(config(*words))
    assert fit(config(*words, f"model.revision={commits['a']}")) == result


def test_a_second_fit_in_a_busy_folder_is_refused(folder: Path) -> None:
    with exclusive(folder / "runs/tiny"), pytest.raises(UserError, match="another fit is running"):
        fit(config())


def test_a_diverged_fit_fails_its_run_and_keeps_the_last_checkpoint(folder: Path, database: Path) -> None:
    overrides = ["training.stage1.enabled=false", "training.stage2.learning_rate=1e38", "training.stage2.max_epochs=4"]
    with pytest.raises(
        TrainingDivergedError,
        match=r"at step 2 on training rows .*; the last good checkpoint is .*stage2/step-00000001",
    ):
        fit(config(*overrides, "training.stage2.max_steps=3", "training.checkpoint_every_steps=1"))
    manifest = Manifest.read(folder / "runs/tiny")
    assert manifest is not None
    assert manifest.phase == "stage2"
    run = MlflowClient(f"sqlite:///{database}").get_run(str(manifest.mlflow_run_id))
    assert run.info.status == "FAILED"
