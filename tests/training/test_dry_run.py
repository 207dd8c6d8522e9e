"""`fit --dry-run` checks what it claims: every row as tokens, all problems at once, and what the fit will take."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.tiny_fit import BASE

from uniattn_pl.cli import main
from uniattn_pl.config import load_config
from uniattn_pl.data import token_cache
from uniattn_pl.data.open_rows import data_module
from uniattn_pl.modeling.loading.pretrained import load_tokenizer
from uniattn_pl.training.forecast import Forecast, duration, forecast, product_rate, sample_notes
from uniattn_pl.training.preflight import check_fit

GIB = 2**30
CONFIG = f"""{BASE}
training: {{batch_size: 4, micro_batch_size: 2, stage1: {{max_steps: 2}}, stage2: {{max_epochs: 3}}}}
tracking: {{uri: "sqlite:///mlflow.db", artifact_location: artifacts}}
"""
FIT = ["fit", "tiny.yaml", "--dry-run"]


def rows(count: int, *, words: int = 1) -> str:
    made = [{"instruction": f"{n} " + "word " * words, "input": "", "output": "1 2 3"} for n in range(count)]
    return "".join(json.dumps(row) + "\n" for row in made)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("UNIATTN_PL_CACHE", str(tmp_path / "cache"))
    Path("tiny.yaml").write_text(CONFIG)
    Path("rows.jsonl").write_text(rows(20) + rows(4, words=200))
    return tmp_path


def test_it_tells_dropped_rows_small_samples_and_what_the_fit_takes(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*FIT, "calibration.num_samples=500", "data.shuffle_seed=1"]) == 0
    printed = capsys.readouterr().out
    assert "4 rows dropped" in printed
    assert "the prompt alone has 512 tokens or more (data.max_length)" in printed
    assert "note: calibration.num_samples=500 takes the " in printed
    assert "expected: stage 1 2 steps, stage 2 15 steps, less than a minute on this machine (rough)" in printed
    assert "in the largest stage (estimate)" in printed
    assert "in the run folder at most (estimate)" in printed
    assert not Path("runs").exists()
    assert not Path("mlflow.db").exists()
    monkeypatch.setattr(token_cache, "encode_rows", lambda *_, **__: pytest.fail("tokenised again"))
    loaded = load_config(["tiny.yaml"], ["data.shuffle_seed=1"])
    sizes = {"batch_size": 4, "micro_batch_size": 2, "eval_batch_size": 2, "seed": 0}
    data_module(loaded.config.data, load_tokenizer("tiny-llama"), **sizes).setup()


def test_every_problem_is_told_at_once(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("rows.jsonl").write_text(rows(6, words=200))
    Path("mlflow.db").mkdir()
    lora = ["training.lora.enabled=true", "training.lora.target_modules=[q_projj]"]
    assert main([*FIT, *lora]) == 2
    told = capsys.readouterr().err
    assert "tracking.uri 'sqlite:///mlflow.db' cannot be opened" in told
    assert "q_projj" in told
    assert "has a prompt shorter than data.max_length=512" in told


def test_steps_are_those_that_the_loader_deals_out(folder: Path) -> None:
    loaded = load_config(["tiny.yaml"])
    found = check_fit(loaded, tokens=True)
    assert found.tokens is not None
    expected = forecast(loaded.config, found.plan, found.shape, found.tokens, 1)
    data = data_module(
        loaded.config.data, load_tokenizer("tiny-llama"), batch_size=4, micro_batch_size=2, eval_batch_size=2, seed=0
    )
    accumulate = 2
    assert expected.steps == {1: 2, 2: 3 * -(-len(data.train_dataloader()) // accumulate)}
    assert sample_notes(loaded.config, found.tokens) == []
    long = forecast(
        load_config(["tiny.yaml"], ["training.stage2.max_epochs=6"]).config, found.plan, found.shape, found.tokens, 1
    )
    assert expected.flops < long.flops < 2 * expected.flops


def test_what_does_not_fit_is_told(tmp_path: Path) -> None:
    import torch

    device = torch.device("cpu")
    huge = Forecast({1: 10}, 1e15, {1: 10**6 * GIB}, 10**6 * GIB)
    time, memory, disk = huge.lines(tmp_path / "not" / "there", device, 1e12)
    assert time == "expected: stage 1 10 steps, about 42 minutes on this machine (rough)"
    assert "but only" in disk
    assert "but only" in memory or "free" not in memory
    assert product_rate(device, torch.float32, size=64) > 0


@pytest.mark.parametrize(
    ("seconds", "words"), [(20, "less than a minute"), (300, "about 5 minutes"), (9000, "2.5 hours")]
)
def test_durations_have_as_many_digits_as_an_estimate(seconds: float, words: str) -> None:
    assert words in duration(seconds)
