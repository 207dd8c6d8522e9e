"""W_c of blocks that are left out, against regressions on what whole forwards of both models show."""

from __future__ import annotations

import pytest
import torch
from tests.tiny_models import LAYERS, UNMODIFIED, stock, tokens
from transformers import PreTrainedModel

from uniattn_pl.calibration import calibrate
from uniattn_pl.modeling.conversion.convert import converted_copy
from uniattn_pl.plan import LayerPlan

RIDGE = 1e-3
PLANS = {
    "a W_c per block": UNMODIFIED.skip([2, 3], compensated=True),
    "one for a run": UNMODIFIED.replace_run(2, 3),
    "a run up to the top": UNMODIFIED.replace_run(4, 5),
    "two runs": UNMODIFIED.replace_run(1, 2).replace_run(3, 4),
}


def streams(model: PreTrainedModel, ids: torch.Tensor, mask: torch.Tensor) -> list[torch.Tensor]:
    """What enters each block, and what leaves the last [T, d]; without padding."""
    seen: list[torch.Tensor] = []

    def enter(_: object, args: tuple[torch.Tensor, ...]) -> None:
        seen.append(args[0][mask.bool()].double())

    handles = [layer.register_forward_pre_hook(enter) for layer in model.model.layers]
    handles.append(model.model.norm.register_forward_pre_hook(enter))
    model(ids, attention_mask=mask, use_cache=False)
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("family", ["llama", "olmo2", "granite"])
@pytest.mark.parametrize("name", PLANS)
@torch.no_grad()
def test_it_is_the_ridge_regression_of_the_stream_behind_all_that_it_stands_for(name: str, family: str) -> None:
    plan, original = PLANS[name], stock(family)
    ids = tokens(12, 16)
    mask = (torch.arange(16) < torch.linspace(9, 16, 12).long()[:, None]).long()
    batches = [{"input_ids": i, "attention_mask": m} for i, m in zip(ids.split(4), mask.split(4), strict=True)]
    model = converted_copy(original, plan)
    report = calibrate(original, model, batches[:2], batches[2:], initialiser="least_squares", ridge=RIDGE)
    fitted, held_out = (ids[:8], mask[:8]), (ids[8:], mask[8:])
    assert [row.layer for row in report.rows] == list(plan.compensated)
    for row in report.rows:
        behind = plan.replaced_until(row.layer) + 1
        x, target = streams(model, *fitted)[row.layer], streams(original, *fitted)[behind]
        gram = x.T @ x
        ridge = RIDGE * gram.diagonal().mean() * torch.eye(len(gram))
        expected = torch.linalg.solve(gram + ridge, x.T @ (target - x)).T.float()
        found = model.model.layers[row.layer].self_attn.w_c.weight
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
        rest = streams(original, *held_out)[behind] - streams(model, *held_out)[row.layer + 1]
        assert row.after == pytest.approx(float(rest.norm(dim=-1).mean()), rel=1e-3)


def test_every_plan_leaves_a_layer() -> None:
    assert all(len(plan.operated) < LAYERS for plan in PLANS.values())


@torch.no_grad()
def test_where_blocks_are_linear_one_map_replaces_them_exactly() -> None:
    """Attentions that add nothing and a feed-forward of zero, so that two blocks change nothing but by their W_c."""
    original = stock("llama")
    for index in (2, 3):
        original.model.layers[index].self_attn.o_proj.weight.zero_()
        original.model.layers[index].mlp.down_proj.weight.zero_()
    model = converted_copy(original, LayerPlan.unmodified(LAYERS).replace_run(2, 3))
    batch = {"input_ids": tokens(4, 16), "attention_mask": torch.ones(4, 16, dtype=torch.long)}
    calibrate(original, model, [batch], [batch], initialiser="least_squares")
    torch.testing.assert_close(model(**batch).logits, original(**batch).logits, rtol=0, atol=1e-4)
