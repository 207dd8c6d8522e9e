"""A fit that was refused before it did anything binds its folder to nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from tests.tiny_fit import BASE, ROWS

from uniattn_pl.cli import main
from uniattn_pl.errors import RunFailure
from uniattn_pl.resilience.checkpoints import step_of
from uniattn_pl.resilience.manifest import Manifest
from uniattn_pl.resilience.run_record import RunRecord
from uniattn_pl.training.milestones import Milestones

CONFIG = f"""{BASE}
training: {{batch_size: 2, micro_batch_size: 2, stage1: {{max_steps: 1}}, stage2: {{max_steps: 1}}}}
tracking: {{uri: "sqlite:///mlflow.db", artifact_location: artifacts}}
"""


FIT = ["fit", "--config", "tiny.yaml"]


def test_the_corrected_command_starts_and_a_begun_fit_keeps_its_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text(CONFIG)
    Path("rows.jsonl").write_text(ROWS)
    assert main([*FIT, "data.max_length=4096"]) == 2
    assert "4096 tokens are more than the 2048 positions" in capsys.readouterr().err
    assert main([*FIT, "--dry-run"]) == 0
    with pytest.MonkeyPatch.context() as patch:  # once it runs, in its first phase
        patch.setattr(Milestones, "measure", fails)
        assert main([*FIT, "data.max_length=448"]) == 1
    assert main(FIT) == 0
    assert [run.data.params.get("data.max_length") for run in tracked_fits()] == [None, "448"], "an MLflow run each"
    manifest = Manifest.read(tmp_path / "runs" / "tiny")
    assert manifest is not None
    assert manifest.config["data"]["max_length"] == 512
    assert main([*FIT, "data.max_length=480"]) == 2
    assert "data.max_length was 512 when runs/tiny was started and is now 480" in capsys.readouterr().err
    assert main([*FIT, "architecture.superblock_size=20"]) == 2
    refused = capsys.readouterr().err
    assert "the model has 8" in refused.splitlines()[0], "what is wrong with the config itself comes first"
    assert "architecture.superblock_size was 2 when" in refused


def test_a_fit_that_goes_on_says_from_where() -> None:
    results: dict[str, dict[str, object]] = {"prepare": {}, "initialise": {}}
    manifest = Manifest({}, phase="stage1", results=results)
    record = RunRecord(manifest, Path("runs/tiny"), cluster=None)  # type: ignore[arg-type]
    assert record.how_far() == "resuming runs/tiny: prepare, initialise done; it goes on with stage1."
    assert step_of(Path("runs/step-1/checkpoints/stage1/step-00000040/state.ckpt")) == 40


def fails(*_: object, **__: object) -> None:
    raise RunFailure("the disk is full")


def tracked_fits() -> list[Run]:
    client = MlflowClient(f"sqlite:///{Path.cwd()}/mlflow.db")
    return list(client.search_runs([client.get_experiment_by_name("uniattn_pl").experiment_id]))
