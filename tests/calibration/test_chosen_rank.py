"""`calibration.rank: auto`: the least rank that keeps a share of the repaired error, in plans, models and folders."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.calibration.test_bias import with_bias
from tests.calibration.test_calibrate import PLANS, batches
from tests.calibration.test_resume import stop_after
from tests.parity import recorded, stock_llama
from transformers import AutoModelForCausalLM, PreTrainedModel

from uniattn_pl.calibration import CalibrationReport, calibrate
from uniattn_pl.calibration.rank_choice import RepairedByRank
from uniattn_pl.calibration.solvers import Fit, LayerSample, LeastSquares
from uniattn_pl.errors import UserError
from uniattn_pl.families.model_shape import shape_of
from uniattn_pl.modeling.attention.compensation_layer import LowRankLinear, make_compensation, set_compensation
from uniattn_pl.modeling.conversion.convert import converted_copy
from uniattn_pl.plan import AUTO_RANK, Compensation, LayerPlan, PlanError, costs
from uniattn_pl.plan.drawing import draw

OPEN = {name: plan.limit_rank(AUTO_RANK) for name, plan in PLANS.items()}


def run(plan: LayerPlan, **options: object) -> tuple[PreTrainedModel, CalibrationReport]:
    data, original = batches(padded=True), stock_llama()
    model = converted_copy(original, plan)
    return model, calibrate(original, model, data[:3], data[3:], **options)  # type: ignore[arg-type]


def ranks_of(plan: LayerPlan) -> dict[int, int | str | None]:
    return {row.index: row.compensation.rank for row in plan.rows if row.compensation is not None}


@st.composite
def samples(draw: st.DrawFn) -> LayerSample:
    """Tokens whose errors follow from x by a map of decaying strength, from what enters W_o, and by chance."""
    read, added, tokens = draw(st.integers(2, 12)), draw(st.integers(2, 12)), draw(st.integers(8, 60))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    x = torch.randn(1, tokens, read, generator=generator) @ torch.randn(read, read, generator=generator)
    heads = torch.randn(1, tokens, 3, generator=generator)
    weights = torch.randn(read, added, generator=generator) * 0.6 ** torch.arange(added)
    error = x @ weights + heads @ torch.randn(3, added, generator=generator)
    error = error + draw(st.sampled_from([0.0, 0.3, 3.0])) * torch.randn(1, tokens, added, generator=generator)
    return LayerSample(x, error + 2.0 * draw(st.booleans()), heads, torch.ones(1, tokens, dtype=torch.bool))


@settings(max_examples=60, deadline=None)
@given(
    seen=samples(),
    ridge=st.sampled_from([0.0, 1e-3, 1e-2, 0.3]),
    joint=st.booleans(),
    bias=st.booleans(),
    share=st.floats(0.05, 1.0),
)
def test_what_is_said_to_be_kept_is_what_a_module_of_that_rank_repairs(
    seen: LayerSample, ridge: float, joint: bool, bias: bool, share: float
) -> None:
    solver = LeastSquares(ridge, joint=joint, bias=bias)
    solver.update(seen)
    fit = solver.solve()
    assert fit is not None
    repaired = RepairedByRank(fit)
    added, read = fit.w_c.shape
    every = [repaired.kept(rank) for rank in range(1, added + 1)]
    assert every == sorted(every)
    assert every[-1] == pytest.approx(1.0)
    whole = squared_error_repaired(fit, None, seen)
    if whole < 1e-3 * float(seen.error.square().sum()):
        return  # nothing that W_c could be judged by
    for rank, kept in enumerate(every, start=1):
        assert squared_error_repaired(fit, rank, seen) / whole == pytest.approx(kept, abs=5e-3)
    chosen = repaired.least_rank(share)
    enough = next(rank for rank, kept in enumerate(every, start=1) if kept >= share - 1e-9)
    assert chosen == (enough if enough * (read + added) < read * added else None)


@torch.no_grad()
def squared_error_repaired(fit: Fit, rank: int | None, seen: LayerSample) -> float:
    """Beyond what the bias alone and dW_o repair, by running the module."""
    added, read = fit.w_c.shape
    w_c: torch.nn.Module = torch.nn.Linear(read, added, bias=fit.bias is not None).double()
    if rank is not None:
        w_c = LowRankLinear(read, added, rank, bias=fit.bias is not None).double()
    set_compensation(w_c, fit.w_c, fit.gram, bias=fit.bias, mean=fit.mean)
    error = seen.error.double()
    if fit.delta_o is not None and seen.heads is not None:
        error = error - seen.heads.double() @ fit.delta_o.double().T
    if fit.bias is not None and fit.mean is not None:  # the constant that is best without W_c
        before = error - (fit.bias + fit.w_c.double() @ fit.mean.double())
    else:
        before = error
    return float(before.square().sum() - (error - w_c(seen.x.double())).square().sum())


@pytest.mark.parametrize("initialiser", ["least_squares", "joint_least_squares"])
@pytest.mark.parametrize("name", OPEN)
def test_each_layer_gets_the_least_rank_that_keeps_enough(name: str, initialiser: str) -> None:
    model, report = run(OPEN[name], initialiser=initialiser, rank_keeps=0.8)
    shape = shape_of(model.config)
    assert model.layer_plan.open_ranks == ()
    assert LayerPlan.from_dict(model.config.layer_plan) == model.layer_plan
    assert ranks_of(model.layer_plan) == {row.layer: row.rank for row in report.rows}
    assert any(row.rank is not None for row in report.rows), "some layer needs less than half the width"
    assert sum(p.numel() for p in model.parameters()) == costs.parameters(model.layer_plan, shape)
    assert costs.parameters(model.layer_plan, shape) < costs.parameters(OPEN[name], shape)
    for row in report.rows:
        assert row.kept is not None
        assert row.kept >= 0.8
        assert row.rank is None or row.rank < shape.hidden_size // 2
        assert model.model.layers[row.layer].self_attn.layer_row == model.layer_plan.rows[row.layer]
    # the same ranks, given: the same weights
    given_ranks, same = run(model.layer_plan, initialiser=initialiser)
    assert same.rows == report.rows
    for parameter, value in given_ranks.state_dict().items():
        assert torch.equal(value, model.state_dict()[parameter]), parameter
    if report.rows[0].rank not in (None, 1):
        smaller = model.layer_plan.choose_rank(report.rows[0].layer, report.rows[0].rank - 1)  # type: ignore[operator]
        kept = run(smaller, initialiser=initialiser)[1].rows[0].kept
        assert kept is not None
        assert kept < 0.8


def test_more_to_keep_takes_more_rank_and_all_of_it_a_full_matrix() -> None:
    ranks = {share: ranks_of(run(OPEN["reuse"], rank_keeps=share)[0].layer_plan) for share in (0.5, 0.8, 1.0)}
    full, _ = run(PLANS["reuse"])
    assert ranks[1.0] == dict.fromkeys(full.layer_plan.compensated)
    whole, _ = run(OPEN["reuse"], rank_keeps=1.0)
    assert whole.layer_plan == full.layer_plan
    for parameter, value in whole.state_dict().items():
        assert torch.equal(value, full.state_dict()[parameter]), parameter
    assert sum(rank or 64 for rank in ranks[0.5].values()) < sum(rank or 64 for rank in ranks[0.8].values())  # type: ignore[misc]


def test_a_bias_and_the_other_places_of_a_w_c_get_their_ranks() -> None:
    placed = PLANS["reuse"].place_compensation(input="value", output="attention_output")
    for plan in (with_bias(OPEN["reuse"]), placed.limit_rank(AUTO_RANK)):
        model, report = run(plan, rank_keeps=0.7)
        assert all(row.after < row.before for row in report.rows)
        chosen = [row.compensation for row in model.layer_plan.rows if row.compensation is not None]
        assert any(isinstance(compensation.rank, int) for compensation in chosen)
        before = [row.compensation for row in plan.rows if row.compensation is not None]
        assert [replace(c, rank=AUTO_RANK) for c in chosen] == before


def test_a_stopped_pass_ends_with_the_same_ranks_and_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"rank_keeps": 0.8, "head_alignment": "output_error", "ridge": "auto"}
    expected, whole = run(OPEN["mixed"], **options)
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        with pytest.raises(KeyboardInterrupt):
            run(OPEN["mixed"], record=tmp_path, **options)
    model, report = run(OPEN["mixed"], record=tmp_path, **options)
    assert report == whole
    assert model.layer_plan == expected.layer_plan
    for key, value in model.state_dict().items():
        assert torch.equal(value, expected.state_dict()[key]), key
    with pytest.raises(UserError, match="belongs to a calibration with another rank_keeps; delete it"):
        run(OPEN["mixed"], record=tmp_path, **{**options, "rank_keeps": 0.9})
    with pytest.raises(UserError, match="belongs to a calibration with another plan; delete it"):
        run(PLANS["mixed"], record=tmp_path, **options)


def test_a_saved_model_loads_with_its_ranks(tmp_path: Path) -> None:
    model, _ = run(OPEN["mixed"], rank_keeps=0.8)
    model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())["layer_plan"]
    assert LayerPlan.from_dict(saved) == model.layer_plan
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    ids = recorded("inputs")["ids"]
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, model(ids).logits)


def test_the_report_shows_ranks_where_there_are_some() -> None:
    _, report = run(OPEN["reuse"], rank_keeps=0.8)
    head, *rows, overall, note = report.lines()
    assert head.split()[:6] == ["layer", "before", "after", "left", "rank", "keeps"]
    top = report.rows[-1]
    assert rows[0].split()[0] == str(top.layer)
    assert rows[0].split()[4:] == ["full" if top.rank is None else str(top.rank), f"{top.kept:.1%}"]
    assert overall.split()[0] == "overall"
    assert note.startswith("keeps: ")
    _, plain = run(PLANS["reuse"])
    assert "rank" not in "\n".join(plain.lines())
    _, fixed = run(PLANS["reuse"].limit_rank(4))
    assert {row.rank for row in fixed.rows} == {4}
    assert all(row.kept is not None and 0 < row.kept < 1 for row in fixed.rows)


def test_an_open_rank_is_a_full_matrix_that_is_drawn_and_saved_as_open() -> None:
    plan, shape = OPEN["reuse"], shape_of(stock_llama().config)
    assert "x W_c rank auto" in draw(plan)
    assert LayerPlan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan
    assert costs.parameters(plan, shape) == costs.parameters(PLANS["reuse"], shape)
    plan.check(shape)
    attention = stock_llama().model.layers[0].self_attn
    assert isinstance(make_compensation(attention, Compensation(rank=AUTO_RANK)), torch.nn.Linear)
    with pytest.raises(PlanError, match="a W_c has the rank 'most'; it is a whole number, or auto"):
        Compensation(rank="most")


@pytest.mark.parametrize("initialiser", ["zero", "theorem37"])
def test_an_initialiser_that_keeps_no_count_of_the_error_cannot_choose(initialiser: str) -> None:
    with pytest.raises(UserError, match=f"the initialiser {initialiser} does not know what error W_c repairs"):
        run(OPEN["reuse"], initialiser=initialiser)
