"""How long a text a model was made for, and what is said where a command asks for longer ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from uniattn_pl.cli import main
from uniattn_pl.config import load_config
from uniattn_pl.errors import UserError
from uniattn_pl.families.positions import positions_of
from uniattn_pl.resilience.cluster import Cluster
from uniattn_pl.training.experiment import Experiment

CONFIG = """
name: tiny
model: {source: tiny-llama, dtype: float32}
architecture: {name: uniattn, superblock_size: 2, num_superblocks: 1}
data: {source: rows.jsonl, validation_size: 2, max_length: 4096}
calibration: {num_samples: 2, held_out_samples: 2}
training: {batch_size: 2, micro_batch_size: 2}
trainer: {accelerator: cpu, devices: 1}
evaluation: {lengths: [4096], probes: [held_out, retrieval]}
bench: {lengths: [32], new_tokens: 2, rounds: 1}
tracking: {uri: "sqlite:///mlflow.db", artifact_location: artifacts}
"""
SAYS = "data.max_length: 4096 tokens are more than the 2048 positions of the model"


def rope(**parameters: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_theta": 1e4, **parameters}}


@pytest.mark.parametrize(
    ("family", "fields", "positions"),
    [
        ("llama", {}, 1000),
        ("llama", rope(rope_type="linear", factor=4.0), 4000),
        ("llama", rope(rope_type="dynamic", factor=4.0), 4000),
        ("llama", rope(rope_type="yarn", factor=4.0, original_max_position_embeddings=1000), 4000),
        ("llama", rope(rope_type="yarn", factor=4.0, original_max_position_embeddings=250), 1000),
        (
            "llama",
            rope(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0)
            | {"original_max_position_embeddings": 125},
            1000,
        ),
        ("bloom", {}, None),
        ("mamba", {}, None),
    ],
)
def test_a_stretched_rotation_reaches_as_far_as_it_says(
    family: str, fields: dict[str, Any], positions: int | None
) -> None:
    given = {} if positions is None else {"max_position_embeddings": 1000}
    assert positions_of(AutoConfig.for_model(family, **given, **fields)) == positions


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text(CONFIG)
    write_rows(["Four five six."] * 6)
    return tmp_path


def write_rows(outputs: list[str]) -> None:
    rows = [{"instruction": f"Count to {n}.", "input": "", "output": text} for n, text in enumerate(outputs)]
    Path("rows.jsonl").write_text("\n".join(map(json.dumps, rows)))


@pytest.mark.parametrize("words", [["fit"], ["fit", "--dry-run"], ["sweep", "--dry-run", "sweep.seeds=[1,2]"]])
def test_longer_rows_than_positions_are_refused_before_anything_is_loaded(
    folder: Path, words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("uniattn_pl.training.fit_models.load_model", None)
    command, *options = words
    assert main([command, "--config", "tiny.yaml", *options]) == 2
    told = capsys.readouterr().err
    assert SAYS in told
    assert "tiny.yaml:5" in told
    assert "Set it to 2048 at most" in told
    assert main([command, "--config", "tiny.yaml", "--dry-run", *options[1:], "data.max_length=2048"]) == 0


def test_packed_rows_count_their_own_positions(folder: Path) -> None:
    """A pack may be longer than the positions, a row of it may not."""
    write_rows(["word " * 30] * 6)
    loaded = load_config(["tiny.yaml"], ["data.packing=true"])
    assert Experiment(loaded, Cluster.alone(loaded.config)).data.report.max_length == 4096
    write_rows(["word " * 30] * 6 + ["word " * 600])
    with pytest.raises(UserError, match=r"data.max_length: 3\d\d\d tokens are more than the 2048 positions"):
        Experiment(loaded, Cluster.alone(loaded.config))


def test_an_evaluation_says_all_that_is_too_long_before_it_measures(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("uniattn_pl.evaluation.probes.held_out", None)
    assert main(["evaluate", "--config", "tiny.yaml", "--from", "tiny-llama"]) == 2
    told = capsys.readouterr().err
    assert SAYS in told
    assert "evaluation.lengths: 4096 tokens are more than the 2048 positions of the model" in told


def test_a_benchmark_of_longer_texts_goes_on_and_says_so(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from uniattn_pl.families.catalogue import named_model
    from uniattn_pl.modeling.loading.pretrained import load_folder

    monkeypatch.setattr("uniattn_pl.display.notices._told", set())
    model = load_folder(named_model("tiny-llama"))
    model.config.max_position_embeddings = 16
    model.save_pretrained("short")
    assert main(["bench", "--config", "tiny.yaml", "model.source=./short"]) == 0
    assert "note: bench.lengths: 32 tokens are more than the 16 positions of the model" in capsys.readouterr().err
