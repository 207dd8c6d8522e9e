"""Calibration through layers unlike Llama's: recurrences, parallel blocks, tuples, multipliers, a latent, sinks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.tiny_models import shape, stock, tokens

from uniattn_pl.calibration.streaming import calibrate
from uniattn_pl.families.inspection import attentions_of
from uniattn_pl.modeling.conversion.convert import converted_copy
from uniattn_pl.plan import LayerPlan

FAMILIES = ("qwen3_next", "nemotron_h", "falcon_h1", "bamba", "granite", "cohere", "deepseek_v3", "gpt_oss")


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_what_is_linear_in_what_enters_an_attention_is_repaired_whole(family: str) -> None:
    """The original's attention gives x M; a dropped one with a W_c has to find M, whatever the layer does with it."""
    original = stock(family)
    layer = shape(family).attention_layers[3]
    matrix = 0.1 * torch.randn(32, 32, generator=torch.Generator().manual_seed(0))

    def linear(_: Any, args: Any, kwargs: dict[str, Any], output: Any) -> Any:
        entering = args[0] if args else kwargs["hidden_states"]
        return (entering @ matrix.T, *output[1:])

    plan = LayerPlan.stock(shape(family)).drop([layer], compensated=True)
    model = converted_copy(original, plan)
    attentions_of(original)[layer].register_forward_hook(linear, with_kwargs=True)
    batches = [{"input_ids": ids, "attention_mask": torch.ones_like(ids)} for ids in tokens(8, 24).split(4)]
    report = calibrate(original, model, batches, batches[:1], initialiser="least_squares", ridge=1e-7)
    (row,) = report.rows
    assert row.layer == layer
    assert row.after < 1e-3 * row.before
