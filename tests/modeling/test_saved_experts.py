"""Converted mixtures of experts come back from their folders, also from checkpoints that keep experts one by one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.tiny_models import EAGER_ONLY, UNMODIFIED, stock, tokens, with_random_compensations
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, VaultGemmaConfig

import uniattn_pl
from uniattn_pl.modeling.conversion.convert import apply_plan
from uniattn_pl.modeling.loading.pretrained import load_folder_tokenizer, load_tokenizer

PLAN = UNMODIFIED.reuse([2, 3], 1, compensated=True).share_kv([5], 4, compensated=True)
IDS = tokens(2, 9)


def test_the_tokenizer_of_an_untested_family_is_read_before_its_model(tmp_path: Path) -> None:
    """As `generate` does, in a process that has not met the family."""
    load_tokenizer("tiny-llama").save_pretrained(tmp_path)
    config = VaultGemmaConfig(num_hidden_layers=2).to_dict()
    assert "uniattn_vaultgemma" not in CONFIG_MAPPING
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "uniattn_vaultgemma"}), encoding="utf-8")
    assert load_folder_tokenizer(tmp_path).encode("one")


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "mimo_v2_flash"])
@torch.no_grad()
def test_a_saved_model_comes_back(family: str, tmp_path: Path) -> None:
    original = stock(family)
    original.save_pretrained(tmp_path / "hub")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "hub").eval()
    if family == "mixtral":  # as on the hub
        assert any(".experts.0.w1." in name for name in load_file(tmp_path / "hub/model.safetensors"))
    assert torch.equal(model(IDS).logits, original(IDS).logits)
    with_random_compensations(apply_plan(model, PLAN))
    expected = model(IDS).logits
    model.save_pretrained(tmp_path / "converted")
    backend = "eager" if family in EAGER_ONLY else "sdpa"
    loaded = uniattn_pl.load_model(str(tmp_path / "converted"), dtype="float32", attn_implementation=backend)
    assert loaded.layer_plan == PLAN
    torch.testing.assert_close(loaded(IDS).logits, expected, rtol=0, atol=1e-5)
    states = model.state_dict(), loaded.state_dict(), load_file(tmp_path / "converted/model.safetensors")
    for state in states[1:]:
        assert state.keys() == states[0].keys()
        assert all(torch.equal(state[name], weight) for name, weight in states[0].items())
