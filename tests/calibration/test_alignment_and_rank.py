"""Head alignment, low-rank compensations and the ridge chosen on held-out data."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.calibration.test_calibrate import PLANS, batches, run
from tests.modeling.test_convert import uncached_greedy
from tests.parity import recorded, stock_llama
from transformers import AutoModelForCausalLM, PreTrainedModel

from uniattn_pl.calibration import calibrate
from uniattn_pl.calibration.solvers import RIDGES, LayerSample, LeastSquares
from uniattn_pl.families.model_shape import shape_of
from uniattn_pl.modeling.attention.compensation_layer import LowRankLinear, set_compensation
from uniattn_pl.modeling.conversion.convert import apply_plan, converted_copy
from uniattn_pl.plan import LayerPlan, PlanError, costs

HEADS = 4
ALIGNED = LayerPlan.unmodified(8).reuse([5, 6, 7], 4, compensated=True).align_heads({5: (3, 0, 0, 2), 7: (1, 0, 3, 2)})


def permuted(model: PreTrainedModel, layer: int, order: list[int]) -> PreTrainedModel:
    """The same function with the query heads of a layer in another order (its groups have one head each)."""
    attention = model.model.layers[layer].self_attn
    rows = torch.arange(HEADS * 16).view(HEADS, 16)[order].flatten()
    for name in ("q_proj", "k_proj", "v_proj"):
        getattr(attention, name).weight.data = getattr(attention, name).weight.data[rows]
    attention.o_proj.weight.data = attention.o_proj.weight.data[:, rows]
    return model


def multi_head() -> PreTrainedModel:
    """Two equal layers on top of each other, one key head per query head."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        initializer_range=0.15,
    )
    model = LlamaForCausalLM(config).eval()
    model.model.layers[2].load_state_dict(model.model.layers[1].state_dict())
    # The feed-forward and the output of layer 1 nearly vanish, so that layer 2 attends as layer 1 does.
    model.model.layers[1].mlp.down_proj.weight.data.zero_()
    model.model.layers[1].self_attn.o_proj.weight.data.mul_(0.01)
    return model


@pytest.mark.parametrize("criterion", ["similarity", "output_error"])
def test_permuted_heads_are_found_again(criterion: str) -> None:
    order = [2, 0, 3, 1]
    original = permuted(multi_head(), 2, order)
    plan = LayerPlan.unmodified(3).reuse([2], 1, compensated=True)
    errors = {}
    for alignment in ("none", criterion):
        model = converted_copy(original, plan)
        report = calibrate(original, model, batches()[:3], batches()[3:], initialiser="zero", head_alignment=alignment)
        errors[alignment] = report.error_after
    assert model.layer_plan.rows[2].heads_from == tuple(order)
    assert LayerPlan.from_dict(model.config.layer_plan) == model.layer_plan
    assert errors[criterion] < 0.1 * errors["none"]


def test_alignment_never_loses_against_none_on_what_it_fits() -> None:
    data = batches(padded=True)
    errors = {}
    for alignment in ("none", "output_error"):
        original = stock_llama()
        model = converted_copy(original, PLANS["reuse"])
        errors[alignment] = calibrate(original, model, data, data, initialiser="zero", head_alignment=alignment)
    # By layer, the first one is judged on the same stream; those above follow from it.
    assert errors["output_error"].rows[0].after < errors["none"].rows[0].after


def aligned_model(mode: str) -> PreTrainedModel:
    model = apply_plan(stock_llama(), ALIGNED)
    model.config.reuse_mode = mode
    for name, parameter in model.named_parameters():
        if "w_c" in name:
            parameter.data.normal_(0, 0.05, generator=torch.Generator().manual_seed(0))
    return model


def test_aligned_heads_are_exact_in_both_modes_cached_and_saved(tmp_path: Path) -> None:
    ids = recorded("inputs")["ids"]
    replayed, kept = aligned_model("replay"), aligned_model("materialise")
    with torch.no_grad():
        expected = replayed(ids).logits
        torch.testing.assert_close(kept(ids).logits, expected, rtol=0, atol=2e-5)
        plain = apply_plan(stock_llama(), PLANS["reuse"])
        plain.load_state_dict(replayed.state_dict())
        assert not torch.allclose(plain(ids).logits, expected, atol=1e-2)
    replayed.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert loaded.layer_plan == ALIGNED
    for model in (replayed, kept, loaded):
        model.generation_config.eos_token_id = None
        tokens = model.generate(ids[:1, :8], max_new_tokens=8, do_sample=False, pad_token_id=0)
        assert torch.equal(tokens, uncached_greedy(replayed, ids[:1, :8], 8))


def test_the_gradient_flows_through_aligned_heads() -> None:
    ids = recorded("inputs")["ids"]
    gradients = []
    for mode in ("replay", "materialise"):
        model = aligned_model(mode).train()
        model(ids, labels=ids).loss.backward()
        gradients.append(model.model.layers[4].self_attn.q_proj.weight.grad)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=1e-5)
    assert gradients[0].abs().sum() > 0


def test_heads_that_do_not_fit_are_refused() -> None:
    shape = shape_of(stock_llama().config)
    plan = PLANS["reuse"]
    with pytest.raises(PlanError, match=r"the model has 4 heads, 0 to 3"):
        plan.align_heads({5: (0, 1)}).check(shape)
    with pytest.raises(PlanError, match=r"layer 1 reuses no map whose heads could be aligned"):
        plan.align_heads({1: (0, 1, 2, 3)})
    with pytest.raises(PlanError, match=r"rank 100; it must be from 1 to 64"):
        plan.limit_rank(100).check(shape)


def test_low_rank_is_the_best_of_its_rank_on_the_tokens_seen() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(500, 12, generator=generator) @ torch.randn(12, 12, generator=generator)
    solution = torch.randn(9, 12, generator=generator)
    w_c = LowRankLinear(12, 9, 3)
    set_compensation(w_c, solution, x.T @ x)
    left = (x @ solution.T - w_c(x)).square().sum().item()
    singular = torch.linalg.svdvals(x @ solution.T)
    assert left == pytest.approx(singular[3:].square().sum().item(), rel=1e-3)


def test_full_rank_loses_nothing_and_less_rank_loses_more() -> None:
    data = batches(padded=True)
    errors = {}
    for rank in (None, 64, 16, 2):
        original = stock_llama()
        model = converted_copy(original, PLANS["reuse"].limit_rank(rank))
        report = calibrate(original, model, data[:3], data[:3], initialiser="least_squares")
        errors[rank] = report.rows[0].after
        counted = sum(p.numel() for p in model.parameters())
        assert counted == costs.parameters(model.layer_plan, shape_of(model.config))
    assert errors[64] == pytest.approx(errors[None], rel=1e-4)
    assert errors[None] < errors[16] < errors[2]


def test_low_rank_saves_and_trains(tmp_path: Path) -> None:
    model = apply_plan(stock_llama(), replace(PLANS["mixed"]).limit_rank(4))
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    ids = recorded("inputs")["ids"]
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, model(ids).logits)
    model(ids, labels=ids).loss.backward()
    up = [p.grad for n, p in model.named_parameters() if n.endswith("w_c.up.weight")]
    assert len(up) == len(model.layer_plan.compensated)
    assert all(gradient.abs().sum() > 0 for gradient in up)


def sample(tokens: int, noise: float, seed: int) -> LayerSample:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(1, tokens, 20, generator=generator)
    weights = torch.randn(20, 5, generator=torch.Generator().manual_seed(9))
    error = x @ weights + noise * torch.randn(1, tokens, 5, generator=generator)
    return LayerSample(x, error, None, torch.ones(1, tokens, dtype=torch.bool))


@pytest.mark.parametrize(("tokens", "noise"), [(22, 20.0), (400, 0.1)])
def test_auto_takes_the_ridge_with_the_least_error_on_what_it_observes_and_then_fits_everything(
    tokens: int, noise: float
) -> None:
    fitted, observed = sample(tokens, noise, 0), sample(1000, noise, 1)
    left = {ridge: error_left(solved(ridge, [fitted], []), observed) for ridge in RIDGES}
    assert len(set(left.values())) == len(RIDGES)
    best = min(RIDGES, key=lambda ridge: left[ridge])
    expected = solved(best, [fitted, observed], [])
    assert torch.equal(solved("auto", [fitted], [observed]), expected)
    assert torch.equal(solved(best, [fitted], [observed]), expected), "a fixed ridge has nothing to choose"


def solved(ridge: float | str, fitted: list[LayerSample], observed: list[LayerSample]) -> torch.Tensor:
    solver = LeastSquares(ridge, joint=False)
    for batch in fitted:
        solver.update(batch)
    for batch in observed:
        solver.observe(batch)
    fit = solver.solve()
    assert fit is not None
    return fit.w_c


def error_left(w_c: torch.Tensor, seen: LayerSample) -> float:
    return float((seen.error - seen.x @ w_c.float().T).square().sum())


def test_alignment_and_auto_ridge_work_on_every_plan() -> None:
    for name in PLANS:
        model, report = run(PLANS[name], "joint_least_squares", batches(padded=True), head_alignment="similarity")
        assert report.error_after < report.error_before
        aligned = [row.index for row in model.layer_plan.rows if row.heads_from is not None]
        assert aligned == [row.index for row in PLANS[name].rows if row.role == "reuse"]
