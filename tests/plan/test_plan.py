"""Plans: what is refused, what survives, and that costs agree with real models."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.shapes import toy_shape

from uniattn_pl.plan import (
    COMPENSATION_INPUTS,
    COMPENSATION_OUTPUTS,
    Compensation,
    LayerPlan,
    LayerRow,
    PlanError,
    costs,
)
from uniattn_pl.plan.drawing import draw as drawing


@st.composite
def plans(draw: st.DrawFn) -> LayerPlan:
    """Any valid plan of up to 12 layers: each layer kept, reusing, sharing or dropped, compensated or not."""
    plan = LayerPlan.unmodified(draw(st.integers(1, 12)))
    for row in plan.rows:
        index, compensated = row.index, draw(st.booleans())
        below = plan.rows[:index]
        with_map = [r.index for r in below if r.role != "drop"]
        with_keys = [r.index for r in below if r.role == "full"]
        role = draw(st.sampled_from(["full", "drop"] + ["reuse"] * bool(with_map) + ["share_kv"] * bool(with_keys)))
        if role == "drop":
            plan = plan.drop([index], compensated=compensated)
        elif role == "reuse":
            plan = plan.reuse([index], draw(st.sampled_from(with_map)), compensated=compensated)
        elif role == "share_kv":
            plan = plan.share_kv([index], draw(st.sampled_from(with_keys)), compensated=compensated)
    return plan


@given(plans())
def test_a_plan_survives_json(plan: LayerPlan) -> None:
    assert LayerPlan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan


@given(plans(), st.sampled_from(sorted(COMPENSATION_INPUTS)), st.sampled_from(sorted(COMPENSATION_OUTPUTS)))
def test_a_compensation_is_placed_where_there_is_something_to_read_or_refused(
    plan: LayerPlan, read: str, added: str
) -> None:
    compensated = [row for row in plan.rows if row.compensated]
    impossible = [
        row.index
        for row in compensated
        if (row.role == "drop" and (read != "attention_input" or added == "heads"))
        or (row.role == "share_kv" and read == "value")
    ]
    if impossible:
        with pytest.raises(PlanError) as error:
            plan.place_compensation(input=read, output=added)
        assert len(error.value.problems) == len(impossible)
        return
    placed = plan.place_compensation(input=read, output=added)
    assert LayerPlan.from_dict(json.loads(json.dumps(placed.to_dict()))) == placed
    assert {(row.compensation.input, row.compensation.output) for row in placed.rows if row.compensation} <= {
        (read, added)
    }
    assert [row.role for row in placed.rows] == [row.role for row in plan.rows]


@given(plans())
def test_every_reader_reads_from_a_layer_below_that_has_what_it_needs(plan: LayerPlan) -> None:
    for row in plan.rows:
        if row.source is None:
            continue
        source = plan.rows[row.source]
        assert source.index < row.index
        assert source.role in ("full", "share_kv"), "it computes its own map"
    assert set(plan.compensated) <= set(plan.operated)


@given(plans(), st.integers(1, 300), st.integers(1, 4))
def test_operating_on_layers_never_costs_cache_or_attention_flops(plan: LayerPlan, length: int, batch: int) -> None:
    shape = toy_shape(len(plan.rows))
    unmodified = LayerPlan.unmodified(len(plan.rows))

    def cost(p: LayerPlan) -> int:
        return costs.kv_cache_bytes(p, shape, batch_size=batch, length=length, bytes_per_element=2)

    assert cost(plan) <= cost(unmodified)
    halves = 2 * len(plan.rows) - sum({"reuse": 1, "share_kv": 2, "drop": 2, "full": 0}[r.role] for r in plan.rows)
    assert cost(plan) * 2 * len(plan.rows) == cost(unmodified) * halves
    assert costs.kv_retain_rate(plan, shape, length=length) == pytest.approx(cost(plan) / cost(unmodified))


@given(plans())
def test_the_drawing_names_every_operated_layer_and_what_it_caches(plan: LayerPlan) -> None:
    lines = {line.split()[0]: line for line in drawing(plan).splitlines()}
    for row in plan.rows:
        if row.operated:
            line = lines[str(row.index)]
            assert ("W_c" in line) == row.compensated
            assert line.endswith({"reuse": "cache V", "share_kv": "cache -", "drop": "cache -"}[row.role])


def test_a_chain_resolves_to_the_layer_that_computes_the_map() -> None:
    plan = LayerPlan.unmodified(4).reuse([2], 1, compensated=False).reuse([3], 2, compensated=True)
    full, reuse = ("full", None), ("reuse", 1)
    assert [(row.role, row.source) for row in plan.rows] == [full, full, reuse, reuse]
    assert plan.sources("map") == (1,)
    assert plan.compensated == (3,)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (LayerRow(1, "reuse", 2), "layer 1 reads from layer 2, which is not below it"),
        (LayerRow(1, "reuse", 9), "layer 9, which is not in the model"),
        (LayerRow(1, "reuse"), "layer None, which is not in the model"),
        (LayerRow(1, "share_kv", 2), "layer 1 reads from layer 2, which is not below it"),
        (
            LayerRow(1, compensation=Compensation()),
            "layer 1 computes its own attention and cannot carry a compensation",
        ),
        (LayerRow(1, "drop", 0), r"layer 1 \(drop\) reads from no other layer, but names layer 0"),
        (LayerRow(1, "share_kv", 0, heads_from=(0, 1)), "layer 1 reuses no map whose heads could be aligned"),
        (LayerRow(1, "halve"), "layer 1 has the role 'halve'; roles: full, reuse, share_kv, drop"),
        (LayerRow(2), "row 1 of the plan describes layer 2"),
    ],
)
def test_impossible_rows_are_refused_by_name(row: LayerRow, message: str) -> None:
    rows = list(LayerPlan.unmodified(3).rows)
    rows[1] = row
    with pytest.raises(PlanError, match=message):
        LayerPlan(tuple(rows))


def test_reading_from_dropped_or_sharing_layers_is_refused() -> None:
    dropped = LayerPlan.unmodified(4).drop([1], compensated=False)
    with pytest.raises(PlanError, match="layer 1, whose attention is dropped"):
        dropped.share_kv([2], 1, compensated=False)
    shared = LayerPlan.unmodified(4).share_kv([1], 0, compensated=False)
    with pytest.raises(PlanError, match="layer 1, which keeps none of its own"):
        shared.share_kv([2], 1, compensated=False)
    with pytest.raises(PlanError, match="there is no layer 4, 7"):
        shared.drop([1, 4, 7], compensated=False)


def test_all_problems_of_a_plan_are_reported_at_once() -> None:
    rows = (LayerRow(0), LayerRow(1, "reuse", 3), LayerRow(2, compensation=Compensation()))
    with pytest.raises(PlanError) as error:
        LayerPlan(rows)
    assert len(error.value.problems) == 2


def test_a_reader_that_sees_further_than_its_source_is_refused() -> None:
    shape = toy_shape(4, windows=(None, 8, None, 8))
    LayerPlan.unmodified(4).reuse([1], 0, compensated=False).check(shape)
    with pytest.raises(PlanError, match="layer 2 sees every token but its source, layer 1, only the last 8"):
        LayerPlan.unmodified(4).reuse([2, 3], 1, compensated=False).check(shape)
    with pytest.raises(PlanError, match="the plan has 3 layers, the model"):
        LayerPlan.unmodified(3).check(shape)


def test_cache_bytes_follow_the_window_of_the_source() -> None:
    shape = toy_shape(2, windows=(None, 8))
    per_token = shape.layers[0].heads.key_width * 2

    def cost(plan: LayerPlan) -> int:
        return costs.kv_cache_bytes(plan, shape, batch_size=1, length=100, bytes_per_element=2) // per_token

    assert cost(LayerPlan.unmodified(2)) == 2 * 100 + 2 * 7
    assert cost(LayerPlan.unmodified(2).reuse([1], 0, compensated=False)) == 2 * 100 + 100


def test_flops_of_a_hand_computed_layer() -> None:
    shape = toy_shape(1)
    d, heads, kv, size, inner = 8, 4, 2, 2, 24
    linear = 2 * (d * heads * size * 2 + d * kv * size * 2 + d * inner)
    head = 2 * d * shape.vocab_size
    plan = LayerPlan.unmodified(1)
    pairs = 10 * 11 // 2
    expected = linear * 10 + 2 * 2 * heads * size * pairs + head
    assert costs.prefill_flops(plan, shape, batch_size=1, length=10) == expected
    assert costs.decode_flops(plan, shape, batch_size=3, length=10) == 3 * (linear + 4 * heads * size * 10 + head)
    dropped = plan.drop([0], compensated=True)
    assert costs.decode_flops(dropped, shape, batch_size=1, length=10) == 2 * (d * inner + d * d) + head


def test_a_plan_prints_as_its_drawing_and_shows_as_one_short_line() -> None:
    plan = LayerPlan.unmodified(8).reuse([5, 6], 4, compensated=True).drop([1], compensated=False)
    assert f"{plan}" == drawing(plan)
    assert len(str(plan).splitlines()) == 7
    assert repr(plan) == "LayerPlan(8 layers: 5 full, 1 drop, 2 reuse; 2 with W_c)"
    assert repr(LayerPlan.unmodified(3)) == "LayerPlan(3 layers: 3 full)"
