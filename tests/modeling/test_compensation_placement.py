"""Every place where W_c may read and add, on separate, fused and windowed, soft-capped attentions."""

from __future__ import annotations

import copy
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tiny_models import MODES, UNMODIFIED, shape, stock, tokens, with_random_compensations
from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedModel

from uniattn_pl.calibration import calibrate
from uniattn_pl.modeling.conversion.convert import apply_plan, converted_copy
from uniattn_pl.plan import COMPENSATION_INPUTS, COMPENSATION_OUTPUTS, costs

# Layer 1 of Gemma-2 is global, layers 2 and 4 are local.
REUSE = UNMODIFIED.reuse([2, 3, 4], 1, compensated=True)
BARE = UNMODIFIED.reuse([2, 3, 4], 1, compensated=False)
DROP = UNMODIFIED.drop([2, 4], compensated=True)
BARE_DROP = UNMODIFIED.drop([2, 4], compensated=False)
PLANS = {
    f"{reads}>{adds}": REUSE.place_compensation(input=reads, output=adds)
    for reads, adds in product(COMPENSATION_INPUTS, COMPENSATION_OUTPUTS)
}
REUSE_NAMES = list(PLANS)
PLANS |= {
    "dropped>attention_output": DROP,
    "dropped>layer_output": DROP.place_compensation(input="attention_input", output="layer_output"),
    "bare reuse": BARE,
    "bare drop": BARE_DROP,
}
FAMILIES = ("llama", "phi3", "gemma2")
IDS = tokens(2, 9)
EVERYWHERE = pytest.mark.parametrize(
    ("family", "name"), [(family, name) for family in FAMILIES for name in PLANS if not name.startswith("bare")]
)


@lru_cache
def _placed(family: str, name: str) -> PreTrainedModel:
    return apply_plan(stock(family), PLANS[name])


def new(family: str, name: str) -> PreTrainedModel:
    """As apply_plan leaves it, every W_c zero."""
    return copy.deepcopy(_placed(family, name))


def random(family: str, name: str) -> PreTrainedModel:
    return with_random_compensations(new(family, name))


def compensations(model: PreTrainedModel) -> dict[int, nn.Parameter]:
    return {i: model.model.layers[i].self_attn.w_c.weight for i in model.layer_plan.compensated}


@EVERYWHERE
@torch.no_grad()
def test_steps_give_the_logits_of_one_forward(family: str, name: str) -> None:
    model = random(family, name)
    for mode in MODES:
        model.config.reuse_mode = mode
        whole = model(IDS, use_cache=False).logits
        cache = DynamicCache(config=model.config)
        steps = [model(part, past_key_values=cache, use_cache=True).logits for part in IDS.split([5, 1, 1, 2], 1)]
        torch.testing.assert_close(torch.cat(steps, dim=1), whole, rtol=0, atol=5e-5)


def gradients(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model(IDS, labels=IDS).loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


@EVERYWHERE
def test_gradients_reach_every_weight_and_are_the_same_with_checkpointing(family: str, name: str) -> None:
    model = new(family, name)
    # From zero, where training begins.
    assert not any(weight.any() for weight in compensations(model).values())
    assert all(gradients(model)[f"model.layers.{i}.self_attn.w_c.weight"].any() for i in PLANS[name].compensated)
    with_random_compensations(model).train()
    plain = gradients(model)
    assert plain.keys() == dict(model.named_parameters()).keys()
    # The norm of the attention's output has nothing to do where W_c goes round it.
    assert all(gradient.any() for parameter, gradient in plain.items() if "post_attention" not in parameter)
    model.activation_checkpointing_enable()
    for parameter, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, plain[parameter], rtol=1e-6, atol=1e-6)


@EVERYWHERE
@torch.no_grad()
def test_a_saved_model_comes_back_and_its_parameters_are_counted(family: str, name: str, tmp_path: Path) -> None:
    model = random(family, name)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert loaded.layer_plan == PLANS[name]
    expected, found = model.state_dict(), loaded.state_dict()
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[key], tensor) for key, tensor in expected.items())
    assert torch.equal(loaded(IDS).logits, model(IDS).logits)
    assert sum(p.numel() for p in model.parameters()) == costs.parameters(PLANS[name], shape(family))


@EVERYWHERE
@torch.no_grad()
def test_a_zero_compensation_is_none_and_a_random_one_is_not(family: str, name: str) -> None:
    bare = _placed(family, "bare reuse" if name in REUSE_NAMES else "bare drop")(IDS).logits
    assert torch.equal(_placed(family, name)(IDS).logits, bare)
    assert not torch.allclose(random(family, name)(IDS).logits, bare, atol=1e-2)


@EVERYWHERE
def test_calibration_lowers_the_error(family: str, name: str) -> None:
    original = stock(family)
    model = converted_copy(original, PLANS[name])
    ids = tokens(6, 16)
    batches = [{"input_ids": ids, "attention_mask": torch.ones_like(ids)}]
    report = calibrate(original, model, batches, batches, initialiser="least_squares")
    assert [row.layer for row in report.rows] == list(PLANS[name].compensated)
    assert all(row.after < row.before for row in report.rows), "\n".join(report.lines())


def watched(model: PreTrainedModel, index: int) -> dict[str, torch.Tensor]:
    """What passes through one layer in one forward, by the names that plans use."""
    seen: dict[str, torch.Tensor] = {}
    layer = model.model.layers[index]
    attention = layer.self_attn

    def watch(module: nn.Module, entering: str, leaving: str) -> RemovableHandle:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            seen[entering] = args[0] if args else kwargs["hidden_states"]
            seen[leaving] = output[0] if isinstance(output, tuple) else output

        return module.register_forward_hook(hook, with_kwargs=True)

    handles = [
        watch(attention.projection("v_proj"), "x", "value"),
        watch(attention.o_proj, "heads", "after W_o"),
        watch(attention, "attention_input", "attention_output"),
        watch(layer, "layer_input", "layer_output"),
    ]
    model(IDS)
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize(("reads", "adds"), list(product(COMPENSATION_INPUTS, COMPENSATION_OUTPUTS)))
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_w_c_reads_and_adds_where_the_plan_says(family: str, reads: str, adds: str) -> None:
    model = new(family, f"{reads}>{adds}")
    for index, weight in compensations(model).items():
        without = watched(model, index)
        weight.normal_(0, 0.1)
        compensated = watched(model, index)
        expected = without[adds] + nn.functional.linear(without[reads], weight)
        torch.testing.assert_close(compensated[adds], expected, rtol=0, atol=1e-5)
