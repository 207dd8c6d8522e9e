"""Every listed family: the plan's cache, exact reuse, calibration and saving, on a tiny model of random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache, PreTrainedModel

from uniattn_pl import costs
from uniattn_pl.calibration import calibrate
from uniattn_pl.errors import UserError
from uniattn_pl.modeling import apply_plan, converted_copy, kv_cache_bytes, shape_of
from uniattn_pl.modeling.families import FAMILIES
from uniattn_pl.modeling.loading import load_model
from uniattn_pl.modeling.registration import register_auto_classes
from uniattn_pl.plan import LayerPlan

SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
SPECIAL: dict[str, dict[str, Any]] = {
    "mistral": {"sliding_window": 6},
    "gemma2": {"sliding_window": 6, "query_pre_attn_scalar": 8, "attn_logit_softcapping": 5.0},
}
# Layer 1 is a global layer of Gemma-2 (its even layers are local), so that it may be a source.
PLANS = {
    "uniattn": LayerPlan.unmodified(6).reuse_map([2, 3], 1, compensated=True),
    "cla": LayerPlan.unmodified(6).share_keys_values([2, 3], 1, compensated=True),
    "llmdrop": LayerPlan.unmodified(6).drop([2, 4], compensated=False),
}


def stock(family: str) -> PreTrainedModel:
    config = AutoConfig.for_model(family, **SIZES, **SPECIAL.get(family, {}))
    torch.manual_seed(0)
    backend = "eager" if family == "gemma2" else "sdpa"
    return AutoModelForCausalLM.from_config(config, attn_implementation=backend).eval()


@pytest.mark.parametrize("mode", ["materialise", "replay"])
@pytest.mark.parametrize("name", list(PLANS))
@pytest.mark.parametrize("family", list(FAMILIES))
def test_cached_equals_uncached_and_the_cache_holds_what_the_plan_says(family: str, name: str, mode: str) -> None:
    model, plan = stock(family), PLANS[name]
    shape = shape_of(model.config)
    apply_plan(model, plan)
    model.config.reuse_mode = mode
    ids = torch.randint(3, 64, (2, 20), generator=torch.Generator().manual_seed(1))
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        whole = model(ids, use_cache=False).logits
        parts = [model(part, past_key_values=cache, use_cache=True).logits for part in ids.split([9, 1, 1, 1, 8], 1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=0, atol=5e-5)
    expected = costs.kv_cache_bytes(plan, shape, batch_size=2, length=20, bytes_per_element=4)
    assert kv_cache_bytes(cache) == expected
    assert sum(p.numel() for p in model.parameters()) == costs.parameters(plan, shape)


@pytest.mark.parametrize("family", list(FAMILIES))
def test_calibration_reduces_the_error_and_the_result_survives_saving(family: str, tmp_path: Path) -> None:
    original = stock(family)
    model = converted_copy(original, PLANS["uniattn"])
    generator = torch.Generator().manual_seed(2)
    batches = [{"input_ids": torch.randint(3, 64, (8, 30), generator=generator)} for _ in range(4)]
    for batch in batches:
        batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    # Random layers have nothing in common that unseen tokens would share: the error falls on the fitted ones.
    report = calibrate(original, model, batches[:3], batches[:3], initialiser="least_squares")
    assert all(row.after < row.before for row in report.rows)
    register_auto_classes()
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation=original.config._attn_implementation)
    ids = batches[3]["input_ids"]
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, model(ids).logits)


def test_a_kernel_that_a_family_lacks_is_named(tmp_path: Path) -> None:
    stock("gemma2").save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"no attention implementation 'sdpa'; set model\.attn_implementation=eager"):
        load_model(str(tmp_path))
