"""README's Python example runs exactly as it is printed, on a model of random weights as deep as the one it names."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from tests.docs.documented import ROOT
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import uniattn_pl
from uniattn_pl.families.catalogue import byte_tokenizer, named_folder


def test_the_python_example_runs_as_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    section = (ROOT / "README.md").read_text(encoding="utf-8").partition("## From Python")[2]
    block = re.search(r"^```python\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    assert block is not None
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("UNIATTN_PL_CACHE", str(tmp_path / "cache"))
    tokenizer = byte_tokenizer()
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_key_value_heads": 1}
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), num_hidden_layers=30, **sizes))
    for part in (model, tokenizer):  # where the named model is kept once it was converted
        part.save_pretrained(named_folder("smollm2-135m"))
    names: dict[str, object] = {}
    exec(compile(block[1], "README.md", "exec"), names)
    printed = capsys.readouterr().out
    assert printed.count("map of") == 12, "the plan is drawn"
    assert "per-token error on held-out sequences" in printed
    assert printed.count("%") == 13
    assert names["output"].shape[1] > 9  # type: ignore[attr-defined]
    again = AutoModelForCausalLM.from_pretrained("folder")
    assert again.layer_plan == names["model"].layer_plan  # type: ignore[attr-defined]
    compensations = [value for name, value in again.state_dict().items() if name.endswith("w_c.weight")]
    assert len(compensations) == 12
    assert all(value.any() for value in compensations)
    assert len([line for line in block[1].splitlines() if line and not line.startswith(("import", "from"))]) == 6
    assert uniattn_pl.LayerPlan.from_dict(again.config.layer_plan) == again.layer_plan
