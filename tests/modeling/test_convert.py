"""Converted models: caches, generation, saving, and what is refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tests.parity import recorded, stock_llama
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedModel

from uniattn_pl.errors import UserError
from uniattn_pl.families.model_shape import shape_of
from uniattn_pl.modeling.caches.plan_cache import kv_cache_bytes
from uniattn_pl.modeling.conversion.auto_classes import register_auto_classes
from uniattn_pl.modeling.conversion.convert import apply_architecture, apply_plan, converted_copy
from uniattn_pl.plan import LayerPlan, costs

UNMODIFIED = LayerPlan.unmodified(8)
PLANS = {
    "uniattn": UNMODIFIED.reuse([5, 6, 7], 4, compensated=True),
    "chain": UNMODIFIED.reuse([2], 1, compensated=True).reuse([3], 2, compensated=False),
    "cla": UNMODIFIED.share_kv([5, 7], 4, compensated=False),
    "cla_compensated": UNMODIFIED.share_kv([5, 6, 7], 4, compensated=True),
    "map_over_shared_keys": UNMODIFIED.share_kv([5], 4, compensated=False).reuse([6, 7], 5, compensated=True),
    "llmdrop": UNMODIFIED.drop([0, 6], compensated=False),
    "llmdrop_compensated": UNMODIFIED.drop([3, 6], compensated=True),
    "mixed": UNMODIFIED.reuse([2, 3], 1, compensated=True)
    .share_kv([4], 1, compensated=False)
    .drop([6], compensated=True),
}


def converted(name: str, backend: str = "sdpa", device: str = "cpu") -> PreTrainedModel:
    """A converted tiny model with random compensations, so that nothing is trivially zero."""
    model = apply_plan(stock_llama(backend), PLANS[name])
    generator = torch.Generator().manual_seed(0)
    for parameter_name, parameter in model.named_parameters():
        if "w_c" in parameter_name:
            parameter.data.normal_(0, 0.05, generator=generator)
    return model.to(device)


@pytest.fixture(params=list(PLANS))
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return converted(request.param)


def test_cache_holds_exactly_what_the_plan_predicts(model: PreTrainedModel) -> None:
    ids = recorded("inputs")["ids"]
    shape = shape_of(model.config)
    with torch.no_grad():
        cache = model(ids[:, :12], use_cache=True).past_key_values
        model(ids[:, 12:], past_key_values=cache, use_cache=True)
    expected = costs.kv_cache_bytes(model.layer_plan, shape, batch_size=2, length=20, bytes_per_element=4)
    assert kv_cache_bytes(cache) == expected
    full = costs.kv_cache_bytes(UNMODIFIED, shape, batch_size=2, length=20, bytes_per_element=4)
    assert expected < full


def test_parameters_are_counted_exactly(model: PreTrainedModel) -> None:
    counted = sum(p.numel() for p in model.parameters())
    assert counted == costs.parameters(model.layer_plan, shape_of(model.config))


@pytest.mark.parametrize("mode", ["materialise", "replay", "auto"])
@pytest.mark.parametrize("name", list(PLANS))
def test_cached_stepwise_and_left_padded_equal_one_forward(name: str, mode: str, device: str) -> None:
    model = converted(name, device=device)
    model.config.reuse_mode = mode
    inputs = recorded("inputs", device)
    ids = inputs["ids"]
    with torch.no_grad():
        whole = model(ids, use_cache=False).logits
        cache, steps = DynamicCache(), []
        for part in (ids[:, :7], ids[:, 7:12], *ids[:, 12:].split(1, dim=1)):
            steps.append(model(part, past_key_values=cache, use_cache=True).logits)
        padded_ids, mask = inputs["lpad_ids"], inputs["lpad_mask"]
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        padded = model(padded_ids, attention_mask=mask, position_ids=positions, use_cache=False).logits
        alone = model(padded_ids[:1, -13:], use_cache=False).logits
    torch.testing.assert_close(torch.cat(steps, dim=1), whole, rtol=0, atol=2e-5)
    torch.testing.assert_close(padded[:1, -13:], alone, rtol=0, atol=2e-5)


def uncached_greedy(model: PreTrainedModel, ids: torch.Tensor, tokens: int) -> torch.Tensor:
    with torch.no_grad():
        for _ in range(tokens):
            ids = torch.cat([ids, model(ids, use_cache=False).logits[:, -1:].argmax(-1)], dim=1)
    return ids


STATIC = {"cache_implementation": "static", "disable_compile": True}  # generate() compiles on a card otherwise


@pytest.mark.parametrize("options", [{}, STATIC, {"use_cache": False}])
@pytest.mark.parametrize("name", list(PLANS))
def test_generate_is_token_identical_to_no_cache(name: str, options: dict[str, object], device: str) -> None:
    model = converted(name, device=device)
    ids = recorded("inputs", device)["ids"][:1, :8]
    model.generation_config.eos_token_id = None
    generated = model.generate(ids, max_new_tokens=12, do_sample=False, pad_token_id=0, **options)
    assert torch.equal(generated, uncached_greedy(model, ids, 12))


def test_beam_search_reorders_value_only_layers() -> None:
    """With zero-width keys the stock cache layer believes itself empty and skips the reordering."""
    model = converted("uniattn")
    ids = recorded("inputs")["ids"][:1, :8]
    model.generation_config.eos_token_id = None
    options = {"max_new_tokens": 10, "num_beams": 4, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(model.generate(ids, **options), model.generate(ids, use_cache=False, **options))


@pytest.mark.parametrize("mode", ["materialise", "replay"])
@pytest.mark.parametrize("name", list(PLANS))
def test_gradients_are_the_same_with_checkpointing(name: str, mode: str, device: str) -> None:
    def gradients(checkpointing: bool) -> dict[str, torch.Tensor]:
        model = converted(name, device=device).train()
        model.config.reuse_mode = mode
        if checkpointing:
            model.activation_checkpointing_enable()
        ids = recorded("inputs", device)["ids"]
        model(ids, labels=ids).loss.backward()
        assert all(p.grad is not None for p in model.parameters())
        return {n: p.grad for n, p in model.named_parameters()}

    plain, checkpointed = gradients(False), gradients(True)
    for parameter, gradient in plain.items():
        torch.testing.assert_close(checkpointed[parameter], gradient, rtol=1e-6, atol=1e-6)


def test_state_dict_names_stay_stock_and_only_lose_what_the_plan_removes() -> None:
    stock, names = set(stock_llama().state_dict()), set(converted("uniattn").state_dict())
    layers = ("model.layers.5", "model.layers.6", "model.layers.7")
    assert names - stock == {f"{layer}.self_attn.w_c.weight" for layer in layers}
    assert stock - names == {f"{layer}.self_attn.{p}_proj.weight" for layer in layers for p in "qk"}


def test_save_and_load_is_bit_equal(model: PreTrainedModel, tmp_path: Path) -> None:
    register_auto_classes()
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert loaded.layer_plan == model.layer_plan
    expected, found = model.state_dict(), loaded.state_dict()
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    ids = recorded("inputs")["ids"]
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, model(ids).logits)


def test_a_saved_model_is_refused_without_the_package(tmp_path: Path) -> None:
    """`model_type: llama` would load silently with random projections."""
    converted("uniattn").save_pretrained(tmp_path)
    code = f"from transformers import AutoModelForCausalLM as A; A.from_pretrained({str(tmp_path)!r})"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert process.returncode != 0
    assert "uniattn_llama" in process.stderr


def test_a_copy_shares_every_weight_and_leaves_the_original_alone() -> None:
    original = stock_llama()
    ids = recorded("inputs")["ids"]
    with torch.no_grad():
        before = original(ids).logits
        copy = converted_copy(original, PLANS["mixed"])
        assert not torch.equal(copy(ids).logits, before)
        assert torch.equal(original(ids).logits, before)
    pointers = {p.data_ptr() for p in original.parameters()}
    assert {p.data_ptr() for n, p in copy.named_parameters() if "w_c" not in n} <= pointers


def test_w_c_starts_at_zero_and_baseline_stays_stock() -> None:
    model = apply_architecture(stock_llama(), "uniattn", superblock_size=4, num_superblocks=1, first_layer=4)
    assert all(not model.get_parameter(f"model.layers.{i}.self_attn.w_c.weight").any() for i in (5, 6, 7))
    baseline = apply_architecture(stock_llama(), "baseline")
    assert type(baseline) is type(stock_llama())
    assert baseline.layer_plan == UNMODIFIED


def test_changing_the_attention_backend_keeps_sharing() -> None:
    model = converted("uniattn")
    ids = recorded("inputs")["ids"]
    with torch.no_grad():
        expected = model(ids).logits
        model.set_attn_implementation("eager")
        torch.testing.assert_close(model(ids).logits, expected, rtol=0, atol=2e-5)


def test_what_cannot_work_is_refused() -> None:
    with pytest.raises(UserError, match=r"no option 'superblok_size'\. Did you mean 'superblock_size'\?"):
        apply_architecture(stock_llama(), "uniattn", superblok_size=4)
    with pytest.raises(UserError, match=r"superblock_size of uniattn: expected a whole number, got '4'"):
        apply_architecture(stock_llama(), "uniattn", superblock_size="4")
    with pytest.raises(UserError) as refusal:
        apply_architecture(stock_llama(), "uniattn", superblock_size=1, selection="best", layer=3)
    assert len(refusal.value.problems) == 3
    with pytest.raises(UserError, match="already has a layer plan"):
        apply_plan(converted("uniattn"), PLANS["cla"])
    model = stock_llama()
    model.config.attention_dropout = 0.1
    with pytest.raises(UserError, match=r"attention_dropout is 0\.1"):
        apply_plan(model, PLANS["uniattn"])
    with pytest.raises(UserError, match="reentrant"):
        converted("uniattn").activation_checkpointing_enable({"use_reentrant": True})
    filled = converted("uniattn")
    cache = stock_llama()(recorded("inputs")["ids"], use_cache=True).past_key_values
    with pytest.raises(ValueError, match="layer 5 was filled by a model with another layer plan"):
        filled(recorded("inputs")["ids"], past_key_values=cache, use_cache=True)
