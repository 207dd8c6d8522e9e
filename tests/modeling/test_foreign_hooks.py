"""Libraries that hook into every attention of a process (kvpress): harmless when only imported, refused where wrong."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from tests.tiny_models import UNMODIFIED, stock, tokens
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from uniattn_pl.errors import UserError
from uniattn_pl.modeling.conversion.convert import apply_plan
from uniattn_pl.plan import LayerPlan

READERS = UNMODIFIED.reuse([2], source=1, compensated=False).share_kv([4], source=3, compensated=False)
DROPPED = UNMODIFIED.drop([2, 4], compensated=False)


class Press:
    """As kvpress's: a forward hook on an attention that halves what its layer has cached."""

    def forward_hook(self, module: Any, arguments: Any, named: dict[str, Any], output: Any) -> None:
        layer = named["past_key_values"].layers[module.layer_idx]
        if getattr(layer, "keys", None) is not None and layer.keys.numel():
            half = layer.keys.shape[2] // 2
            layer.keys, layer.values = layer.keys[:, :, half:], layer.values[:, :, half:]


Press.__module__ = "kvpress.presses.knorm_press"


@pytest.fixture
def wrapped() -> Iterator[None]:
    """What importing kvpress does to all attention functions there are: the dropout comes by position."""
    before = dict(ALL_ATTENTION_FUNCTIONS.items())

    def wrapper(function: Any) -> Any:
        def call(module: Any, query: Any, key: Any, value: Any, mask: Any, dropout: float, **rest: Any) -> Any:
            return function(module, query, key, value, mask, dropout, **rest)

        return call

    for name, function in before.items():
        ALL_ATTENTION_FUNCTIONS[name] = wrapper(function)
    yield
    for name in before:
        del ALL_ATTENTION_FUNCTIONS[name]


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(tokens(1, 12), use_cache=True).logits


@pytest.mark.parametrize("family", ["llama", "gemma2", "gemma3_text", "gpt_oss", "phi3", "deepseek_v3"])
@pytest.mark.parametrize("plan", [READERS, DROPPED], ids=["readers", "dropped"])
def test_an_import_that_wraps_every_attention_changes_nothing(plan: LayerPlan, family: str, request: Any) -> None:
    model = apply_plan(stock(family), plan)
    expected = logits(model)
    request.getfixturevalue("wrapped")
    assert torch.equal(logits(model), expected)
    assert torch.equal(logits(apply_plan(stock(family), plan)), expected), "converted after the import"


def test_a_press_on_a_layer_that_others_read_is_refused() -> None:
    model = apply_plan(stock("llama"), READERS)
    for block in model.model.layers:
        block.self_attn.register_forward_hook(Press().forward_hook, with_kwargs=True)
    with pytest.raises(UserError, match=r"Press of kvpress .* layer 1 .*H2O"):
        logits(model)


def test_a_press_on_layers_that_nobody_reads_works() -> None:
    model = apply_plan(stock("llama"), DROPPED)
    for index in (0, 1, 3, 5):
        model.model.layers[index].self_attn.register_forward_hook(Press().forward_hook, with_kwargs=True)
    with torch.no_grad():
        cache = model(tokens(1, 12), use_cache=True).past_key_values
    assert cache.layers[0].keys.shape[2] == 6
