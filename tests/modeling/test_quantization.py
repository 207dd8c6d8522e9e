"""8 and 4 bit weights through bitsandbytes, on the CPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

import uniattn_pl
from uniattn_pl import load_model
from uniattn_pl.errors import UserError
from uniattn_pl.families.model_shape import shape_of
from uniattn_pl.modeling.caches.plan_cache import kv_cache_bytes
from uniattn_pl.modeling.loading import quantization
from uniattn_pl.plan import costs

ARCHITECTURE = {"name": "uniattn", "superblock_size": 3, "num_superblocks": 1}
IDS = torch.arange(3, 40)[None]


def stock(folder: Path) -> PreTrainedModel:
    """Large enough for 4-bit blocks of 64 weights."""
    sizes = {"hidden_size": 128, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2}
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=256, num_hidden_layers=4, initializer_range=0.1, **sizes))
    model.save_pretrained(folder)
    return model.eval()


@torch.no_grad()
def relative_difference(found: PreTrainedModel, expected: PreTrainedModel) -> float:
    reference = expected(IDS).logits
    return ((found(IDS).logits.float() - reference).norm() / reference.norm()).item()


@pytest.mark.parametrize("name", list(quantization.QUANTIZATIONS))
def test_a_converted_model_is_quantised_as_it_is_loaded(name: str, tmp_path: Path) -> None:
    """It computes what a model with its rounded weights computes, but for the rounding of activations."""
    pytest.importorskip("bitsandbytes", reason="the package bitsandbytes is not installed")
    model = uniattn_pl.apply_architecture(stock(tmp_path / "stock"), **ARCHITECTURE)
    for layer in model.layer_plan.compensated:
        model.get_parameter(f"model.layers.{layer}.self_attn.w_c.weight").data.normal_(0, 0.05)
    model.save_pretrained(tmp_path / "converted")
    loaded = load_model(str(tmp_path / "converted"), dtype="float32", quantization=name)
    attention = loaded.model.layers[3].self_attn
    assert not attention.v_proj.weight.is_floating_point()
    assert attention.w_c.weight.dtype == torch.float32
    rounded = load_model(str(tmp_path / "converted"), dtype="float32", quantization=name).dequantize()
    assert type(rounded.model.layers[3].self_attn.v_proj) is torch.nn.Linear
    assert relative_difference(rounded, model) > 1e-3
    assert relative_difference(loaded, rounded.float()) < 0.05
    with torch.no_grad():
        cache = loaded(IDS, use_cache=True).past_key_values
    expected = costs.kv_cache_bytes(
        loaded.layer_plan, shape_of(model.config), batch_size=1, length=IDS.shape[1], bytes_per_element=4
    )
    assert kv_cache_bytes(cache) == expected


def test_a_quantised_model_can_be_converted(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes", reason="the package bitsandbytes is not installed")
    full = uniattn_pl.apply_architecture(stock(tmp_path), **ARCHITECTURE)
    loaded = load_model(str(tmp_path), dtype="float32", quantization="8bit")
    uniattn_pl.apply_architecture(loaded, **ARCHITECTURE)
    assert loaded.model.layers[3].self_attn.w_c.weight.dtype == torch.float32
    assert relative_difference(loaded, full) < 0.05


def test_what_quantisation_needs_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stock(tmp_path)
    with pytest.raises(UserError, match=r"no quantization '8bits'\. Did you mean '8bit'\?"):
        load_model(str(tmp_path), quantization="8bits")
    monkeypatch.setattr(quantization, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs the package bitsandbytes"):
        load_model(str(tmp_path), quantization="4bit")
