"""Layers with fewer KV heads or a window are fitted like others: W_c and W_o repair most of what they lose."""

from __future__ import annotations

import pytest
import torch
from tests.parity import stock_llama
from tests.search.test_search import batches
from tests.tiny_models import stock

from uniattn_pl.calibration import calibrate
from uniattn_pl.families.model_shape import shape_of
from uniattn_pl.modeling.conversion.convert import converted_copy
from uniattn_pl.plan import LayerPlan
from uniattn_pl.plan.cost_ratio import Cost
from uniattn_pl.search.greedy import GreedySearch, SearchSettings
from uniattn_pl.search.unified_streams import UnifiedStreams

PLAIN = LayerPlan.unmodified(8)
PLANS = {
    "heads": PLAIN.merge_heads([3, 5, 6], 1, compensated=True),
    "window": PLAIN.limit_window([3, 5, 6], 6, 2, compensated=True),
    "read": PLAIN.merge_heads([3], 1, compensated=True)
    .reuse([4], 3, compensated=True)
    .share_kv([6], 3, compensated=True),
}


@pytest.mark.parametrize("name", PLANS)
def test_the_fit_repairs_a_part_of_the_error_and_the_original_stays(name: str) -> None:
    original = stock_llama()
    before = {key: tensor.clone() for key, tensor in original.state_dict().items()}
    model = converted_copy(original, PLANS[name])
    report = calibrate(original, model, batches(), batches()[:1])
    assert [row.layer for row in report.rows] == list(PLANS[name].compensated)
    assert report.error_after < 0.85 * report.error_before
    assert all(torch.equal(tensor, before[key]) for key, tensor in original.state_dict().items())


@pytest.mark.parametrize("family", ["phi3", "gemma3_text", "olmo2"])
def test_other_families_are_fitted_too(family: str) -> None:
    original = stock(family)
    plan = LayerPlan.unmodified(6).merge_heads([1, 3], 1, compensated=True).limit_window([5], 3, compensated=True)
    model = converted_copy(original, plan)
    ids = torch.randint(3, 64, (12, 20), generator=torch.Generator().manual_seed(0))
    fitted = [{"input_ids": part, "attention_mask": torch.ones_like(part)} for part in ids.split(4)]
    report = calibrate(original, model, fitted, fitted[:1])
    assert report.error_after < report.error_before


@torch.no_grad()
def test_a_search_takes_them_and_measures_what_the_plan_then_loses() -> None:
    original = stock_llama()
    streams = UnifiedStreams(original, batches(), batches(), initialiser="joint_least_squares", ridge=1e-2)
    settings = SearchSettings(("heads:1", "window:16+2"), Cost("kv_bytes", 96), budget=0.8, candidates=4)
    points = GreedySearch(streams, shape_of(original.config), settings).run()
    roles = {row.role for row in LayerPlan.from_dict(points[-1].plan).rows}
    assert roles <= {"full", "heads", "window"}
    assert len(roles) > 1
    assert points[-1].cost <= 0.8
    again = streams.model(LayerPlan.from_dict(points[-1].plan))
    total = count = 0.0
    for batch in batches():
        logits = again(batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
        labels = batch["labels"][:, 1:]
        total += torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum").item()
        count += int((labels != -100).sum())
    assert points[-1].score == pytest.approx(total / count, abs=1e-4)
