"""Scores by KL against an independent computation, and searches whose plans a program proposes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tests.parity import stock_llama
from tests.search.test_search import batches
from transformers import PreTrainedModel

from uniattn_pl.architectures import Search
from uniattn_pl.architectures.measurement_protocol import BOTH, KL, LOSS, MIP, Proposals
from uniattn_pl.errors import UserError
from uniattn_pl.families.model_shape import shape_of
from uniattn_pl.plan import LayerPlan, PlanError
from uniattn_pl.plan.changes import Change, possible_changes
from uniattn_pl.plan.cost_ratio import Cost
from uniattn_pl.search.frontier import write_frontier
from uniattn_pl.search.greedy import DISTILLED, FITTED, PREDICTED, FrontierPoint, SearchSettings
from uniattn_pl.search.proposal_search import ProposalSearch
from uniattn_pl.search.unified_streams import UnifiedStreams

SETTINGS = SearchSettings(("reuse", "drop"), Cost("kv_bytes", 96), 0.7, candidates=3, score=KL)


def streams(score: str = KL) -> UnifiedStreams:
    rows = batches()
    return UnifiedStreams(stock_llama(), rows[:1], rows[1:], initialiser="joint_least_squares", ridge=1e-2, score=score)


def search(proposals: Proposals, record: Path | None = None, settings: SearchSettings = SETTINGS) -> ProposalSearch:
    return ProposalSearch(streams(), shape_of(stock_llama().config), settings, proposals, record=record)


@torch.no_grad()
def whole_divergence(model: PreTrainedModel) -> float:
    """By whole logits of whole forwards."""
    batch, original = batches()[1], stock_llama()
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    p, q = (m(**inputs).logits.double().log_softmax(-1)[batch["attention_mask"].bool()] for m in (original, model))
    return float((p.exp() * (p - q)).sum(-1).mean())


def test_the_divergence_is_that_of_whole_logits_and_nothing_for_the_original() -> None:
    found = streams()
    assert found.score == pytest.approx(0, abs=1e-6)
    for layer, kind in ((5, "reuse"), (2, "drop")):
        plan = Change(layer, kind).apply(found.plan, compensated=True)
        assert plan is not None
        found.accept(plan, layer)
        assert found.score == pytest.approx(whole_divergence(found.model(plan)), rel=1e-3)


def test_a_judged_plan_is_fitted_as_one_that_was_built_change_by_change() -> None:
    built, judging = streams(), streams()
    for layer, kind in ((6, "drop"), (2, "reuse"), (4, "drop")):
        plan = Change(layer, kind).apply(built.plan, compensated=True)
        assert plan is not None
        built.accept(plan, layer)
    assert judging.judge(built.plan) == pytest.approx(built.score, abs=1e-6)
    shorter = Change(6, "drop").apply(LayerPlan.unmodified(8), compensated=True)
    assert shorter is not None
    assert built.judge(shorter) == pytest.approx(judging.judge(shorter), abs=1e-6), "whatever the present plan"


def test_a_short_distillation_comes_closer_to_the_original_and_leaves_it_as_it_is() -> None:
    rows = batches()[:1]
    found = UnifiedStreams(stock_llama(), rows, rows, initialiser="joint_least_squares", ridge=1e-2, score=KL)
    before = {name: value.clone() for name, value in found.original.state_dict().items()}
    flags = [parameter.requires_grad for parameter in found.original.parameters()]
    plan = LayerPlan.unmodified(8).drop([2, 5], compensated=True)
    assert found.judge(plan, distil_steps=20) < 0.9 * found.judge(plan)
    assert all(torch.equal(value, before[name]) for name, value in found.original.state_dict().items())
    assert [parameter.requires_grad for parameter in found.original.parameters()] == flags


def test_the_chosen_plan_is_the_best_of_the_judged_ones_within_the_budget() -> None:
    points = search(Proposals(MIP, pool=4)).run()
    judged = [point for point in points[1:] if point.basis == FITTED]
    assert len(judged) == 4
    assert all(point.cost <= SETTINGS.budget + 1e-9 for point in judged)
    assert points[-1] == min(judged, key=lambda point: point.score)
    judge = streams()
    for point in judged:
        assert judge.judge(LayerPlan.from_dict(point.plan)) == pytest.approx(point.score, abs=1e-6)


def test_an_unjudged_optimum_costs_only_the_measurements_of_single_changes() -> None:
    found = search(Proposals(MIP, pool=0))
    points = found.run()
    single = possible_changes(LayerPlan.unmodified(8), found.shape, SETTINGS.kinds, compensated=True)
    assert set(found.measured) == {(plan, 0) for plan in single.values()}
    assert {point.basis for point in points[1:]} == {PREDICTED}
    assert points[-1].cost <= SETTINGS.budget + 1e-9
    assert [p.cost for p in points] == sorted((p.cost for p in points), reverse=True), "a point per budget on the way"
    unfitted = [found.measured[plan, 0] for plan in single.values()]
    plan = LayerPlan.from_dict(points[-1].plan)
    assert points[-1].score < sum(sorted(unfitted)[-len(plan.operated) :])


def test_swaps_and_greedy_only_ever_make_the_choice_better() -> None:
    pool = search(Proposals(MIP, pool=2)).run()[-1]
    for proposals in (Proposals(BOTH, pool=2), Proposals(MIP, pool=2, swaps=2)):
        best = search(proposals).run()[-1]
        assert best.score <= pool.score
        assert best.cost <= SETTINGS.budget + 1e-9


def test_finalists_are_judged_once_more_after_a_distillation() -> None:
    points = search(Proposals(MIP, pool=3, distilled=2, distill_steps=3)).run()
    fitted = sorted((p for p in points[1:] if p.basis == FITTED), key=lambda point: point.score)
    distilled = [p for p in points if p.basis == DISTILLED]
    assert {str(p.plan) for p in distilled} == {str(p.plan) for p in fitted[:2]}
    assert points[-1] == min(distilled, key=lambda point: point.score)


@pytest.mark.parametrize("measurements", [2, 17, 20])
def test_a_killed_search_measures_nothing_twice_and_ends_as_an_uninterrupted_one(
    measurements: int, tmp_path: Path
) -> None:
    proposals = Proposals(BOTH, pool=3, swaps=1, distilled=1, distill_steps=2)
    expected = search(proposals).run()
    killed, calls = search(proposals, tmp_path / "record.json"), 0

    def stop(*_: object) -> None:
        nonlocal calls
        calls += 1
        if calls == measurements:
            raise KeyboardInterrupt

    killed.progress = stop
    with pytest.raises(KeyboardInterrupt):
        killed.run()
    again, judged = search(proposals, tmp_path / "record.json"), []
    judge = again.streams.judge
    again.streams.judge = lambda plan, **kw: (judged.append(plan), judge(plan, **kw))[1]  # type: ignore[method-assign]
    before = {plan for plan, steps in again.measured if not steps}
    assert before
    found = again.run()
    assert [point.plan for point in found] == [point.plan for point in expected]
    assert [point.score for point in found] == pytest.approx([point.score for point in expected], abs=1e-6)
    assert not before & set(judged[:-1])


def test_another_budget_needs_no_new_measurement_of_single_changes_and_another_score_is_another_search(
    tmp_path: Path,
) -> None:
    record = tmp_path / "record.json"
    search(Proposals(MIP, pool=0), record).run()
    size = len(json.loads(record.read_text())["measured"])
    tighter = SearchSettings(**{**SETTINGS.__dict__, "budget": 0.5})
    found = search(Proposals(MIP, pool=0), record, tighter)
    assert found.run()[-1].cost <= 0.5
    assert len(found.measured) == size
    with pytest.raises(UserError, match="belongs to a search with other settings"):
        search(Proposals(MIP), record, SearchSettings(**{**SETTINGS.__dict__, "score": LOSS}))


def test_the_frontier_names_the_score_and_what_found_a_plan(tmp_path: Path) -> None:
    plan = LayerPlan.unmodified(4).drop([1], compensated=True).to_dict()
    points = [
        FrontierPoint(1.0, 0.0, LayerPlan.unmodified(4).to_dict(), found_by=MIP),
        FrontierPoint(0.75, 0.1, plan, found_by=MIP, basis=PREDICTED),
        FrontierPoint(0.75, 0.2, plan, 1, "drop"),
        FrontierPoint(0.75, 0.15, plan, found_by=MIP, basis=DISTILLED),
    ]
    folder = write_frontier(tmp_path, points, Cost("kv_bytes", 8), KL)
    content = json.loads((folder / "frontier.json").read_text())
    assert content["score"] == KL
    assert [row["found_by"] for row in content["points"]] == ["mip", "mip", "greedy", "mip"]
    lines = (folder / "table.txt").read_text().splitlines()
    assert "kl: KL of the next token from the original's" in lines[0]
    assert [line[23:] for line in lines[1:]] == [
        "unmodified",
        "mip; the sum of its changes' scores, each alone",
        "layer 1: drop",
        "mip; measured after a short distillation",
    ], "a prediction and a distilled plan beat no fitted one"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"distilled": 2}, "swaps and distilled judge the plans of a pool; set proposals to mip or both"),
        ({"proposals": "both", "pool": 0}, "pool is 0, so that nothing is judged"),
    ],
)
def test_options_that_do_not_go_together_are_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        Search(**options).check(shape_of(stock_llama().config))  # type: ignore[arg-type]
