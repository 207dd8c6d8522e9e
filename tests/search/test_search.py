"""The search: its changes, its incremental losses against whole forwards, its choice, and that a killed one goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.parity import recorded, stock_llama
from tests.shapes import toy_shape
from transformers import PreTrainedModel

from uniattn_pl.architectures import Given, Search
from uniattn_pl.calibration import calibrate
from uniattn_pl.errors import UserError
from uniattn_pl.families.model_shape import shape_of
from uniattn_pl.modeling.conversion.convert import converted_copy
from uniattn_pl.plan import LayerPlan, PlanError
from uniattn_pl.plan.changes import Change, possible_changes, searched_roles
from uniattn_pl.plan.cost_ratio import COSTS, Cost
from uniattn_pl.search.frontier import is_dominated, write_frontier
from uniattn_pl.search.greedy import FrontierPoint, GreedySearch, SearchSettings
from uniattn_pl.search.model_measurements import ModelMeasurements
from uniattn_pl.search.unified_streams import UnifiedStreams

Batch = dict[str, torch.Tensor]
ALL = SearchSettings(tuple(searched_roles()), Cost("kv_bytes", 96), budget=0.6)


def batches() -> list[Batch]:
    """Two batches of recorded sequences, some of them shorter; every token but the first is scored."""
    ids = recorded("init")["ids"][:12, :40]
    mask = (torch.arange(ids.shape[1]) < torch.linspace(20, 40, len(ids)).long()[:, None]).long()
    labels = ids.masked_fill(mask == 0, -100)
    parts = zip(ids.split(6), mask.split(6), labels.split(6), strict=True)
    return [{"input_ids": i, "attention_mask": m, "labels": y} for i, m, y in parts]


def streams() -> UnifiedStreams:
    return UnifiedStreams(stock_llama(), batches(), batches(), initialiser="joint_least_squares", ridge=1e-2)


@torch.no_grad()
def whole_loss(model: PreTrainedModel) -> float:
    total, count = 0.0, 0
    for batch in batches():
        logits = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
        labels = batch["labels"][:, 1:]
        total += torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum").item()
        count += int((labels != -100).sum())
    return total / count


@given(st.lists(st.tuples(st.integers(0, 7), st.sampled_from(sorted(searched_roles()))), max_size=10), st.booleans())
def test_any_sequence_of_changes_gives_plans_that_save_and_never_undo(
    steps: list[tuple[int, str]], compensated: bool
) -> None:
    plan, shape = LayerPlan.unmodified(8), toy_shape(8)
    for layer, kind in steps:
        changed = Change(layer, kind).apply(plan, compensated=compensated)
        if changed is None:
            continue
        assert changed.rows[layer].role == kind
        assert set(changed.operated) == {*plan.operated, layer}
        for cost in COSTS:
            if not (compensated and cost in ("prefill_flops", "decode_bytes")):  # W_c costs, too
                assert Cost(cost, 64).ratio(changed, shape) <= Cost(cost, 64).ratio(plan, shape)
        plan = changed


def test_readers_follow_when_their_source_changes() -> None:
    plan = LayerPlan.unmodified(6).reuse([3, 4], 2, compensated=True)
    chained = Change(2, "reuse").apply(plan, compensated=True)
    assert chained is not None
    full, reuse = ("full", None), ("reuse", 1)
    assert [(row.role, row.source) for row in chained.rows] == [full, full, reuse, reuse, reuse, full]
    assert Change(2, "drop").apply(plan, compensated=True) is None
    sharing = Change(2, "share_kv").apply(plan, compensated=True)
    assert sharing is not None
    assert (sharing.rows[3].role, sharing.rows[3].source) == ("reuse", 2)
    keys = LayerPlan.unmodified(6).share_kv([3], 2, compensated=True)
    assert Change(2, "reuse").apply(keys, compensated=True) is None
    moved = Change(2, "share_kv").apply(keys, compensated=True)
    assert moved is not None
    assert (moved.rows[3].role, moved.rows[3].source) == ("share_kv", 1)


def test_windows_limit_what_a_layer_can_become() -> None:
    shape = toy_shape(3, windows=[4, None, 4])
    found = possible_changes(LayerPlan.unmodified(3), shape, ("reuse",), compensated=False)
    assert set(found) == {Change(2, "reuse")}


def test_losses_are_those_of_whole_forwards() -> None:
    search = streams()
    assert search.score == pytest.approx(whole_loss(stock_llama()), abs=1e-5)
    for layer, kind in ((5, "reuse"), (2, "drop"), (6, "reuse"), (4, "share_kv"), (1, "reuse")):
        plan = Change(layer, kind).apply(search.plan, compensated=True)
        assert plan is not None
        search.accept(plan, layer)
        assert search.score == pytest.approx(whole_loss(search.model(plan)), abs=1e-5)


def test_a_candidate_is_what_it_is_once_accepted_and_leaves_nothing_behind() -> None:
    """Where nothing above is operated, trying and accepting a change are the same."""
    search = streams()
    first = Change(3, "reuse").apply(search.plan, compensated=True)
    assert first is not None
    search.accept(first, 3)
    plans = possible_changes(search.plan, shape_of(stock_llama().config), tuple(searched_roles()), compensated=True)
    above = {change: plan for change, plan in plans.items() if change.layer > 3}
    tried = {change: search.try_plan(plan, change.layer) for change, plan in above.items()}
    assert tried == {change: search.try_plan(plan, change.layer) for change, plan in above.items()}
    chosen = Change(6, "drop")
    assert search.accept(above[chosen], chosen.layer) == pytest.approx(tried[chosen], abs=1e-6)


def test_the_fits_are_those_of_calibration() -> None:
    search = streams()
    for layer in (6, 2):  # the later, lower one has the upper one fitted again
        plan = Change(layer, "reuse").apply(search.plan, compensated=True)
        assert plan is not None
        search.accept(plan, layer)
    original = stock_llama()
    model = converted_copy(original, search.plan)
    calibrate(original, model, batches(), [], initialiser="joint_least_squares", ridge=1e-2)
    for name, expected in model.state_dict().items():
        found = search.model(search.plan).state_dict()[name]
        assert (found - expected).norm() <= 1e-4 * expected.norm(), name


def test_each_step_is_the_best_single_change() -> None:
    points = GreedySearch(streams(), shape_of(stock_llama().config), ALL).run()
    assert points[0].cost == 1
    assert points[-1].cost <= ALL.budget < points[-2].cost
    search, shape = streams(), shape_of(stock_llama().config)
    before = search.score
    for point in points[1:3]:
        changes = possible_changes(search.plan, shape, ALL.kinds, compensated=True)
        present = ALL.cost.ratio(search.plan, shape)

        def score(change: Change, changes=changes, before=before, present=present) -> float:  # type: ignore[no-untyped-def]
            increase = search.try_plan(changes[change], change.layer) - before
            saved = present - ALL.cost.ratio(changes[change], shape)
            return increase / saved if increase > 0 else increase * saved

        best = min(changes, key=score)
        assert (best.layer, best.kind) == (point.layer, point.kind)
        before = search.accept(changes[best], best.layer)


@pytest.mark.parametrize("candidates", [0, 4])
@pytest.mark.parametrize("evaluations", [3, 9])
def test_a_search_that_was_stopped_goes_on_as_if_it_had_not(candidates: int, evaluations: int, tmp_path: Path) -> None:
    settings, shape = (
        SearchSettings(("reuse", "drop"), ALL.cost, 0.7, candidates=candidates),
        shape_of(stock_llama().config),
    )
    expected = GreedySearch(streams(), shape, settings).run()
    record, calls = tmp_path / "record.json", 0

    def stop(done: int, total: int, what: str) -> None:
        nonlocal calls
        calls += 1
        if calls == evaluations:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        GreedySearch(streams(), shape, settings, record=record, progress=stop).run()
    again = streams()
    tried = []
    again.try_plan = lambda plan, layer, f=again.try_plan: (tried.append(layer), f(plan, layer))[1]  # type: ignore
    found = GreedySearch(again, shape, settings, record=record).run()
    assert [(p.layer, p.kind, p.plan) for p in found] == [(p.layer, p.kind, p.plan) for p in expected]
    assert [p.score for p in found] == pytest.approx([p.score for p in expected], abs=1e-6)
    with pytest.raises(UserError, match="belongs to a search with other settings"):
        GreedySearch(streams(), shape, ALL, record=record)


def test_every_point_of_a_frontier_is_a_plan_that_can_be_given(tmp_path: Path) -> None:
    shape = shape_of(stock_llama().config)
    points = GreedySearch(streams(), shape, SearchSettings(("drop",), ALL.cost, 0.7)).run()
    folder = write_frontier(tmp_path, points, ALL.cost)
    rows = json.loads((folder / "frontier.json").read_text())["points"]
    assert [row["score"] for row in rows] == [point.score for point in points]
    for row, point in zip(rows, points, strict=True):
        assert Given(plan=str(folder / row["plan"])).compile(shape).to_dict() == point.plan
    assert (folder / "frontier.png").stat().st_size > 10_000
    assert f"layer {points[1].layer}: drop" in (folder / "table.txt").read_text()


def test_a_budget_that_is_never_reached_is_named_and_the_plans_on_the_way_are_kept(tmp_path: Path) -> None:
    shape = shape_of(stock_llama().config)
    measurements = ModelMeasurements(
        stock_llama(), shape, lambda tokens, after: batches()[:1], num_tokens=40, ridge=1e-2, folder=tmp_path
    )
    with pytest.raises(UserError, match=r"ended at 56\.2% .* no further layer can change, and the budget is 50\.0%"):
        measurements.greedy(kinds=["reuse"], cost="key_caches", length=1, budget=0.5, compensated=False, tokens=40)
    assert len(list((tmp_path / "frontier" / "plans").iterdir())) == 8


def test_a_record_of_other_rows_or_another_model_is_not_gone_on_with(tmp_path: Path) -> None:
    shape, settings = shape_of(stock_llama().config), SearchSettings(("drop",), ALL.cost, 0.9, compensated=False)

    def losses(row: int, contents: str | None, folder: Path) -> list[float]:
        options: dict[str, Any] = {"num_tokens": 40, "ridge": 1e-2, "contents": contents, "folder": folder}
        measurements = ModelMeasurements(stock_llama(), shape, lambda *_: batches()[row : row + 1], **options)
        return [point.score for point in measurements.search(settings, 40)]

    first = losses(0, "one", tmp_path)
    assert losses(1, "one", tmp_path) == losses(1, "one", tmp_path / "alone") != first
    assert losses(0, "one", tmp_path) == first
    losses(0, "two", tmp_path)
    assert len(list(tmp_path.glob("record-*.json"))) == 3


@pytest.mark.parametrize("compensated", [False, True])
def test_progress_says_how_far_the_whole_search_is(compensated: bool) -> None:
    seen: list[tuple[int, int]] = []
    settings = SearchSettings(("drop",), ALL.cost, 0.75, compensated)
    shape = shape_of(stock_llama().config)
    GreedySearch(streams(), shape, settings, progress=lambda done, total, _: seen.append((done, total))).run()
    assert [done for done, _ in seen] == list(range(1, 8 + 7 + 1))
    assert seen[0][1] == 16, "two rounds of eight, as far as the first one can know"
    assert seen[-1] == (15, 15)


def test_dominated_points() -> None:
    points = [FrontierPoint(1.0, 2.0, {}), FrontierPoint(0.9, 2.5, {}), FrontierPoint(0.8, 2.4, {})]
    assert [is_dominated(point, points) for point in points] == [False, True, False]


def test_what_a_search_cannot_do_is_named() -> None:
    shape = toy_shape(4)
    for options, message in (
        ({"budget": 1.5}, "between 0 and 1; got 1.5"),
        ({"kinds": ["reuse", "skip"]}, "kinds must be some of reuse, share_kv, drop"),
        (
            {"budget": 0.6, "kinds": ["reuse"]},
            r"cannot fall below 62\.5% with kinds reuse; the nearest budget .* 0\.63",
        ),
    ):
        with pytest.raises(PlanError, match=message):
            Search(**options).choose(shape, None)  # type: ignore[arg-type]
    with pytest.raises(PlanError, match="chooses the layers by measurement"):
        Search().compile(shape)
    with pytest.raises(PlanError, match=r"no file 'gone\.json'"):
        Given(plan="gone.json").compile(shape)
