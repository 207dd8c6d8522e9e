"""A reader that would compute what its source gives loses nothing: it equals the stock model, in every family."""

from __future__ import annotations

import copy

import pytest
import torch
from tests.tiny_models import LAYERS, MODES, SIZES, UNMODIFIED, WINDOW, stock, tokens
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from uniattn_pl.families.inspection import FAMILIES
from uniattn_pl.modeling.conversion.convert import apply_plan

IDS = tokens(2, 9)
SOURCE, READER = 1, 2
PARTS = {"reuse": "qk", "share_kv": "kv"}
PLANS = {
    "reuse": UNMODIFIED.reuse([READER], SOURCE, compensated=False),
    "share_kv": UNMODIFIED.share_kv([READER], SOURCE, compensated=False),
}
CASES = [("reuse", MODES[0]), ("reuse", MODES[1]), ("share_kv", "auto")]


def rows(part: str) -> slice:
    """Of a fused projection, as transformers' Phi-3 splits it."""
    query, shared = (SIZES[name] * SIZES["head_dim"] for name in ("num_attention_heads", "num_key_value_heads"))
    start, size = {"q": (0, query), "k": (query, shared), "v": (query + shared, shared)}[part]
    return slice(start, start + size)


def copy_part(source: nn.Module, reader: nn.Module, part: str) -> None:
    if hasattr(source, "qkv_proj"):
        reader.qkv_proj.weight[rows(part)] = source.qkv_proj.weight[rows(part)]
        return
    for name in (f"{part}_proj", f"{part}_norm"):
        if hasattr(source, name):
            reader.get_submodule(name).load_state_dict(source.get_submodule(name).state_dict())


@torch.no_grad()
def with_twin_layers(family: str, role: str) -> PreTrainedModel:
    """A stock model whose reader has the source's projections and, as the source adds nothing, its inputs."""
    model = stock(family)
    source, reader = model.model.layers[SOURCE], model.model.layers[READER]
    for last in (source.self_attn.o_proj, source.mlp.down_proj):
        last.weight.zero_()
    if hasattr(source, "input_layernorm"):
        reader.input_layernorm.load_state_dict(source.input_layernorm.state_dict())
    for part in PARTS[role]:
        copy_part(source.self_attn, reader.self_attn, part)
    return model


def reader_of_its_sources_kind(model: PreTrainedModel) -> PreTrainedModel:
    """The same weights; the reader has its source's window and rotation (on Gemma it is local, its source global)."""
    config = copy.deepcopy(model.config)
    if getattr(config, "layer_types", None) is not None:
        config.layer_types[READER] = config.layer_types[SOURCE]
    twin = AutoModelForCausalLM.from_config(config, attn_implementation=model.config._attn_implementation)
    twin.load_state_dict(model.state_dict())
    return twin.eval()


@pytest.mark.parametrize(("role", "mode"), CASES)
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_a_reader_of_what_it_would_compute_itself_is_exact(family: str, role: str, mode: str) -> None:
    assert IDS.shape[1] > WINDOW
    model = with_twin_layers(family, role)
    expected = reader_of_its_sources_kind(model)(IDS).logits
    converted = apply_plan(model, PLANS[role])
    converted.config.reuse_mode = mode
    torch.testing.assert_close(converted(IDS).logits, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("role", PLANS)
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_other_readers_are_not(family: str, role: str) -> None:
    """Otherwise the test above would compare models in which the reader hardly matters."""
    model = stock(family)
    assert model.config.num_hidden_layers == LAYERS
    expected = model(IDS).logits
    assert (apply_plan(model, PLANS[role])(IDS).logits - expected).abs().max() > 1e-2
