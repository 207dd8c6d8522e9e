"""ONNX in onnxruntime and torch.export's programs: the text of the model, from its own cache."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tests.exporting.test_export import saved
from tests.tiny_models import random_model, with_random_compensations
from transformers import PreTrainedModel

from uniattn_pl import cli
from uniattn_pl.errors import UserError
from uniattn_pl.exporting.programs import export_program as programs
from uniattn_pl.exporting.programs.export_program import export_program
from uniattn_pl.modeling.conversion.convert import apply_plan
from uniattn_pl.modeling.loading.pretrained import load_folder, load_folder_tokenizer
from uniattn_pl.plan import LayerPlan

# Every role that can be traced, in four layers.
STOCK = LayerPlan.unmodified(4)
MAPS = STOCK.reuse([1], 0, compensated=True).share_kv([2], 0, compensated=False).drop([3], compensated=True)
HEADS = STOCK.merge_heads([1], 1, compensated=False).skip([2], compensated=False).reuse([3], 0, compensated=False)


def planned(plan: LayerPlan) -> PreTrainedModel:
    model = random_model("llama", num_hidden_layers=len(plan.rows)).eval()
    return with_random_compensations(apply_plan(model, plan))


def run_readme(folder: Path) -> str:
    """What the code in the README prints, in a fresh process there."""
    found = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    assert found
    done = subprocess.run([sys.executable, "-c", found[1]], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.parametrize(("kind", "plan"), [("onnx", MAPS), ("pt2", HEADS)])
def test_the_code_of_the_readme_gives_the_text_of_the_model(tmp_path: Path, kind: str, plan: LayerPlan) -> None:
    if kind == "onnx":
        onnx = pytest.importorskip("onnx", reason="onnx is not installed (uniattn-pl[onnx])")
    source, graphs = saved(planned(plan), tmp_path / "model"), tmp_path / "graphs"
    assert export_program(source, graphs, kind) < 1e-4
    tokenizer, model = load_folder_tokenizer(source), load_folder(source)
    ids = torch.tensor([tokenizer("The heart")["input_ids"]])
    options = {"max_new_tokens": 20, "do_sample": False, "eos_token_id": None}
    greedy = model.generate(ids, attention_mask=torch.ones_like(ids), **options)
    assert run_readme(graphs) == tokenizer.decode(greedy[0, ids.shape[1] :]) + "\n"
    if kind == "onnx":  # the cache between the graphs is the plan's: values of layer 1, whose keys have no width
        taken = onnx.load(graphs / "decode.onnx", load_external_data=False).graph.input
        held = {value.name.partition("layers.")[2] for value in taken if "layers." in value.name}
        assert held - {"1.keys"} == {"0.keys", "0.values", "1.values"}


def test_graphs_that_give_other_logits_are_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "_traced", lambda *_: None)
    monkeypatch.setattr(programs, "_difference", lambda *_: float("nan"))
    with pytest.raises(UserError, match=r"give other logits \(by nan\); nothing was written"):
        export_program(saved(planned(HEADS), tmp_path / "model"), tmp_path / "graphs", "pt2")
    assert not (tmp_path / "graphs").exists()


def test_what_is_missing_or_cannot_be_traced_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    saved(planned(STOCK.limit_window([2], 4, 1, compensated=False)), tmp_path / "model")
    words = ["export", "--from", "model", "--to", "graphs", "--format"]
    assert cli.main([*words, "pt2"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: transformers' exporter cannot make pt2 of this model: ")
    assert len(error.splitlines()) == 1
    monkeypatch.setitem(programs.NEEDED, "onnx", ("onnx", "no_such_package"))
    assert cli.main([*words, "onnx", "--dry-run"]) == 2
    assert "--format onnx needs no_such_package; install: " in capsys.readouterr().err
