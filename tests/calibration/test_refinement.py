"""`calibration.refine`: steps of Adam behind the closed form of each layer, kept where held-out batches gain."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.calibration.test_calibrate import PLANS, UNMODIFIED, batches
from tests.calibration.test_resume import stop_after
from tests.parity import stock_llama
from transformers import PreTrainedModel

from uniattn_pl.calibration import CalibrationReport, calibrate
from uniattn_pl.calibration.refinement import Refinement
from uniattn_pl.errors import UserError
from uniattn_pl.losses.divergence import cosine_error, relative_error
from uniattn_pl.modeling.conversion.convert import converted_copy
from uniattn_pl.plan import LayerPlan

ERRORS = {"relative": relative_error, "cosine": cosine_error}


def run(
    plan: LayerPlan, refinement: Refinement | None, record: Path | None = None, **options: object
) -> tuple[PreTrainedModel, CalibrationReport]:
    """Judged on the batches that are fitted: random tokens have nothing in common that others could gain by."""
    data, original = batches(padded=True)[:3], stock_llama()
    model = converted_copy(original, plan)
    options = {"refinement": refinement, "record": record, "ridge": 0.1, **options}
    return model, calibrate(original, model, data, data, **options)  # type: ignore[arg-type]


@torch.no_grad()
def error_behind(model: PreTrainedModel, layer: int, error: str) -> float:
    """Of what leaves a layer in ordinary forwards of both models, summed over tokens."""
    total, original = 0.0, stock_llama()
    for batch in batches(padded=True)[:3]:
        seen: list[torch.Tensor] = []
        for one in (model, original):
            handle = one.model.layers[layer].register_forward_hook(lambda _, __, output, seen=seen: seen.append(output))
            one(**batch)
            handle.remove()
        own, wanted = (states[batch["attention_mask"].bool()] for states in seen)
        total += float(ERRORS[error](own, wanted))
    return total


def only(plan: LayerPlan, layer: int) -> LayerPlan:
    """The plan with this W_c alone, so that what enters its layer is the same however it is fitted."""
    bare = {row.index: replace(row, compensation=None) for row in plan.rows if row.index != layer}
    return plan.with_rows(bare)


CASES = {
    "reuse": (only(PLANS["reuse"], 7), 7),
    "drop": (only(PLANS["drop"], 6), 6),
    "mixed": (only(PLANS["mixed"], 6), 6),
    "one for a run of blocks": (UNMODIFIED.skip([5], compensated=True).skip([6], compensated=False), 6),
}
"""Name -> a plan with one W_c, and the layer behind which what it repairs to is measured."""


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("name", CASES)
def test_it_lowers_its_error_behind_the_layer(name: str, error: str) -> None:
    plan, behind = CASES[name]
    closed, _ = run(plan, None)
    refined, report = run(plan, Refinement(24, 1e-3, error))
    assert report.rows[-1].refined
    assert error_behind(refined, behind, error) < 0.999 * error_behind(closed, behind, error)
    assert any(line.endswith("   refined") for line in report.lines())


@pytest.mark.parametrize("rank", [None, "auto"])
def test_what_harms_is_not_kept(rank: str | None) -> None:
    plan = PLANS["mixed"].limit_rank(rank)
    closed, expected = run(plan, None)
    refined, report = run(plan, Refinement(3, 10.0))
    assert [row.refined for row in report.rows] == [False] * len(plan.compensated)
    assert [replace(row, refined=None) for row in report.rows] == list(expected.rows)
    for (name, weight), other in zip(refined.state_dict().items(), closed.state_dict().values(), strict=True):
        assert torch.equal(weight, other), name


def test_it_trains_what_the_initialiser_fits_and_no_weight_of_the_original() -> None:
    for initialiser, parts in (("joint_least_squares", {"w_c.weight", "o_proj.weight"}), ("zero", {"w_c.weight"})):
        plan, untouched = only(PLANS["reuse"], 7), stock_llama().state_dict()
        closed, _ = run(plan, None, initialiser=initialiser)
        refined, report = run(plan, Refinement(24, 1e-3), initialiser=initialiser)
        assert report.rows[0].refined
        before, after = closed.state_dict(), refined.state_dict()
        changed = {name for name in before if not torch.equal(before[name], after[name])}
        assert changed == {f"model.layers.7.self_attn.{part}" for part in parts}
        assert all(torch.equal(weight, untouched[name]) for name, weight in stock_llama().state_dict().items())


def test_with_the_feed_forward_it_lowers_its_error_further_by_w_down() -> None:
    plan, behind = CASES["drop"]
    without, _ = run(plan, Refinement(24, 1e-3))
    refined, report = run(plan, Refinement(24, 1e-3, feed_forward=True))
    assert report.rows[-1].refined
    assert error_behind(refined, behind, "relative") < 0.999 * error_behind(without, behind, "relative")
    fixed = without.state_dict()
    changed = {name for name, weight in refined.state_dict().items() if not torch.equal(weight, fixed[name])}
    assert changed == {f"model.layers.6.{part}" for part in ("self_attn.w_c.weight", "mlp.down_proj.weight")}
    untouched = stock_llama().state_dict()
    assert torch.equal(untouched["model.layers.6.mlp.down_proj.weight"], fixed["model.layers.6.mlp.down_proj.weight"])


def test_a_layer_without_a_feed_forward_is_refined_without_it() -> None:
    plan, _ = CASES["one for a run of blocks"]
    without, _ = run(plan, Refinement(4, 1e-3))
    refined, _ = run(plan, Refinement(4, 1e-3, feed_forward=True))
    for (name, weight), other in zip(refined.state_dict().items(), without.state_dict().values(), strict=True):
        assert torch.equal(weight, other), name


def test_a_stopped_pass_ends_with_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan, refinement = PLANS["mixed"], Refinement(8, 1e-3, feed_forward=True)
    expected, whole = run(plan, refinement)
    with monkeypatch.context() as patch:
        stop_after(patch, 1)
        with pytest.raises(KeyboardInterrupt):
            run(plan, refinement, tmp_path)
    steps: list[tuple[int, int]] = []
    model, report = run(plan, refinement, tmp_path, progress=lambda done, total, _: steps.append((done, total)))
    assert report == whole
    assert steps[-1][0] == steps[-1][1]
    for (name, weight), other in zip(model.state_dict().items(), expected.state_dict().values(), strict=True):
        assert torch.equal(weight, other), name
    with pytest.raises(UserError, match="belongs to a calibration with another refinement"):
        run(plan, Refinement(9, 1e-3), tmp_path)


def test_without_held_out_batches_nothing_could_be_judged() -> None:
    data, original = batches(), stock_llama()
    with pytest.raises(UserError, match="judged on held-out batches, and there are none"):
        calibrate(original, converted_copy(original, PLANS["drop"]), data, [], refinement=Refinement(1))
