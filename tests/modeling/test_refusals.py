"""What cannot work is refused: folders that disagree with their plan, edited configs, foreign caches, options."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.tiny_models import MODES, converted, plan_of, shape, stock, tokens
from transformers import AutoModelForCausalLM, Cache, DynamicCache, PreTrainedModel, StaticCache

from uniattn_pl.errors import UserError
from uniattn_pl.modeling.caches.plan_cache import fit_cache
from uniattn_pl.modeling.conversion.convert import apply_plan
from uniattn_pl.plan import LayerPlan

PLAN = plan_of("llama", "uniattn")  # layers 2 and 3 reuse the map of layer 1
W_C, QUERY, KEY = ("model.layers.{}.self_attn." + part for part in ("w_c.weight", "q_proj.weight", "k_proj.weight"))
FIRST_ROW = PLAN.to_dict()["rows"][0]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    converted("llama", "uniattn").save_pretrained(tmp_path)
    return tmp_path


def edit_config(folder: Path, **fields: Any) -> None:
    """Set fields of a saved config; None removes one."""
    file = folder / "config.json"
    config = json.loads(file.read_text()) | fields
    file.write_text(json.dumps({name: value for name, value in config.items() if value is not None}))


def message_of_loading(folder: Path) -> str:
    with pytest.raises(UserError) as refusal:
        AutoModelForCausalLM.from_pretrained(folder)
    return str(refusal.value)


@pytest.mark.parametrize(
    ("plan", "fragments"),
    [
        (
            PLAN.reuse([4], 1, compensated=True),
            [f"missing: {W_C.format(4)}", f"not in the plan: {KEY.format(4)}, {QUERY.format(4)}"],
        ),
        (
            LayerPlan.unmodified(6),
            [f"missing: {KEY.format(2)}, {QUERY.format(2)}", f"not in the plan: {W_C.format(2)}, {W_C.format(3)}"],
        ),
        (
            PLAN.place_compensation(input="value", output="attention_output"),
            [f"of another shape: {W_C.format(2)}, {W_C.format(3)}"],
        ),
        (LayerPlan.unmodified(5).reuse([2, 3], 1, compensated=True), ["the plan has 5 layers, the model 6"]),
    ],
    ids=["another layer", "nothing operated", "another placement", "another depth"],
)
def test_weights_and_another_plan(plan: LayerPlan, fragments: list[str], folder: Path) -> None:
    edit_config(folder, layer_plan=plan.to_dict())
    message = message_of_loading(folder)
    assert all(fragment in message for fragment in fragments), message


def test_plan_and_config_of_another_depth(folder: Path) -> None:
    edit_config(folder, num_hidden_layers=5, layer_plan={**PLAN.to_dict(), "num_layers": 5})
    message = message_of_loading(folder)
    assert "not in the plan: model.layers.5.input_layernorm.weight" in message
    assert "and 4 more" in message


def test_a_deleted_compensation(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights[W_C.format(3)]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    message = message_of_loading(folder)
    assert f"(missing: {W_C.format(3)})" in message
    assert str(folder) in message


@pytest.mark.parametrize(
    ("fields", "fragment"),
    [
        ({"layer_plan": None}, "'uniattn_llama' needs a layer_plan"),
        ({"layer_plan": "uniattn"}, "not a layer plan"),
        ({"layer_plan": {"rows": []}}, "not a layer plan"),
        ({"layer_plan": PLAN.to_dict() | {"rows": [FIRST_ROW | {"source": "one"}]}}, "not a layer plan"),
        ({"layer_plan": PLAN.to_dict() | {"rows": [FIRST_ROW | {"sauce": 1}]}}, "sauce"),
        ({"layer_plan": PLAN.to_dict() | {"rows": [FIRST_ROW | {"index": 6}]}}, "there is no layer 6"),
        (
            {"layer_plan": PLAN.to_dict() | {"rows": [FIRST_ROW | {"compensation": {"input": "head"}}]}},
            "mean 'heads'",
        ),
        ({"reuse_mode": "replai"}, "Did you mean 'replay'? Allowed: auto, materialise, replay"),
        ({"attention_dropout": 0.1}, "attention_dropout is 0.1"),
    ],
)
def test_a_config_edited_by_hand(fields: dict[str, Any], fragment: str, folder: Path) -> None:
    edit_config(folder, **fields)
    assert fragment in message_of_loading(folder)


def test_a_config_without_a_reuse_mode_is_automatic(folder: Path) -> None:
    edit_config(folder, reuse_mode=None)
    assert AutoModelForCausalLM.from_pretrained(folder).config.reuse_mode == "auto"


def dynamic(model: PreTrainedModel) -> Cache:
    return DynamicCache(config=model.config)


def static(model: PreTrainedModel) -> Cache:
    return StaticCache(config=model.config, max_cache_len=12)


CACHES = pytest.mark.parametrize("new_cache", [dynamic, static])
IDS = tokens(1, 8)
MIXES = ("uniattn", "cla", "llmdrop", "mixed")


@CACHES
@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
@torch.no_grad()
def test_a_cache_filled_by_another_model(family: str, new_cache: Callable[[PreTrainedModel], Cache]) -> None:
    models = {name: converted(family, name) for name in MIXES}
    stock_model = stock(family)
    for name, model in models.items():
        others = [stock_model, *(other for key, other in models.items() if key != name)]
        for other in others:
            cache = new_cache(other)
            other(IDS, past_key_values=cache, use_cache=True)
            first = model.layer_plan.operated[0]
            with pytest.raises(ValueError, match=f"cache layer {first} was filled by a model with another layer plan"):
                model(IDS, past_key_values=cache, use_cache=True)


@CACHES
def test_an_empty_cache_fitted_to_another_plan(new_cache: Callable[[PreTrainedModel], Cache]) -> None:
    model = converted("llama", "mixed")
    plans = [plan_of("llama", name) for name in MIXES]
    for first, second in permutations(plans, 2):
        cache = fit_cache(new_cache(model), first)
        assert fit_cache(cache, first) is cache
        with pytest.raises(ValueError, match="another layer plan"):
            fit_cache(cache, second)


def test_a_cache_of_another_kind() -> None:
    with pytest.raises(NotImplementedError, match="tuple cannot serve a model with a layer plan"):
        fit_cache(((IDS, IDS),), PLAN)


@pytest.mark.parametrize("name", ["gradient_checkpointing_enable", "activation_checkpointing_enable"])
@pytest.mark.parametrize("mode", MODES)
def test_reentrant_checkpointing(name: str, mode: str) -> None:
    model = converted("llama", "uniattn", mode).train()
    enable: Callable[..., None] = getattr(model, name)
    with pytest.raises(UserError, match="use use_reentrant=False"):
        enable({"use_reentrant": True})
    assert not model.is_activation_checkpointing
    enable()
    assert model.is_activation_checkpointing
    model(IDS, labels=IDS).loss.backward()
    assert model.model.layers[1].self_attn.q_proj.weight.grad.any()


@pytest.mark.parametrize("family", ["llama", "phi3", "gemma3_text"])
def test_attention_dropout(family: str) -> None:
    model = stock(family)
    model.config.attention_dropout = 0.1
    with pytest.raises(UserError, match=r"attention_dropout is 0\.1; a shared attention map needs 0"):
        apply_plan(model, plan_of(family, "uniattn"))


def test_a_refused_model_is_still_stock() -> None:
    model = stock("llama")
    model.config.attention_dropout = 0.1
    with pytest.raises(UserError):
        apply_plan(model, PLAN)
    model.config.attention_dropout = 0.0
    assert apply_plan(model, PLAN).layer_plan == PLAN


@pytest.mark.parametrize("family", ["qwen3_next", "smollm3", "gpt_oss"])
def test_a_w_c_inside_an_attention_that_keeps_its_familys_forward(family: str, tmp_path: Path) -> None:
    """As a former version made them, and as none is made today."""
    source, reader = shape(family).attention_layers[:2] if family != "gpt_oss" else (1, 3)
    plan = LayerPlan.stock(shape(family)).reuse([reader], source, compensated=True)
    inside = plan.place_compensation(input="value", output="attention_output")
    message = f"the attention of layers {reader} does more than plans know.* have it read attention_input"
    with pytest.raises(UserError, match=message):
        apply_plan(stock(family), inside)
    apply_plan(stock(family), plan).save_pretrained(tmp_path)
    edit_config(tmp_path, layer_plan=inside.to_dict())
    with pytest.raises(UserError, match=message):
        AutoModelForCausalLM.from_pretrained(tmp_path)
