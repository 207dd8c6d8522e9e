"""A compiled model has the loss and the gradients of one that is not (checkpointing: tests/families/)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from tests.tiny_models import stock, tokens, with_random_compensations
from torch._dynamo import config as dynamo_config
from transformers import AutoModelForCausalLM, PreTrainedModel

from uniattn_pl.modeling.conversion.convert import apply_plan
from uniattn_pl.plan import LayerPlan

IDS = tokens(2, 9)
Results = dict[str, torch.Tensor]


def results(model: PreTrainedModel, forward: Callable[..., Any] | None = None) -> Results:
    """Loss and gradients of one training step, run by `forward` (the compiled model) where there is one."""
    model.zero_grad()
    run = model if forward is None else forward
    loss = run(IDS, labels=IDS, use_cache=False).loss
    loss.backward()
    found = {"loss": loss.detach()}
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        found[name] = parameter.grad.clone()
    return found


def assert_same(found: Results, expected: Results) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.allclose(found[name], tensor, rtol=1e-6, atol=1e-6), name


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def two_layers(family: str, mode: str) -> PreTrainedModel:
    """Compiling takes seconds per layer. Layer 1 reads the map of layer 0; on Gemma a local from a global layer."""
    config = stock(family).config
    if getattr(config, "layer_types", None) is not None:
        config.layer_types = config.layer_types[1:3]
    config.num_hidden_layers = 2
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    plan = LayerPlan.unmodified(2).reuse([1], 0, compensated=True)
    model = with_random_compensations(apply_plan(model, plan)).train()
    model.config.reuse_mode = mode
    return model


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize(("family", "mode"), [("llama", "materialise"), ("gemma3_text", "replay")])
def test_a_compiled_model_has_the_same_gradients(family: str, mode: str) -> None:
    model = two_layers(family, mode)
    plain = results(model)
    assert_same(results(model, torch.compile(model, backend="aot_eager", fullgraph=True)), plain)
    torch._dynamo.reset()
    model.activation_checkpointing_enable()
    with dynamo_config.patch(skip_fwd_side_effects_in_bwd_under_checkpoint=True):
        assert_same(results(model, torch.compile(model, backend="aot_eager", fullgraph=True)), plain)
