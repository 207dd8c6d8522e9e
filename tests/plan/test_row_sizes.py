"""Roles with sizes of their own (fewer KV heads, a window): checks, costs, drawings, files, and what a search makes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.shapes import toy_shape
from tests.tiny_models import shape as tiny_shape

from uniattn_pl.architectures import GQA, Search, Window
from uniattn_pl.plan import Compensation, LayerPlan, LayerRow, ModelShape, PlanError, costs
from uniattn_pl.plan.changes import Change, possible_changes
from uniattn_pl.plan.cost_ratio import COSTS, Cost
from uniattn_pl.plan.drawing import draw
from uniattn_pl.plan.training_memory import training_memory

SHAPE = toy_shape(8)
GROUPS = SHAPE.layers[0].heads.groups
PLAIN = LayerPlan.unmodified(8)
SIZED = PLAIN.merge_heads([1], 1, compensated=True).limit_window([3], 16, 2, compensated=True)
CHANGES = st.lists(
    st.tuples(st.integers(0, 7), st.sampled_from(["heads:1", "window:16+2", "window:5", "reuse", "share_kv", "drop"])),
    max_size=10,
)


def of(plan: LayerPlan, shape: ModelShape = SHAPE, length: int = 100) -> int:
    return costs.kv_cache_bytes(plan, shape, batch_size=1, length=length, bytes_per_element=1)


def test_the_cache_of_merged_heads_is_their_share_and_of_a_window_it_and_its_sinks() -> None:
    per_token = of(PLAIN, length=1) // 8
    assert of(PLAIN.merge_heads([1], 1, compensated=False)) == 100 * (7 * per_token + per_token // GROUPS)
    windowed = PLAIN.limit_window([3], 16, 2, compensated=False)
    for length in (5, 17, 18, 100, 10_000):
        assert of(windowed, length=length) == per_token * (7 * length + min(length, 15 + 2))


def test_flops_of_a_window_are_those_of_the_tokens_it_sees() -> None:
    windowed = PLAIN.limit_window([3], 16, 2, compensated=False)
    heads = SHAPE.layers[3].heads
    per_pair = 2 * (heads.query_width + heads.output_width)
    saved = costs.prefill_flops(PLAIN, SHAPE, batch_size=1, length=50) - costs.prefill_flops(
        windowed, SHAPE, batch_size=1, length=50
    )
    unseen = sum(max(0, query + 1 - 16 - 2) for query in range(50))
    assert saved == per_pair * unseen


def test_merged_heads_save_their_projections_in_parameters_and_in_training() -> None:
    merged = PLAIN.merge_heads([1], 1, compensated=False)
    layer = SHAPE.layers[1]
    saved = (layer.key + layer.value) * (GROUPS - 1) // GROUPS
    assert costs.parameters(PLAIN, SHAPE) - costs.parameters(merged, SHAPE) == saved
    sizes: dict[str, Any] = {"stage": 2, "micro_batch_size": 1, "length": 64, "weight_bytes": 4, "activation_bytes": 4}
    before, after = (training_memory(plan, SHAPE, **sizes) for plan in (PLAIN, merged))
    assert before.weights - after.weights == 4 * saved
    narrower = 2 * layer.heads.key_width * (GROUPS - 1) // GROUPS
    assert before.activations - after.activations == 64 * 4 * narrower


def test_they_are_drawn() -> None:
    lines = {line.split()[0]: line for line in draw(SIZED).splitlines()}
    assert "KV heads: 1" in lines["1"]
    assert "window 16 + 2 first" in lines["3"]
    assert all(line.endswith("cache K V") for line in lines.values())


def test_saved_rows_have_sizes_where_they_are_and_no_others() -> None:
    saved = {row["index"]: row for row in SIZED.to_dict()["rows"]}
    assert set(saved[1]) - set(saved[3]) == {"kv_heads"}
    assert set(saved[3]) - set(saved[1]) == {"window", "sinks"}
    assert LayerPlan.from_dict(SIZED.to_dict()) == SIZED
    saved[1]["kv_heads"] = "1"
    with pytest.raises(PlanError, match="kv_heads of layer 1 is '1', not a whole number"):
        LayerPlan.from_dict({"format": 2, "num_layers": 8, "rows": list(saved.values())})


WRONG_ROWS = {
    "needs kv_heads": LayerRow(1, "heads"),
    "needs window": LayerRow(1, "window"),
    "has no window of its own, but is given 4": LayerRow(1, "heads", kv_heads=1, window=4),
    "has no kv_heads of its own, but is given 1": LayerRow(1, "drop", kv_heads=1),
    "has window 0; it is at least 1": LayerRow(1, "window", window=0),
    "has -1 sinks": LayerRow(1, "window", window=4, sinks=-1),
    "has 2 sinks": LayerRow(1, "full", sinks=2),
    "keeps its own attention, inside which its W_c can neither": LayerRow(
        1, "heads", None, Compensation(output="heads"), kv_heads=1
    ),
}


@pytest.mark.parametrize("message", WRONG_ROWS)
def test_rows_that_cannot_be_are_refused(message: str) -> None:
    with pytest.raises(PlanError, match=f"layer 1 .*{message}"):
        PLAIN.with_rows({1: WRONG_ROWS[message]})


def test_sizes_that_do_not_fit_the_model_are_refused() -> None:
    for heads in (GROUPS, 3):
        with pytest.raises(PlanError, match=f"layer 1 has {GROUPS} KV heads and cannot have {heads}; allowed: 1"):
            PLAIN.merge_heads([1], heads, compensated=False).check(SHAPE)
    one = replace(SHAPE, layers=tuple(replace(s, heads=replace(s.heads, groups=1)) for s in SHAPE.layers))
    with pytest.raises(PlanError, match="allowed: none, as one cannot be fewer"):
        PLAIN.merge_heads([1], 1, compensated=False).check(one)
    with pytest.raises(PlanError, match="layer 4 reuses the map of layer 3, which computes none"):
        SIZED.reuse([4], 3, compensated=False)
    SIZED.reuse([2], 1, compensated=False).share_kv([4], 1, compensated=False).check(SHAPE)


def test_a_layer_that_slides_gets_the_smaller_window_and_no_sinks() -> None:
    shape = tiny_shape("gemma2")  # layers 0, 2 and 4 see 6 tokens
    plan = Window(window=4, sinks=2).compile(shape)
    assert [(row.window, row.sinks) for row in plan.rows] == [(4, 0), (4, 2)] * 3
    wider = Window(window=6, sinks=2).compile(shape)
    assert wider.operated == (1, 3, 5)
    with pytest.raises(PlanError, match="no layer of the model sees more than its last 6 tokens"):
        Window(window=6).compile(tiny_shape("mistral"))
    with pytest.raises(PlanError, match="layer 0 sees the last 6 tokens already; a window of 6 is no less"):
        LayerPlan.unmodified(6).limit_window([0], 6, compensated=False).check(shape)
    with pytest.raises(PlanError, match="layer 0 slides already and has learned to do without first tokens"):
        LayerPlan.unmodified(6).limit_window([0], 4, 2, compensated=False).check(shape)


@pytest.mark.parametrize(("architecture", "role"), [(GQA, "heads"), (Window, "window")])
def test_an_architecture_changes_the_layers_it_is_given(architecture: Any, role: str) -> None:
    assert architecture().compile(SHAPE).operated == tuple(range(8))
    assert architecture(num_layers=3).compile(SHAPE).operated == (5, 6, 7)
    plan = architecture(layers=[4, 2], compensation=False).compile(SHAPE)
    assert {row.index: row.compensated for row in plan.rows if row.role == role} == {2: False, 4: False}
    for options, message in (
        ({"layers": [1], "num_layers": 1}, "takes layers or num_layers, not both"),
        ({"layers": [1, 1]}, "lists 1 more than once"),
        ({"num_layers": 9}, "num_layers is 9; 8 layers can be changed"),
        ({"layers": [8]}, "there is no layer 8"),
    ):
        with pytest.raises(PlanError, match=message):
            architecture(**options).compile(SHAPE)


@given(CHANGES, st.booleans())
def test_any_sequence_of_changes_gives_plans_that_save_and_never_cost_more(
    steps: list[tuple[int, str]], compensated: bool
) -> None:
    plan = PLAIN
    for layer, kind in steps:
        changed = Change(layer, kind).apply(plan, compensated=compensated)
        if changed is None:
            continue
        assert set(changed.operated) == {*plan.operated, layer}
        for cost in COSTS:
            if not (compensated and cost in ("prefill_flops", "decode_bytes")):  # W_c costs, too
                assert Cost(cost, 64).ratio(changed, SHAPE) <= Cost(cost, 64).ratio(plan, SHAPE)
        assert LayerPlan.from_dict(changed.to_dict()) == changed
        plan = changed


def test_a_search_proposes_them_where_they_fit_and_refuses_what_it_cannot_read() -> None:
    found = possible_changes(PLAIN, SHAPE, ["heads:1", "window:16+2"], compensated=True)
    assert len(found) == 16
    assert {(plan.rows[c.layer].role, plan.rows[c.layer].sinks) for c, plan in found.items()} == {
        ("heads", 0),
        ("window", 2),
    }
    assert not possible_changes(PLAIN, SHAPE, [f"heads:{GROUPS}"], compensated=True)
    Search(kinds=["reuse", "heads:1", "window:16"], budget=0.6, cost_length=100).check(SHAPE)
    for kind in ("heads", "window", "heads:", "heads:0", "heads:1+2", "window:4+", "window:4+1+1", "drop:1", "full"):
        with pytest.raises(PlanError, match=r"kinds must be some of reuse, share_kv, drop,.* heads:N, window:W"):
            Search(kinds=[kind]).check(SHAPE)
