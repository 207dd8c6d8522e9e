"""`uniattn_pl.fit`: the fit of the command line, from a dictionary, with its results in hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from tests.tiny_fit import CONFIG, ROWS

import uniattn_pl
from uniattn_pl.cli import main


def test_a_fit_from_a_dictionary_is_the_one_of_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").write_text(ROWS)
    Path("tiny.yaml").write_text(CONFIG)
    values = {"training": {"stage1": {"max_steps": 2}}, "seed": 5}
    done = uniattn_pl.fit(yaml.safe_load(CONFIG), **values)
    assert done.folder == Path("runs/tiny")
    assert done.model_folder == done.folder / "final"
    fitted = [f"after {phase}" for phase in ("initialisation", "stage 1", "stage 2")]
    assert list(done.losses) == ["original", "unified, no W_c", *fitted]
    assert done.result.stages[0].steps == 2
    assert "after stage 2" in str(done)
    model, tokenizer = done.load_model(), done.load_tokenizer()
    assert repr(model.layer_plan) == "LayerPlan(8 layers: 7 full, 1 reuse; 1 with W_c)"
    with torch.no_grad():
        assert model(**tokenizer("Count", return_tensors="pt")).logits.isfinite().all()
    capsys.readouterr()
    assert main(["fit", "tiny.yaml", "training.stage1.max_steps=2", "seed=5"]) == 0
    assert "is finished; nothing was run" in capsys.readouterr().out, "the same experiment, by its content"
    with pytest.raises(uniattn_pl.UserError, match="seed was 5 when"):
        uniattn_pl.fit("tiny.yaml", **{"training.stage1.max_steps": 2, "seed": 6})
