"""The mixed integer program against trying every combination of changes."""

from __future__ import annotations

from itertools import islice, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.shapes import toy_shape

from uniattn_pl.plan import LayerPlan, ModelShape
from uniattn_pl.plan.changes import Change, possible_changes, searched_roles
from uniattn_pl.plan.cost_ratio import Cost
from uniattn_pl.search.additive_program import AdditiveProgram, changed_plan

LAYERS = 4
KINDS = tuple(searched_roles())


def every_plan(shape: ModelShape, scores: dict[Change, float]) -> dict[LayerPlan, float]:
    """Every plan that the scored changes can make, with their sum."""
    of_layer = [[None, *(c for c in scores if c.layer == layer)] for layer in range(shape.num_layers)]
    plans = {}
    for chosen in product(*of_layer):
        changes = [change for change in chosen if change is not None]
        plan = changed_plan(changes, shape, compensated=True)
        if plan is not None:
            plans[plan] = sum(scores[change] for change in changes)
    return plans


@st.composite
def programs(draw: st.DrawFn) -> tuple[ModelShape, dict[Change, float]]:
    """A small model, windows in it or not, and a score for every change of one of its layers."""
    windows = draw(st.sampled_from([None, [8, None] * (LAYERS // 2), [None, 8] * (LAYERS // 2)]))
    shape = toy_shape(LAYERS, windows=windows) if windows else toy_shape(LAYERS)
    kinds = draw(st.sampled_from([KINDS, ("reuse", "share_kv", "heads:1"), ("share_kv", "heads:1", "window:6+1")]))
    changes = possible_changes(LayerPlan.unmodified(LAYERS), shape, kinds, compensated=True)
    values = draw(st.lists(st.integers(-3, 30), min_size=len(changes), max_size=len(changes)))
    return shape, {change: value / 8 for change, value in zip(changes, values, strict=True)}


@given(programs(), st.sampled_from(["kv_bytes", "prefill_flops"]), st.floats(0.3, 0.99))
@settings(max_examples=25, deadline=None)
def test_the_first_proposal_is_the_best_of_all_plans_within_the_budget(
    program: tuple[ModelShape, dict[Change, float]], kind: str, budget: float
) -> None:
    shape, scores = program
    cost = Cost(kind, 24)
    within = [value for plan, value in every_plan(shape, scores).items() if cost.ratio(plan, shape) <= budget + 1e-9]
    found = next(AdditiveProgram(shape, scores, cost, compensated=True).proposals(budget), None)
    if not within:
        assert found is None
        return
    assert found is not None
    assert cost.ratio(found.plan, shape) <= budget + 1e-9
    assert found.predicted == pytest.approx(min(within), abs=1e-6)
    assert found.plan == changed_plan(found.changes, shape, compensated=True)


@given(programs(), st.floats(0.4, 0.9))
@settings(max_examples=10, deadline=None)
def test_a_pool_goes_through_all_plans_in_order(program: tuple[ModelShape, dict[Change, float]], budget: float) -> None:
    shape, scores = program
    cost = Cost("kv_bytes", 24)
    within = {p: v for p, v in every_plan(shape, scores).items() if cost.ratio(p, shape) <= budget + 1e-9}
    found = list(islice(AdditiveProgram(shape, scores, cost, compensated=True).proposals(budget), 12))
    assert len({proposal.plan for proposal in found}) == len(found) == min(12, len(within))
    values = [proposal.predicted for proposal in found]
    assert values == pytest.approx(sorted(within.values())[: len(found)], abs=1e-6)


def test_plans_of_a_diverse_pool_differ_by_as_many_layers_as_asked_for() -> None:
    shape = toy_shape(6)
    changes = possible_changes(LayerPlan.unmodified(6), shape, KINDS, compensated=True)
    scores = {change: 1 + change.layer / 10 for change in changes}
    program = AdditiveProgram(shape, scores, Cost("kv_bytes", 24), compensated=True)
    plans = [proposal.plan for proposal in islice(program.proposals(0.6, distance=3), 6)]
    assert len(plans) == 6
    for number, plan in enumerate(plans):
        for other in plans[:number]:
            assert sum(row.role != before.role for row, before in zip(plan.rows, other.rows, strict=True)) >= 3


def test_readers_whose_nearest_source_sees_less_are_not_proposed() -> None:
    """Layer 3 sees all, layer 2 a window: only with layer 2 gone can layer 3 read from layer 1."""
    shape = toy_shape(4, windows=[None, None, 8, None])
    changes = possible_changes(LayerPlan.unmodified(4), shape, ("reuse", "drop"), compensated=True)
    assert Change(3, "reuse") not in changes
    scores = dict.fromkeys(changes, 5.0) | {Change(3, "reuse"): 0.1, Change(2, "drop"): 0.1}
    found = next(AdditiveProgram(shape, scores, Cost("kv_bytes", 24), compensated=True).proposals(0.8))
    assert found.changes == (Change(2, "drop"), Change(3, "reuse"))
    assert found.plan.rows[3].source == 1
