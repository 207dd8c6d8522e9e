"""Families whose attention drops out what it adds to the stream in training: operated ones do so, too."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.tiny_models import SIZES, UNMODIFIED, tokens, with_random_compensations
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from uniattn_pl.modeling.conversion.convert import apply_plan
from uniattn_pl.plan import LayerPlan

PROBABILITY = 0.25
IDS = tokens(4, 24)
REUSE = UNMODIFIED.reuse([2], 1, compensated=True)
PLANS = {
    "reuse": REUSE,
    "reuse without W_c": UNMODIFIED.reuse([2], 1, compensated=False),
    "W_c before W_o": REUSE.place_compensation(input="value", output="heads"),
    "W_c after the layer": REUSE.place_compensation(input="attention_input", output="layer_output"),
    "share_kv": UNMODIFIED.share_kv([2], 1, compensated=True),
    "drop": UNMODIFIED.drop([2], compensated=True),
}


def converted(family: str, plan: LayerPlan) -> PreTrainedModel:
    torch.manual_seed(0)
    options = {"residual_dropout": PROBABILITY, "attention_dropout": 0.0, "embedding_dropout": 0.0}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **SIZES | options)).eval()
    return with_random_compensations(apply_plan(model, plan))


def attention_output(model: Any) -> torch.Tensor:
    seen: list[torch.Tensor] = []
    handle = model.model.layers[2].self_attn.register_forward_hook(lambda _, args, output: seen.append(output[0]))
    model(IDS, use_cache=False)
    handle.remove()
    return seen[0]


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("family", ["seed_oss", "starcoder2"])
@torch.no_grad()
def test_an_operated_attention_drops_out_as_its_family_does(family: str, plan: str) -> None:
    model: Any = converted(family, PLANS[plan])
    expected = attention_output(model)
    torch.testing.assert_close(attention_output(model), expected, rtol=0, atol=0)
    model.model.layers[2].self_attn.train()  # the layers below as they were
    found = attention_output(model)
    kept = found != 0
    assert float(kept.float().mean()) == pytest.approx(1 - PROBABILITY, abs=0.05)
    torch.testing.assert_close(found[kept], expected[kept] / (1 - PROBABILITY))
    assert not torch.equal(attention_output(model), found)
