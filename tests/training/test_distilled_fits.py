"""Whole fits that learn from a teacher: on one rank and on two, killed and resumed, packed, low-rank, from files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.parity import ROUNDS_ALIKE
from tests.training.attempts import Attempt, run_attempts
from tests.training.test_kill_and_resume import CONFIG, ROWS, history

from uniattn_pl.cli import main
from uniattn_pl.files import CACHE_VARIABLE

WHOLE = CONFIG.replace(", rank: auto", "").replace("devices: 1", "devices: auto")
D = "training.distillation."
MAPS = (f"{D}stage1.maps=0.5", f"{D}stage2.maps=0.5")
LIVE = (f"{D}teacher=original", f"{D}stage1.hidden=0.5", f"{D}stage2.hidden=0.5", f"{D}hidden_layers=[5,7]")
TOP = (f"{D}teacher=original", f"{D}top_k=16")
CACHED = (*TOP, f"{D}cache=true")
FSDP, LORA = "training.strategy=fsdp", "training.lora.enabled=true"
STAGE_1, STAGE_2 = "stage 1, step 4", "stage 2, in the middle of an accumulation"


ATTEMPTS = (
    Attempt("labels", 1, ()),
    Attempt("single", 1, LIVE),
    Attempt("ddp", 2, LIVE),
    Attempt("fsdp", 2, (*LIVE, FSDP)),
    Attempt("killed", 1, LIVE, (0, STAGE_2)),
    Attempt("killed", 1, LIVE),
    Attempt("killed fsdp", 2, (*LIVE, FSDP, "training.checkpoint_format=sharded"), (1, STAGE_2)),
    Attempt("killed fsdp", 2, (*LIVE, FSDP, "training.checkpoint_format=sharded")),
    Attempt("checkpointed", 1, (*LIVE, "training.gradient_checkpointing=true")),
    Attempt("lora", 1, (*LIVE, *MAPS, LORA)),
    Attempt("lora fsdp", 2, (*LIVE, *MAPS, LORA, FSDP)),
    Attempt("maps", 1, (f"{D}teacher=original", *MAPS)),
    Attempt("maps ddp", 2, (f"{D}teacher=original", *MAPS), (1, STAGE_1)),
    Attempt("maps ddp", 2, (f"{D}teacher=original", *MAPS)),
    Attempt("top", 1, TOP),
    Attempt("top packed", 1, (*TOP, "data.packing=true")),
    Attempt("cached fsdp", 2, (*CACHED, FSDP)),
    Attempt("cached", 1, CACHED),
    Attempt("cached packed", 1, (*CACHED, "data.packing=true")),
    Attempt("of a run", 1, (f"{D}teacher=../labels/runs/killed", f"{D}temperature=2", f"{D}tokens=response")),
)


@pytest.fixture(scope="module")
def fits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which all attempts ran; each kill ended every rank, and everything else ended well."""
    root = tmp_path_factory.mktemp("fits")
    environment = {CACHE_VARIABLE: str(root / "cache")}
    run_attempts(root, ATTEMPTS, config=WHOLE, rows=ROWS, environment=environment)
    return root


def weights(fits: Path, name: str) -> dict[str, torch.Tensor]:
    return load_file(fits / name / "runs/killed/final/model.safetensors")


def far(fits: Path, name: str, other: str) -> float:
    ours, theirs = weights(fits, name), weights(fits, other)
    assert ours.keys() == theirs.keys()
    return max(float((ours[key] - theirs[key]).abs().max()) for key in theirs)


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("ddp", "single"),
        ("fsdp", "single"),
        ("killed fsdp", "fsdp"),
        ("checkpointed", "single"),
        ("lora fsdp", "lora"),
        ("maps ddp", "maps"),
        ("cached", "top"),
        ("cached fsdp", "top"),
        ("cached packed", "top packed"),
    ],
)
def test_the_same_is_learned_however_it_is_computed(fits: Path, name: str, other: str) -> None:
    assert far(fits, name, other) < (2e-5 if ROUNDS_ALIKE else 6e-5)
    assert far(fits, other, "labels") > 1e-3, "the teacher has changed nothing"


def test_killed_and_resumed_is_uninterrupted_bit_for_bit(fits: Path) -> None:
    assert far(fits, "killed", "single") == 0
    assert history(fits / "killed")["stage2/hidden_error"] == history(fits / "single")["stage2/hidden_error"]


def test_every_term_of_the_loss_is_tracked_by_itself(fits: Path) -> None:
    tracked = history(fits / "lora")
    for stage in ("stage1", "stage2"):
        steps = [step for step, _ in tracked[f"{stage}/loss"]]
        for term in ("label_loss", "logit_divergence", "hidden_error", "map_divergence"):
            values = tracked[f"{stage}/{term}"]
            assert [step for step, _ in values] == steps
            assert all(value > 0 for _, value in values)
    assert "stage1/label_loss" not in history(fits / "labels")


def test_the_teacher_is_kept_once_for_all_fits(fits: Path) -> None:
    (folder,) = (fits / "cache/teachers").iterdir()
    assert len(list(folder.rglob("*.safetensors"))) == 12, "one file for every training row"


def test_a_teacher_that_was_changed_is_told(
    fits: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(fits / "of a run")
    config = fits / "labels/runs/killed/final/config.json"
    former = config.read_text()
    config.write_text(former.replace('"rms_norm_eps": ', '"rms_norm_eps": 1'))
    arguments = ["fit", "--config", "killed.yaml", *ATTEMPTS[-1].settings]
    assert main(arguments) == 2
    assert "the teacher changed: config.json, rms_norm_eps" in capsys.readouterr().err
    config.write_text(former)
    assert main(arguments) == 0


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("vocab_size", 7, "has logits of 7 tokens, the model of"),
        ("num_hidden_layers", 6, "hidden states of 8 layers of 32 cannot be compared with those of"),
        ("num_hidden_layers", 6, "attention maps of 8 layers of 4 heads cannot be compared with those of"),
    ],
)
def test_a_teacher_of_other_tokens_or_layers_is_refused_before_anything_starts(
    fits: Path,
    key: str,
    value: int,
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(fits / "of a run", tmp_path / "work", ignore=shutil.ignore_patterns("runs"))
    shutil.copytree(fits / "labels/runs/killed/final", tmp_path / "other")
    config = json.loads((tmp_path / "other/config.json").read_text())
    config[key] = value
    config.pop("layer_plan")
    (tmp_path / "other/config.json").write_text(json.dumps({**config, "model_type": "llama"}))
    monkeypatch.chdir(tmp_path / "work")
    hidden = (f"{D}hidden_layers=[1]", f"{D}stage1.hidden=1", f"{D}stage2.hidden=1")
    assert main(["fit", "--config", "killed.yaml", "--dry-run", f"{D}teacher=../other", *hidden, *MAPS]) == 2
    assert told in capsys.readouterr().err


def test_a_teacher_without_a_map_in_a_layer_that_reads_one_is_refused(
    fits: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(fits / "single")
    teacher = f"{D}teacher=../labels/runs/killed"
    assert main(["fit", "--config", "killed.yaml", "--dry-run", "name=other", teacher, *MAPS]) == 2
    assert "computes no attention map in layer 6, 7" in capsys.readouterr().err
