"""Every listed family can be calibrated, and names the kernel it lacks (decoding, caches and saving: other files)."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest
import torch
from tests.tiny_models import shape, stock, tokens
from transformers import AutoConfig, AutoModelForCausalLM

from uniattn_pl.architectures import UniAttn
from uniattn_pl.calibration import calibrate
from uniattn_pl.errors import UserError
from uniattn_pl.families.inspection import FAMILIES
from uniattn_pl.families.model_shape import shape_of
from uniattn_pl.modeling.conversion.convert import converted_copy
from uniattn_pl.modeling.loading.pretrained import load_model
from uniattn_pl.plan import LayerPlan, costs


def plan_of(family: str, name: str) -> LayerPlan:
    """Layers of those that attend; layer 1 is a global one of both Gemmas, so that a local one may read from it."""
    plan, of = LayerPlan.stock(shape(family)), shape(family).attention_layers
    if name == "llmdrop":
        return plan.drop([of[2], of[4]], compensated=True)
    return plan.assign([of[2], of[3]], {"uniattn": "reuse", "cla": "share_kv"}[name], of[1], compensated=True)


# The others where norms belong to the attention alone (Gemma-2, OLMo-2) and where projections are fused (Phi-3).
CASES = [(family, "uniattn") for family in FAMILIES] + list(product(["gemma2", "olmo2", "phi3"], ["cla", "llmdrop"]))


@pytest.mark.parametrize(("family", "name"), CASES)
@torch.no_grad()
def test_calibration_reduces_the_error_and_the_result_survives_saving(family: str, name: str, tmp_path: Path) -> None:
    original = stock(family)
    model = converted_copy(original, plan_of(family, name))
    ids = tokens(12, 16)
    batches = [{"input_ids": part, "attention_mask": torch.ones_like(part)} for part in ids.split(6)]
    # Random layers have nothing in common that unseen tokens would share: the error falls on the fitted ones.
    report = calibrate(original, model, batches, batches, initialiser="least_squares")
    assert all(row.after < row.before for row in report.rows), "\n".join(report.lines())
    assert torch.equal(original(ids).logits, stock(family)(ids).logits)
    model.save_pretrained(tmp_path)
    assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path)(ids).logits, model(ids).logits)


def test_a_kernel_that_a_family_lacks_is_named(tmp_path: Path) -> None:
    stock("gemma2").save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"no attention implementation 'sdpa'; set model\.attn_implementation=eager"):
        load_model(str(tmp_path))


def test_the_papers_models_keep_what_their_plans_say() -> None:
    """Llama-3.1 8B: 81.25 %; Gemma-2 9B: more than counting keys suggests, as local readers keep every value."""
    llama = shape_of(AutoConfig.for_model("llama", num_hidden_layers=32, num_key_value_heads=8))
    plan = UniAttn(superblock_size=4, num_superblocks=4).compile(llama)
    assert costs.kv_retain_rate(plan, llama, length=8192) == 0.8125
    sizes = {"num_hidden_layers": 42, "num_key_value_heads": 8, "head_dim": 256, "sliding_window": 4096}
    gemma = shape_of(AutoConfig.for_model("gemma2", **sizes))
    plan = UniAttn(first_layer=21, superblock_size=4, num_superblocks=5).compile(gemma)
    # 15 of 84 caches are gone; of the 15 reuse layers 10 are local ones of a global source, unlimited now.
    rates = {length: costs.kv_retain_rate(plan, gemma, length=length) for length in (1024, 8192, 32768)}
    assert rates == pytest.approx({1024: 0.8214, 8192: 0.9207, 32768: 1.0529}, abs=1e-4)
