"""Families that multiply what an attention adds to the stream (Granite) are repaired as far as the others are."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.tiny_models import LAYERS, stock, tokens

from uniattn_pl.calibration import calibrate
from uniattn_pl.calibration.layers import residual_multiplier
from uniattn_pl.modeling.conversion.convert import converted_copy
from uniattn_pl.plan import LayerPlan
from uniattn_pl.search.importance import attention_importance
from uniattn_pl.search.unified_streams import UnifiedStreams

FAMILIES = ["llama", "gemma2", "olmo2", "granite"]
LAYER = 3
DROPPED = LayerPlan.unmodified(LAYERS).drop([LAYER], compensated=True)


def batch(seed: int) -> dict[str, torch.Tensor]:
    ids = tokens(8, 32, seed=seed)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}


def with_linear_attention(model: Any) -> Any:
    """The attention of one layer gives x M, which a W_c can repair exactly where the attention is dropped."""
    matrix = torch.randn(32, 32, generator=torch.Generator().manual_seed(0))
    model.model.layers[LAYER].self_attn.forward = lambda hidden_states, **_: (hidden_states @ matrix, None)
    return model


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_an_exactly_linear_target_leaves_nothing(family: str) -> None:
    original = stock(family)
    if family == "granite":
        assert original.config.residual_multiplier == 0.22
    converted = converted_copy(original, DROPPED)
    with_linear_attention(original)
    report = calibrate(original, converted, [batch(1)], [batch(2)], initialiser="least_squares", ridge=1e-9)
    assert report.rows[0].after < 0.01 * report.rows[0].before
    hidden = [model(input_ids=batch(2)["input_ids"]).logits for model in (original, converted)]
    assert (hidden[0] - hidden[1]).norm() < 0.01 * hidden[0].norm()


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_a_search_fits_it_too(family: str) -> None:
    original = with_linear_attention(stock(family))
    streams = UnifiedStreams(original, [batch(1)], [batch(2)], initialiser="least_squares", ridge=1e-9)
    whole = streams.score
    del original.model.layers[LAYER].self_attn.forward  # the copies that are converted have their own attention
    loss = streams.try_plan(DROPPED, LAYER)
    unfitted = streams.try_plan(LayerPlan.unmodified(LAYERS).drop([LAYER], compensated=False), LAYER)
    assert abs(loss - whole) < 0.01 * abs(unfitted - whole)


@torch.no_grad()
def test_importance_is_of_what_joins_the_stream() -> None:
    model, data = stock("granite"), batch(1)
    found = attention_importance(model, [data])
    layer = model.model.layers[0]
    assert residual_multiplier(layer) == 0.22
    seen: dict[str, torch.Tensor] = {}
    layer.register_forward_pre_hook(lambda _, args: seen.update(before=args[0]))
    layer.post_attention_layernorm.register_forward_pre_hook(lambda _, args: seen.update(after=args[0]))
    model(data["input_ids"])
    cosine = torch.cosine_similarity(seen["before"], seen["after"], dim=-1)
    assert found[0] == pytest.approx(float((1 - cosine).mean()), rel=1e-4)
