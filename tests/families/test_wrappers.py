"""Models with a tower for images: the text model inside is converted, the tower answers images as ever."""

from __future__ import annotations

import copy
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks.exchanged_kernel import exchanged
from peft import get_peft_model
from safetensors.torch import load_file
from tests.tiny_fit import CONFIG, ROWS
from tests.tiny_models import MODES, SIZES, SPECIAL, UNMODIFIED, tokens, with_random_compensations
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, DynamicCache, PreTrainedModel

import uniattn_pl
from uniattn_pl.cli import main
from uniattn_pl.errors import UserError
from uniattn_pl.families.model_shape import shape_of
from uniattn_pl.modeling.caches.plan_cache import kv_cache_bytes
from uniattn_pl.modeling.conversion.convert import apply_plan
from uniattn_pl.modeling.loading.pretrained import load_tokenizer
from uniattn_pl.plan import LayerPlan, costs

IMAGE = 60  # the id that stands for a piece of an image, of which there are four
SIDE, PATCH = 28, 14
TOWER = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
LLAMA4_TOWER = {
    "intermediate_size": 32,
    "pixel_shuffle_ratio": 1.0,
    **dict.fromkeys(("projector_input_dim", "projector_output_dim", "vision_output_dim"), 32),
}
QWEN_TOWER = {"hidden_size": 32, "depth": 2, "num_heads": 2, "out_hidden_size": 32, "fullatt_block_indexes": [1]}
QWEN_IDS = {"image_token_id": IMAGE, "video_token_id": 61, "vision_start_token_id": 62, "vision_end_token_id": 63}
WRAPPERS: dict[str, dict[str, Any]] = {
    "gemma3": {"image_token_index": IMAGE, "mm_tokens_per_image": 4},
    "mistral3": {"image_token_index": IMAGE, "spatial_merge_size": 1},
    "llava": {"image_token_index": IMAGE},
    "llama4": {"image_token_index": IMAGE},
    "qwen2_5_vl": QWEN_IDS,
}
PLAN = UNMODIFIED.reuse([2], 1, compensated=True).share_kv([4], 3, compensated=True).drop([5], compensated=True)
BATCH, BEGIN = 2, 3
CLOSE = {"rtol": 0, "atol": 1e-5}


def tiny_config(family: str) -> Any:
    default = AutoConfig.for_model(family)
    text = default.get_text_config().model_type
    of_text = {**SIZES, **SPECIAL.get(text, {}), "model_type": text}
    tower = {**TOWER, "image_size": SIDE, "patch_size": PATCH, "model_type": default.vision_config.model_type}
    if family == "llama4":
        tower |= LLAMA4_TOWER
    if family == "qwen2_5_vl":
        tower = {**QWEN_TOWER, "intermediate_size": 48, "patch_size": PATCH, "model_type": tower["model_type"]}
        of_text["rope_parameters"] = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
    return AutoConfig.for_model(family, text_config=of_text, vision_config=tower, **WRAPPERS[family])


@lru_cache
def _built(family: str) -> PreTrainedModel:
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForImageTextToText.from_config(tiny_config(family)).eval()
    for parameter in model.parameters():
        if parameter.dim() == 1 or not parameter.any():  # norms, biases and projections that do something
            parameter.data.add_(torch.randn_like(parameter), alpha=0.2)
    return model


def stock_wrapper(family: str) -> PreTrainedModel:
    model = copy.deepcopy(_built(family))
    model.generation_config.eos_token_id = None
    return model


def converted_wrapper(family: str, mode: str = "auto") -> PreTrainedModel:
    model = with_random_compensations(apply_plan(stock_wrapper(family), PLAN))
    model.config.reuse_mode = mode
    return model


def with_images(family: str) -> dict[str, torch.Tensor]:
    """Two prompts of twelve tokens, four of which are an image's."""
    ids = tokens(BATCH, 12).clamp(max=IMAGE - 1)
    ids[:, BEGIN : BEGIN + 4] = IMAGE
    generator = torch.Generator().manual_seed(2)
    if family == "qwen2_5_vl":  # 4 x 4 patches of two frames, merged by fours
        pixels = torch.randn(BATCH * 16, 3 * 2 * PATCH**2, generator=generator)
        grid = torch.tensor([[1, 4, 4]] * BATCH)
        return {
            "input_ids": ids,
            "pixel_values": pixels,
            "image_grid_thw": grid,
            "mm_token_type_ids": (ids == IMAGE).int(),
        }
    inputs = {"input_ids": ids, "pixel_values": torch.randn(BATCH, 3, SIDE, SIDE, generator=generator)}
    if family == "gemma3":
        inputs["token_type_ids"] = (ids == IMAGE).long()
    if family == "mistral3":
        inputs["image_sizes"] = torch.tensor([[SIDE, SIDE]] * BATCH)
    return inputs


def compensations(model: PreTrainedModel) -> dict[int, torch.Tensor]:
    named = {name: p.detach() for name, p in model.named_parameters() if "w_c" in name}
    return {int(name.split(".layers.")[1].split(".")[0]): weight for name, weight in named.items()}


def expected_logits(family: str, model: PreTrainedModel, **inputs: Any) -> torch.Tensor:
    stock = stock_wrapper(family)
    with exchanged(stock, PLAN, compensations(model)):
        return stock(**inputs, use_cache=False).logits


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("family", WRAPPERS)
@torch.no_grad()
def test_images_are_answered_as_by_the_stock_model_with_its_kernel_exchanged(family: str, mode: str) -> None:
    model, inputs = converted_wrapper(family, mode), with_images(family)
    expected = expected_logits(family, model, **inputs)
    torch.testing.assert_close(model(**inputs, use_cache=False).logits, expected, **CLOSE)
    other = {**inputs, "pixel_values": inputs["pixel_values"] + 1}
    assert (model(**other, use_cache=False).logits - expected).abs().max() > 1e-3  # the image is looked at
    assert type(model.get_decoder()) is type(stock_wrapper(family).get_decoder())


@pytest.mark.parametrize("family", WRAPPERS)
@torch.no_grad()
def test_generation_about_an_image_is_the_uncached_one_in_the_predicted_bytes(family: str) -> None:
    model, inputs = converted_wrapper(family), with_images(family)
    greedy = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    found = model.generate(**inputs, **greedy, return_dict_in_generate=True)
    assert torch.equal(found.sequences, model.generate(**inputs, **greedy, use_cache=False))
    sizes = {"batch_size": BATCH, "length": found.sequences.shape[1] - 1, "bytes_per_element": 4}
    shape = shape_of(model.config)
    assert kv_cache_bytes(found.past_key_values) == costs.kv_cache_bytes(PLAN, shape, **sizes)
    assert sum(p.numel() for p in model.parameters()) == costs.parameters(PLAN, shape)
    first = expected_logits(family, model, **inputs)[:, -1].argmax(-1)
    assert torch.equal(found.sequences[:, inputs["input_ids"].shape[1]], first)


@pytest.mark.parametrize("family", WRAPPERS)
@torch.no_grad()
def test_text_alone_in_steps_gives_the_same(family: str) -> None:
    model, ids = converted_wrapper(family), tokens(BATCH, 12).clamp(max=IMAGE - 1)
    cache = DynamicCache(config=model.config)
    steps = [model(input_ids=part, past_key_values=cache).logits for part in ids.split((5, 1, 6), 1)]
    torch.testing.assert_close(torch.cat(steps, dim=1), expected_logits(family, model, input_ids=ids), **CLOSE)


@pytest.mark.parametrize("family", WRAPPERS)
@torch.no_grad()
def test_it_is_saved_and_loaded_whole_and_the_tower_is_untouched(family: str, tmp_path: Path) -> None:
    original, model, inputs = stock_wrapper(family).state_dict(), converted_wrapper(family), with_images(family)
    beside = {name: tensor for name, tensor in original.items() if "language_model" not in name}
    assert any("vision" in name or "visual" in name for name in beside)
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in beside.items())
    model.save_pretrained(tmp_path)
    loaded = uniattn_pl.load_model(str(tmp_path), dtype="float32")
    assert type(loaded) is type(model)
    assert loaded.layer_plan == PLAN
    torch.testing.assert_close(loaded(**inputs).logits, model(**inputs).logits, **CLOSE)
    assert type(AutoModelForImageTextToText.from_pretrained(tmp_path)) is type(model)
    if family == "gemma3":
        assert type(AutoModelForCausalLM.from_pretrained(tmp_path)) is type(model)


def test_gradients_reach_every_weight_of_the_text_model_with_checkpointing_too() -> None:
    gradients = []
    for checkpointing in (False, True):
        model = converted_wrapper("llava").train()
        if checkpointing:
            model.activation_checkpointing_enable()
        model(input_ids=with_images("llava")["input_ids"] % IMAGE, use_cache=False).logits.sum().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if "language_model" in name})
    for name, gradient in gradients[0].items():
        assert gradient is not None, name
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-5, atol=1e-5)


def test_a_fit_on_texts_trains_the_text_model_and_leaves_the_tower(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = load_tokenizer("tiny-llama")
    config = tiny_config("gemma3")
    config.text_config.vocab_size, config.text_config.max_position_embeddings = len(tokenizer), 512
    torch.manual_seed(0)
    AutoModelForImageTextToText.from_config(config).save_pretrained(tmp_path / "gemma3")
    tokenizer.save_pretrained(tmp_path / "gemma3")
    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text(CONFIG, encoding="utf-8")
    Path("rows.jsonl").write_text(ROWS, encoding="utf-8")
    words = ["--config", "tiny.yaml", "model.source=gemma3", "architecture.first_layer=1"]
    assert main(["fit", *words]) == 0
    before, after = (load_file(f"runs/tiny/{folder}/model.safetensors") for folder in ("stage1", "final"))
    moved = {name for name, weight in after.items() if not torch.equal(weight, before[name])}
    assert {name for name in after if "language_model" in name} == moved
    assert moved < after.keys()


@pytest.mark.parametrize("family", WRAPPERS)
def test_low_rank_updates_are_of_the_text_model_alone(family: str) -> None:
    model = converted_wrapper(family)
    adapted = get_peft_model(model, uniattn_pl.lora_config(model, rank=2))
    updated = {name for name, _ in adapted.named_parameters() if ".lora_" in name}
    assert updated
    assert all("language_model" in name for name in updated)


def test_a_changed_kernel_still_publishes_and_the_tower_attends_as_ever() -> None:
    model, inputs = converted_wrapper("gemma3"), with_images("gemma3")
    with torch.no_grad():
        expected = model(**inputs).logits
        model.set_attn_implementation("eager")
        torch.testing.assert_close(model(**inputs).logits, expected, rtol=0, atol=2e-5)
    assert str(model.config.vision_config._attn_implementation) == "eager"


def test_prompts_that_see_later_tokens_are_refused() -> None:
    config = AutoConfig.for_model("paligemma")
    with pytest.raises(UserError, match="'paligemma' is not supported: its prompts see later tokens, too"):
        shape_of(config)


def test_an_unmodified_plan_leaves_it_stock() -> None:
    model = apply_plan(stock_wrapper("gemma3"), LayerPlan.unmodified(6))
    assert type(model) is type(stock_wrapper("gemma3"))
