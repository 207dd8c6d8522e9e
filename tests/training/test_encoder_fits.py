"""An encoder-decoder model through a whole fit, killed and resumed, exported, loaded, generated from and evaluated."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.training.attempts import Attempt, run_attempts
from tests.training.test_kill_and_resume import ROWS, history

from uniattn_pl.cli import main
from uniattn_pl.inference.generation import generate
from uniattn_pl.modeling.loading.pretrained import load_folder, load_folder_tokenizer

CONFIG = """
name: killed
model: {source: tiny-t5, dtype: float32}
architecture: {name: uniattn, superblock_size: 3, num_superblocks: 1, cross_attention: true}
data: {source: rows.jsonl, validation_size: 4}
calibration: {num_samples: 4, held_out_samples: 2}
training:
  batch_size: 4
  micro_batch_size: 2
  checkpoint_every_steps: 3
  stage1: {learning_rate: 1.0e-3, max_epochs: 2}
  stage2: {learning_rate: 1.0e-3, max_epochs: 2}
trainer: {accelerator: cpu, devices: 1}
evaluation: {num_samples: 4, texts: 0, probes: [held_out]}
"""
STAGE_1, STAGE_2 = "stage 1, step 4", "stage 2, in the middle of an accumulation"
ATTEMPTS = (
    Attempt("whole", 1),
    Attempt("killed", 1, (), (0, STAGE_1)),
    Attempt("killed", 1, (), (0, STAGE_2)),
    Attempt("killed", 1),
    Attempt("baseline", 1, ("architecture={name: baseline}", "training.gradient_checkpointing=true")),
    Attempt("lora", 1, ("training.lora.enabled=true",)),
)


@pytest.fixture(scope="module")
def fits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which all attempts ran; each kill ended the process, and everything else ended well."""
    root = tmp_path_factory.mktemp("encoder_fits")
    run_attempts(root, ATTEMPTS, config=CONFIG, rows=ROWS)
    return root


def final(fits: Path, name: str) -> Path:
    return fits / name / "runs/killed/final"


def test_killed_and_resumed_it_ends_as_one_that_was_not(fits: Path) -> None:
    whole, killed = (load_file(final(fits, name) / "model.safetensors") for name in ("whole", "killed"))
    assert whole.keys() == killed.keys()
    assert all(torch.equal(whole[name], killed[name]) for name in whole)
    assert history(fits / "whole")["stage2/loss"] == history(fits / "killed")["stage2/loss"]


@pytest.mark.parametrize("name", ["whole", "baseline", "lora"])
def test_training_lowers_the_loss_of_held_out_responses(fits: Path, name: str) -> None:
    ((_, before), *_), ((_, after), *_) = (
        history(fits / name)[f"{milestone}/response_loss"] for milestone in ("original", "final")
    )
    assert after < before


def test_the_run_is_exported_loaded_generated_from_and_evaluated(
    fits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(fits / "whole")
    assert main(["export", "--from", "runs/killed", "--to", str(tmp_path / "exported")]) == 0
    model, tokenizer = load_folder(tmp_path / "exported"), load_folder_tokenizer(tmp_path / "exported")
    assert json.loads((tmp_path / "exported/config.json").read_text())["model_type"] == "uniattn_t5"
    assert "AutoModelForSeq2SeqLM" in (tmp_path / "exported/README.md").read_text()
    ids = tokenizer("Count to 3.", return_tensors="pt")["input_ids"]
    written = model.generate(ids, max_new_tokens=6, do_sample=False)[0]
    text = tokenizer.decode(written, skip_special_tokens=True)
    assert generate(tmp_path / "exported", ["Count to 3."], max_new_tokens=6) == [text]
    capsys.readouterr()
    assert main(["evaluate", "--config", "killed.yaml"]) == 0
    results = json.loads((fits / "whole/runs/killed/evaluation/results.json").read_text())["results"]
    (held_out,) = [result for result in results if result["name"] == "held_out"]
    ((_, loss), *_) = history(fits / "whole")["final/response_loss"]
    assert held_out["figures"]["response_loss"]["value"] == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("calibration.head_alignment=similarity", "calibration.head_alignment"),
        ("calibration.refine.steps=2", "calibration.refine.steps"),
        ("training.distillation.teacher=original", "training.distillation.teacher"),
        ("data.packing=true", "data.packing"),
        ("architecture={name: search}", "architecture.name"),
    ],
)
def test_what_is_made_for_decoders_alone_is_refused_before_anything_slow(
    fits: Path, setting: str, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(fits / "whole")
    assert main(["fit", "--dry-run", "--config", "killed.yaml", "trainer.default_root_dir=other", setting]) == 2
    assert message in capsys.readouterr().err
