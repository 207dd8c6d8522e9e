"""Role `heads`: layers whose heads of keys and values were merged compute what stock layers of equal heads compute."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.tiny_models import (
    DISTINCT,
    LAYERS,
    MODES,
    UNMODIFIED,
    random_model,
    stock,
    tokens,
    with_random_compensations,
)
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedModel

import uniattn_pl
from uniattn_pl.errors import UserError
from uniattn_pl.families.model_shape import shape_of
from uniattn_pl.modeling.conversion.convert import apply_plan
from uniattn_pl.plan import LayerPlan, costs

MERGED = [1, 3, 5]
PLAN = UNMODIFIED.merge_heads(MERGED, 1, compensated=True)
# A map and keys of merged heads are read by layers whose values have heads of their own.
READ = PLAN.reuse([2], 1, compensated=True).share_kv([4], 3, compensated=True)
QUERIES, HEADS, SIZE = 4, 2, 8  # of tests/tiny_models.py
IDS = tokens(2, 12)


def with_equal_heads(model: PreTrainedModel, layers: list[int]) -> PreTrainedModel:
    """The reference, by hand: a stock model whose heads of keys and values are their mean, each of them."""

    def equal(rows: torch.Tensor) -> torch.Tensor:
        return rows.unflatten(0, (HEADS, SIZE)).mean(0).repeat(HEADS, *[1] * (rows.dim() - 1))

    for layer in layers:
        attention = model.model.layers[layer].self_attn
        for name, parameter in attention.named_parameters():
            if name.startswith(("k_proj", "v_proj")) or (name == "k_norm.weight" and len(parameter) > SIZE):
                parameter.data.copy_(equal(parameter.data))
            if name.startswith("qkv_proj"):
                first, width = QUERIES * SIZE, HEADS * SIZE
                for start in (first, first + width):
                    parameter.data[start : start + width] = equal(parameter.data[start : start + width])
    return model


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("family", DISTINCT)
@torch.no_grad()
def test_layers_that_read_from_it_read_what_equal_heads_give(family: str, mode: str) -> None:
    readers = UNMODIFIED.reuse([2], 1, compensated=True).share_kv([4], 3, compensated=True)
    reference = apply_plan(with_equal_heads(stock(family), MERGED), readers)
    reference.config.reuse_mode = mode
    model = apply_plan(stock(family), READ)
    model.config.reuse_mode = mode
    torch.testing.assert_close(model(IDS).logits, reference(IDS).logits, rtol=0, atol=2e-5)


@pytest.mark.parametrize("family", DISTINCT)
@torch.no_grad()
def test_it_decodes_as_without_cache_in_the_predicted_bytes(family: str) -> None:
    shape = shape_of(stock(family).config)
    model = with_random_compensations(apply_plan(stock(family), READ))
    cache = DynamicCache(config=model.config)
    steps = [model(part, past_key_values=cache).logits for part in IDS.split([5, 1, 1, 5], 1)]
    torch.testing.assert_close(torch.cat(steps, dim=1), model(IDS, use_cache=False).logits, rtol=0, atol=5e-5)
    predicted = costs.kv_cache_bytes(READ, shape, batch_size=2, length=12, bytes_per_element=4)
    assert uniattn_pl.kv_cache_bytes(cache) == predicted
    assert sum(parameter.numel() for parameter in model.parameters()) == costs.parameters(READ, shape)


@torch.no_grad()
def test_a_static_cache_holds_fewer_heads_too() -> None:
    model = with_random_compensations(apply_plan(stock("llama"), PLAN))
    greedy = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    expected = model.generate(IDS, use_cache=False, **greedy)
    assert torch.equal(model.generate(IDS, cache_implementation="static", **greedy), expected)


@pytest.mark.parametrize("family", ["llama", "qwen2", "phi3", "olmo2"])
@torch.no_grad()
def test_it_is_saved_and_loaded(family: str, tmp_path: Path) -> None:
    model = with_random_compensations(apply_plan(stock(family), READ))
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert loaded.layer_plan == READ
    torch.testing.assert_close(loaded(IDS).logits, model(IDS).logits, rtol=0, atol=0)


def test_the_original_keeps_its_weights() -> None:
    original = stock("phi3")
    before = {name: tensor.clone() for name, tensor in original.state_dict().items()}
    uniattn_pl.modeling.conversion.convert.converted_copy(original, PLAN)
    assert all(torch.equal(tensor, before[name]) for name, tensor in original.state_dict().items())


@torch.no_grad()
def test_an_untested_family_is_merged_after_it_has_been_probed() -> None:
    model = apply_plan(stock("smollm3"), PLAN)
    expected = with_equal_heads(stock("smollm3"), MERGED)(IDS).logits
    torch.testing.assert_close(model(IDS).logits, expected, rtol=0, atol=2e-5)


def test_an_untested_family_whose_attention_counts_its_heads_elsewhere_is_refused() -> None:
    model = random_model("smollm3")
    attention = type(model.model.layers[0].self_attn)

    class Counting(attention):  # type: ignore[misc, valid-type]
        """Its keys are normed over all heads of one token, in a number that the config gives."""

        def forward(self, hidden_states: torch.Tensor, **kwargs: object) -> object:
            assert self.k_proj.out_features == self.config.num_key_value_heads * self.head_dim
            return super().forward(hidden_states, **kwargs)

    for layer in model.model.layers:
        layer.self_attn.__class__ = Counting
    with pytest.raises(UserError, match=r"smollm3': its attention cannot be run as a plan has it"):
        apply_plan(model, LayerPlan.unmodified(LAYERS).merge_heads([1], 1, compensated=False))
