"""What W_c costs beside what the removed projections saved: in numbers of real models, and as `plan` shows it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.calibration.test_calibrate import PLANS
from tests.parity import stock_llama

from uniattn_pl.cli import main
from uniattn_pl.families.model_shape import shape_of
from uniattn_pl.modeling.conversion.convert import converted_copy
from uniattn_pl.plan import AUTO_RANK, LayerPlan, costs
from uniattn_pl.plan.compensation_cost import CompensationCost

TINY = ["plan", "model.source=tiny-llama", "architecture.superblock_size=4", "architecture.num_superblocks=1"]
TITLE = "W_c beside what the removed projections saved"


@pytest.mark.parametrize("rank", [None, AUTO_RANK, 5])
@pytest.mark.parametrize("name", PLANS)
def test_parameters_are_those_of_the_models(name: str, rank: int | str | None) -> None:
    plan, stock = PLANS[name].limit_rank(rank), stock_llama()
    model, cost = converted_copy(stock, plan), CompensationCost.of(plan, shape_of(stock.config))
    counts = {name: parameter.numel() for name, parameter in model.named_parameters()}
    of_w_c = sum(count for name, count in counts.items() if ".w_c." in name)
    assert cost.parameters == of_w_c > 0
    unmodified = sum(parameter.numel() for parameter in stock.parameters())
    assert cost.saved_parameters == unmodified - (sum(counts.values()) - of_w_c)


def test_flops_per_token_are_the_difference_where_attention_stays_what_it_was() -> None:
    shape = shape_of(stock_llama().config)
    plan, unmodified = PLANS["share_kv"].limit_rank(5), LayerPlan.unmodified(shape.num_layers)
    cost = CompensationCost.of(plan, shape)
    before, after = (costs.prefill_flops(p, shape, batch_size=1, length=100) for p in (unmodified, plan))
    assert before - after == 100 * (cost.saved_flops - cost.flops)
    assert cost.flops == 2 * cost.parameters


def test_a_plan_without_w_c_costs_nothing_for_it() -> None:
    plan, shape = PLANS["reuse"], shape_of(stock_llama().config)
    bare = plan.with_rows({row.index: replace(row, compensation=None) for row in plan.rows})
    cost, compensated = CompensationCost.of(bare, shape), CompensationCost.of(plan, shape)
    assert (cost.parameters, cost.flops) == (0, 0)
    assert (cost.saved_parameters, cost.saved_flops) == (compensated.saved_parameters, compensated.saved_flops)


def test_plan_shows_both_and_what_a_rank_makes_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    shown = {}
    for words in ([], ["calibration.rank=8"], ["calibration.rank=auto"], ["calibration.bias=true"]):
        assert main([*TINY, *words]) == 0
        printed = capsys.readouterr().out
        shown[" ".join(words)] = printed.split(TITLE)[1].splitlines()[2].split()
        told = "uniattn: rank of W_c not chosen yet (calibration.rank=auto): counted in full" in printed
        assert told == (words == ["calibration.rank=auto"])
    # three layers give up W_q [32, 32] and W_k [16, 32] for a W_c [32, 32], or for one of 8 x (32 + 32)
    full, thin = (" ".join(shown[words]) for words in ("", "calibration.rank=8"))
    assert full == "uniattn 3.07 k 4.61 k 66.7% 6.14 k 9.22 k 66.7%"
    assert thin == "uniattn 1.54 k 4.61 k 33.3% 3.07 k 9.22 k 33.3%"
    assert shown["calibration.rank=auto"] == shown[""]
    assert shown["calibration.bias=true"][1] == "3.17", "k: three vectors of 32 more"
    assert "+ x W_c + b" in printed
    assert main([*TINY, "architecture.compensation=false"]) == 0
    assert TITLE not in capsys.readouterr().out
