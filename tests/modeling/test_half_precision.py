"""Under autocast, in bfloat16 and float16, a converted model computes what it computes in float32, within rounding."""

from __future__ import annotations

import pytest
import torch
from tests.modeling.test_convert import PLANS, converted
from tests.parity import recorded

# Units in the last place of the largest logit, summed over eight layers; measured 4 to 8.
ULPS = 16
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


@pytest.mark.parametrize("mode", ["materialise", "replay", "auto"])
@pytest.mark.parametrize("dtype", list(DTYPES))
@pytest.mark.parametrize("name", ["uniattn", "cla_compensated", "llmdrop_compensated", "mixed"])
def test_autocast_rounds_and_changes_nothing_else(name: str, dtype: str, mode: str, device: str) -> None:
    model = converted(name, device=device)
    model.config.reuse_mode = mode
    ids = recorded("inputs", device)["ids"]
    exact = model(ids, labels=ids)
    exact.loss.backward()
    gradients = {parameter: p.grad for parameter, p in model.named_parameters()}
    model.zero_grad()
    with torch.autocast(device, DTYPES[dtype]):
        rounded = model(ids, labels=ids)
    rounded.loss.backward()
    allowed = ULPS * torch.finfo(DTYPES[dtype]).eps
    difference = (rounded.logits.float() - exact.logits).abs().max()
    assert 0 < difference <= allowed * exact.logits.abs().max(), "it was computed in half precision"
    for parameter, p in model.named_parameters():
        assert p.grad is not None
        assert (p.grad - gradients[parameter]).norm() <= allowed * gradients[parameter].norm(), parameter


def test_the_plans_differ_by_more_than_rounding() -> None:
    """Guards the test above: what a wrong map or W_c would change is far outside what it allows."""
    ids = recorded("inputs")["ids"]
    with torch.no_grad():
        logits = {name: converted(name)(ids).logits for name in ("uniattn", "chain", "llmdrop")}
    assert set(logits) <= set(PLANS)
    largest = logits["uniattn"].abs().max()
    for other in ("chain", "llmdrop"):
        assert (logits["uniattn"] - logits[other]).abs().max() > 2 * ULPS * torch.finfo(torch.bfloat16).eps * largest
