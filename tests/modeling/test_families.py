"""Every listed family can be calibrated, and names the kernel it lacks (decoding, caches and saving: other files)."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest
import torch
from tests.tiny_models import UNMODIFIED, stock, tokens
from transformers import AutoModelForCausalLM

from uniattn_pl.calibration import calibrate
from uniattn_pl.errors import UserError
from uniattn_pl.modeling import converted_copy
from uniattn_pl.modeling.families import FAMILIES
from uniattn_pl.modeling.loading import load_model

# Layer 1 is a global layer of both Gemmas, so that a local and a global one may read from it.
PLANS = {
    "uniattn": UNMODIFIED.reuse_map([2, 3], 1, compensated=True),
    "cla": UNMODIFIED.share_keys_values([2, 3], 1, compensated=True),
    "llmdrop": UNMODIFIED.drop([2, 4], compensated=True),
}


# The others where norms belong to the attention alone (Gemma-2, OLMo-2) and where projections are fused (Phi-3).
CASES = [(family, "uniattn") for family in FAMILIES] + list(product(["gemma2", "olmo2", "phi3"], ["cla", "llmdrop"]))


@pytest.mark.parametrize(("family", "name"), CASES)
@torch.no_grad()
def test_calibration_reduces_the_error_and_the_result_survives_saving(family: str, name: str, tmp_path: Path) -> None:
    original = stock(family)
    model = converted_copy(original, PLANS[name])
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
