"""The probe `divergence`: against a plain computation, from a run and from the experiment's own model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests import tiny_fit

from uniattn_pl.cli import main
from uniattn_pl.config import load_config
from uniattn_pl.data import InstructionDataModule
from uniattn_pl.modeling.loading.pretrained import load_folder, load_model, load_tokenizer
from uniattn_pl.training.fit import fit

WORDS = ["evaluate", "--config", "tiny.yaml", "evaluation.probes=[divergence]", "evaluation.held_out_rows=2"]

Evaluated = Callable[..., dict[str, float]]


@pytest.fixture
def figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Evaluated:
    """Evaluates with more words; returns the figures' values."""
    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text(tiny_fit.CONFIG, encoding="utf-8")
    Path("rows.jsonl").write_text(tiny_fit.ROWS, encoding="utf-8")
    fit(load_config(["tiny.yaml"]))

    def evaluated(*words: str) -> dict[str, float]:
        assert main([*WORDS, *words]) == 0
        found = json.loads(Path("runs/tiny/evaluation/results.json").read_text())["results"]
        assert [result["name"] for result in found] == ["divergence"]
        return {name: figure["value"] for name, figure in found[0]["figures"].items()}

    return evaluated


def test_it_is_the_mean_kl_of_every_token_that_follows_another(figures: Evaluated) -> None:
    found = figures()
    model, original = load_folder(Path("runs/tiny/final")).eval(), load_model("tiny-llama", dtype="float32").eval()
    config = load_config(["tiny.yaml"]).config
    data = InstructionDataModule(
        config.data, load_tokenizer("tiny-llama"), batch_size=1, micro_batch_size=1, eval_batch_size=1, seed=0
    )
    data.setup()
    kls, of_responses, same = [], [], []
    for batch in data.validation_batches(2, 1):
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        with torch.no_grad():
            p, q = (m(**inputs).logits[0, :-1].double().softmax(-1) for m in (original, model))
        kl = (p * (p / q).log()).sum(-1)
        kls.append(kl)
        of_responses.append(kl[batch["labels"][0, 1:] != -100])
        same.append((p.argmax(-1) == q.argmax(-1)).double())
    expected = {"kl": kls, "kl_response": of_responses, "same_token": same}
    assert found == {name: pytest.approx(float(torch.cat(parts).mean()), abs=1e-6) for name, parts in expected.items()}
    assert found["kl"] > 1e-4


def test_a_model_does_not_differ_from_itself(figures: Evaluated) -> None:
    assert figures("evaluation.reference=runs/tiny") == {"kl": 0, "kl_response": 0, "same_token": 1}


def test_a_reference_that_is_not_there_is_told(figures: Evaluated, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*WORDS, "evaluation.reference=runs/tyni", "--dry-run"]) == 2
    assert "there is no folder 'runs/tyni'" in capsys.readouterr().err
