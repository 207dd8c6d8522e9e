"""KVSharer, YOCO, ShortGPT, and the settings that make NBL and ReplaceMe: which plans their options give."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.shapes import hybrid_shape, toy_shape

from uniattn_pl.architectures import YOCO, Architecture, KVSharer, LLMDrop, SharedAttention, ShortGPT
from uniattn_pl.plan import LayerPlan, PlanError, costs

LAYERS = 8


@dataclass
class Made:
    """Measurements made up so that the choice is known; writes down which plans were tried."""

    distances: Sequence[Sequence[float]] = ()
    bad_readers: frozenset[int] = frozenset()
    tried: list[dict[int, int]] = field(default_factory=list)

    def attention_importance(self) -> list[float]:
        return [0.0, 0.1, 0.2, 0.3, 0.9, 0.8, 0.7, 0.6]

    def linear_bounds(self) -> list[float]:
        return [9.0, 9.0, 1.0, 9.0, 2.0, 9.0, 3.0, 9.0]

    def block_influence(self, span: int) -> list[float]:
        single = [0.9, 0.2, 0.5, 0.1, 0.7, 0.3, 0.6, 0.9]
        return single if span == 1 else [sum(single[i : i + span]) for i in range(LAYERS - span + 1)]

    def cache_distances(self) -> Sequence[Sequence[float]]:
        return self.distances

    def final_similarity(self, plan: LayerPlan) -> float:
        self.tried.append(sources(plan))
        return 0.4 if self.bad_readers & set(plan.operated) else 0.9


def sources(plan: LayerPlan) -> dict[int, int]:
    return {row.index: row.source for row in plan.rows if row.source is not None}


def distances(*pairs: tuple[int, int]) -> list[list[float]]:
    """Largest for the first pair, then for the next; small for all others."""
    table = [[0.01 * (i + j) for i in range(LAYERS)] for j in range(LAYERS)]
    for rank, (one, other) in enumerate(pairs):
        table[one][other] = table[other][one] = 100.0 - rank
    return table


def chosen(architecture: Architecture, made: Made) -> LayerPlan:
    return architecture.choose(toy_shape(LAYERS), made)  # type: ignore[arg-type]


def test_kvsharer_takes_the_least_alike_pairs_and_the_upper_one_reads() -> None:
    made = Made(distances((6, 1), (2, 5)))
    plan = chosen(KVSharer(num_shared=2), made)
    assert sources(plan) == {6: 1, 5: 2}
    assert plan.compensated == ()
    assert costs.kv_retain_rate(plan, toy_shape(LAYERS), length=64) == 0.75
    assert chosen(KVSharer(num_shared=2, compensation=True), made).compensated == (5, 6)


def test_kvsharer_drops_a_pair_that_changes_the_end_too_much_and_a_layer_shares_once() -> None:
    made = Made(distances((6, 1), (6, 2), (5, 2), (4, 3)), frozenset({5}))
    assert sources(chosen(KVSharer(num_shared=2), made)) == {6: 1, 4: 3}
    assert made.tried == [{6: 1}, {6: 1, 5: 2}, {6: 1, 4: 3}]


def test_kvsharer_follows_a_source_that_shares_itself() -> None:
    """Layer 6 reads 3, which then reads 0; and layer 7 would read 3, so reads 0 as well."""
    plan = chosen(KVSharer(num_shared=3), Made(distances((6, 3), (3, 0), (7, 3))))
    assert sources(plan) == {6: 0, 3: 0, 7: 0}


def test_kvsharer_passes_over_what_windows_rule_out_and_says_when_too_few_are_left() -> None:
    windowed = toy_shape(LAYERS, [4 if index == 1 else None for index in range(LAYERS)])
    made = Made(distances((6, 1), (5, 2)))
    assert sources(KVSharer(num_shared=1).choose(windowed, made)) == {5: 2}  # type: ignore[arg-type]
    with pytest.raises(PlanError, match=r"of 3 layers only 0 can share .* above 0\.95 with .*num_shared"):
        chosen(KVSharer(num_shared=3, threshold=0.95), Made(distances()))
    with pytest.raises(PlanError, match="num_shared is 8; at most 7"):
        KVSharer(num_shared=8).check(toy_shape(LAYERS))
    with pytest.raises(PlanError, match="by measurement"):
        KVSharer().compile(toy_shape(LAYERS))


@given(st.integers(2, 40), st.data())
def test_yoco_leaves_one_cache_for_all_layers_above_its_source(num_layers: int, data: st.DataObject) -> None:
    shape = toy_shape(num_layers)
    source = data.draw(st.none() | st.integers(0, num_layers - 2))
    if source is None and num_layers == 2:
        source = 0
    plan = YOCO(source=source).compile(shape)
    at = num_layers // 2 if source is None else source
    assert sources(plan) == dict.fromkeys(range(at + 1, num_layers), at)
    assert costs.kv_retain_rate(plan, shape, length=9) == pytest.approx((at + 1) / num_layers)
    assert YOCO(source=source, compensation=True).compile(shape).compensated == plan.operated


def test_shortgpt_leaves_out_the_blocks_that_its_ranking_says() -> None:
    assert chosen(ShortGPT(num_dropped=3), Made()).operated == (1, 3, 5)
    assert chosen(ShortGPT(num_dropped=3, ranking="run"), Made()).operated == (1, 2, 3)
    assert ShortGPT(num_dropped=3, ranking="top").compile(toy_shape(LAYERS)).operated == (4, 5, 6)
    given_blocks = ShortGPT(layers=[6, 2]).compile(toy_shape(LAYERS))
    assert [row.index for row in given_blocks.rows if row.role == "skip"] == [2, 6]
    assert given_blocks.compensated == ()
    assert ShortGPT(layers=[6, 2], compensation=True).compile(toy_shape(LAYERS)).compensated == (2, 6)


def test_replaceme_has_one_w_c_per_run() -> None:
    plan = chosen(ShortGPT(num_dropped=3, ranking="run", replace=True), Made())
    assert (plan.operated, plan.compensated, plan.replaced_until(1)) == ((1, 2, 3), (1,), 3)
    several = ShortGPT(layers=[2, 3, 5, 0], replace=True).compile(toy_shape(LAYERS))
    assert {index: several.replaced_until(index) for index in several.compensated} == {0: 0, 2: 3, 5: 5}


def test_a_block_costs_a_layer() -> None:
    shape = toy_shape(LAYERS)
    plain, replaced = (ShortGPT(layers=[2, 3], replace=replace).compile(shape) for replace in (False, True))
    unmodified = LayerPlan.unmodified(LAYERS)
    layer = 64 + 32 + 32 + 64 + 8 + 192 + 8
    assert costs.parameters(unmodified, shape) - costs.parameters(plain, shape) == 2 * layer
    assert costs.parameters(replaced, shape) - costs.parameters(plain, shape) == 8 * 8
    assert costs.kv_retain_rate(replaced, shape, length=9) == 0.75


def test_llmdrop_ranks_by_nbls_bound() -> None:
    assert chosen(LLMDrop(num_dropped=2, ranking="cca"), Made()).operated == (4, 6)
    assert chosen(LLMDrop(num_dropped=2, ranking="cca", among="all"), Made()).operated == (2, 4)
    assert chosen(LLMDrop(num_dropped=2), Made()).operated == (6, 7)


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        (ShortGPT(), "needs num_dropped, or layers: a list of indices from 0 to 7"),
        (ShortGPT(layers=[1, 1]), "lists 1 more than once"),
        (ShortGPT(layers=[1], num_dropped=2), "layers or num_dropped, not both"),
        (ShortGPT(num_dropped=8), "of 8 blocks one must stay"),
        (ShortGPT(num_dropped=8, ranking="top"), "of 8 blocks one must stay"),
        (ShortGPT(num_dropped=2, compensation=True, replace=True), "compensation .* or replace .*, not both"),
        (ShortGPT(layers=list(range(LAYERS))), "no layer attends"),
        (YOCO(source=7), "source is 7; a layer above it has to read it. Allowed: 0, 1, 2, 3, 4, 5, 6."),
    ],
)
def test_options_that_do_not_fit_are_told_before_anything_is_measured(architecture: Architecture, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        architecture.check(toy_shape(LAYERS))


@pytest.mark.parametrize(
    ("architecture", "attending", "message"),
    [
        (YOCO(), (3,), r"source is 3; .* Allowed: none, as layer 3 alone attends\."),
        (SharedAttention(last_layer=4), (2, 6), r"no layer above first_layer, 2, and up to last_layer, 4, attends\."),
        (SharedAttention(first_layer=0), (2, 6), r"layer 6 reads from layer 0, which has no attention in this model\."),
    ],
)
def test_of_a_hybrid_layers_that_do_not_attend_are_no_sources(
    architecture: Architecture, attending: tuple[int, ...], message: str
) -> None:
    with pytest.raises(PlanError, match=message):
        architecture.check(hybrid_shape(attending))


def test_of_a_hybrid_the_layers_that_attend_are_taken() -> None:
    shape = hybrid_shape((2, 4, 6))
    assert sources(SharedAttention().compile(shape)) == {4: 2, 6: 2}
    assert sources(YOCO().compile(shape)) == {6: 4}
