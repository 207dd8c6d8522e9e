"""A W_c with a bias: in the plan, in the model, in its costs, in the fit, and in folders."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.parity import recorded, stock_llama
from transformers import AutoModelForCausalLM

from uniattn_pl.calibration import calibrate
from uniattn_pl.calibration.solvers import LayerSample, LeastSquares
from uniattn_pl.families.model_shape import shape_of
from uniattn_pl.modeling.attention.compensation_layer import make_compensation, set_compensation
from uniattn_pl.modeling.conversion.convert import converted_copy
from uniattn_pl.plan import Compensation, LayerPlan, costs
from uniattn_pl.plan.drawing import draw
from uniattn_pl.tracking.tags import plan_digest

TOKENS, READ, ADDED = 400, 64, 64


def with_bias(plan: LayerPlan) -> LayerPlan:
    rows = {
        row.index: replace(row, compensation=replace(row.compensation, bias=True))
        for row in plan.rows
        if row.compensation
    }
    return plan.with_rows(rows)


PLAIN = LayerPlan.unmodified(8).reuse([5, 6], 4, compensated=True).drop([7], compensated=True)
BIASED = with_bias(PLAIN)


def sample(constant: float) -> LayerSample:
    """Errors that are linear in x but for a constant; x has a mean, too."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, TOKENS // 2, READ, generator=generator) + 2 * torch.randn(READ, generator=generator)
    weight = torch.randn(READ, ADDED, generator=generator)
    return LayerSample(x, x @ weight + constant, None, torch.ones(2, TOKENS // 2, dtype=torch.bool))


@pytest.mark.parametrize("rank", [None, 64, 5])
@torch.no_grad()
def test_a_constant_error_is_repaired_by_a_bias_at_any_rank(rank: int | None) -> None:
    seen = sample(constant=3.0)
    solver = LeastSquares(1e-6, joint=False, bias=True)
    solver.update(seen)
    fit = solver.solve()
    assert fit is not None
    attention = stock_llama().model.layers[0].self_attn
    w_c = make_compensation(attention, Compensation(rank=rank, bias=True))
    assert not w_c(seen.x).any(), "it starts at zero"
    set_compensation(w_c, fit.w_c, fit.gram, bias=fit.bias, mean=fit.mean)
    rest = (seen.error - w_c(seen.x)).flatten(0, 1)
    if rank is None or rank == ADDED:
        assert rest.norm() < 1e-3 * seen.error.norm()
    # The best of its rank on centred tokens; without moving the bias along, the mean of the rest would stay.
    assert rest.mean(dim=0).norm() < 1e-2
    centred = (seen.error - seen.error.mean(dim=(0, 1))).flatten(0, 1)
    singular = torch.linalg.svdvals(centred)
    least = singular[ADDED if rank is None else rank :].square().sum()
    assert float(rest.square().sum()) == pytest.approx(float(least), rel=1e-2, abs=1.0)


def test_without_a_bias_the_fit_is_what_it_was() -> None:
    seen = sample(constant=3.0)
    solver = LeastSquares(1e-2, joint=False)
    solver.update(seen)
    fit = solver.solve()
    assert fit is not None
    assert fit.bias is None
    x, error = seen.x.flatten(0, 1).double(), seen.error.flatten(0, 1).double()
    gram = x.T @ x
    expected = torch.linalg.solve(gram + 1e-2 * gram.diagonal().mean() * torch.eye(READ), x.T @ error).T
    torch.testing.assert_close(fit.w_c, expected, rtol=1e-3, atol=2e-4)


def test_the_ridge_leaves_the_bias_alone() -> None:
    """A constant error, and x that has nothing to do with it: only the bias can repair it, however strong the ridge."""
    x = torch.randn(1, TOKENS, READ, generator=torch.Generator().manual_seed(0))
    x = x - x.mean(dim=1, keepdim=True)
    solver = LeastSquares(100.0, joint=False, bias=True)
    solver.update(LayerSample(x, torch.full((1, TOKENS, ADDED), 3.0), None, torch.ones(1, TOKENS, dtype=torch.bool)))
    fit = solver.solve()
    assert fit is not None
    assert fit.bias is not None
    torch.testing.assert_close(fit.bias.float(), torch.full((ADDED,), 3.0), rtol=1e-4, atol=1e-4)


def test_jointly_with_w_o_all_three_are_found() -> None:
    generator = torch.Generator().manual_seed(0)
    x, heads = (torch.randn(1, TOKENS, size, generator=generator) for size in (8, 12))
    w_c, delta_o = (torch.randn(5, size, generator=generator) for size in (8, 12))
    error = x @ w_c.T + heads @ delta_o.T + 2.0
    solver = LeastSquares(1e-8, joint=True, bias=True)
    solver.update(LayerSample(x, error, heads, torch.ones(1, TOKENS, dtype=torch.bool)))
    fit = solver.solve()
    assert fit is not None
    assert fit.delta_o is not None
    assert fit.bias is not None
    for found, expected in ((fit.w_c, w_c), (fit.delta_o, delta_o), (fit.bias, torch.full((5,), 2.0))):
        torch.testing.assert_close(found.float(), expected, rtol=1e-3, atol=1e-3)


def test_runs_of_plans_with_and_without_it_are_told_apart() -> None:
    assert plan_digest(BIASED) != plan_digest(PLAIN)


@pytest.mark.parametrize("initialiser", ["zero", "theorem37", "least_squares", "joint_least_squares"])
def test_calibration_fits_it_costs_count_it_and_folders_keep_it(initialiser: str, tmp_path: Path) -> None:
    ids = recorded("init")["ids"][:12, :40]
    data = [{"input_ids": part, "attention_mask": torch.ones_like(part)} for part in ids.split(6)]
    original = stock_llama()
    model = converted_copy(original, BIASED)
    report = calibrate(original, model, data[:1], data[1:], initialiser=initialiser)
    assert len(report.rows) == 3
    fitted = initialiser.endswith("least_squares")
    assert all(bool(model.model.layers[i].self_attn.w_c.bias.any()) == fitted for i in (5, 6, 7))
    shape = shape_of(model.config)
    assert sum(p.numel() for p in model.parameters()) == costs.parameters(BIASED, shape)
    assert costs.parameters(BIASED, shape) - costs.parameters(PLAIN, shape) == 3 * shape.hidden_size
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert loaded.layer_plan == BIASED
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids[:2]).logits, model(ids[:2]).logits, rtol=0, atol=0)


def test_it_is_drawn() -> None:
    assert "+ x W_c + b" in draw(BIASED)
    assert "+ b" not in draw(PLAIN)
