"""Merged heads that are fitted: what queries and W_o can undo costs nothing, and the rest less than the mean does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.parity import stock_llama
from tests.search.test_search import batches
from tests.tiny_models import UNMODIFIED, stock, tokens
from transformers import AutoModelForCausalLM

from uniattn_pl.calibration import calibrate
from uniattn_pl.calibration.fitted_heads import InputGram, fitted_heads
from uniattn_pl.calibration.weights import write_weights
from uniattn_pl.modeling.conversion.convert import converted_copy
from uniattn_pl.plan import LayerPlan, PlanError
from uniattn_pl.plan.changes import Change

LAYER, SIZE = 2, 8  # of tests/tiny_models.py: 4 heads over 2 of size 8
IDS = tokens(8, 24)
EVERY = torch.ones(IDS.shape, dtype=torch.bool)
FITTED = LayerPlan.unmodified(8).merge_heads([3, 5, 6], 1, compensated=True, merge="fit")


@torch.no_grad()
def errors(original: Any) -> tuple[float, float]:
    """The relative error of one attention's output whose heads are merged by their mean, and by the fit."""
    attention, seen, outputs = original.model.layers[LAYER].self_attn, {}, []
    handles = [
        attention.register_forward_pre_hook(lambda _, args, kwargs: seen.update(kwargs), with_kwargs=True),
        attention.register_forward_hook(lambda _, args, output: outputs.append(output[0])),
    ]
    original(IDS, use_cache=False)
    for handle in handles:
        handle.remove()
    gram = InputGram()
    gram.add(seen["hidden_states"], EVERY)
    model = converted_copy(original, UNMODIFIED.merge_heads([LAYER], 1, compensated=False))
    merged = model.model.layers[LAYER].self_attn
    merged.register_forward_hook(lambda _, args, output: outputs.append(output[0]))
    model(IDS, use_cache=False)
    write_weights(merged, fitted_heads(attention, gram, 1), attention)
    model(IDS, use_cache=False)
    by_mean, by_fit = (float((output - outputs[0]).norm() / outputs[0].norm()) for output in outputs[1:])
    return by_mean, by_fit


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_heads_that_differ_by_what_can_be_undone_are_merged_without_loss(family: str) -> None:
    model = stock(family)
    attention = model.model.layers[LAYER].self_attn
    generator = torch.Generator().manual_seed(0)
    factors = torch.randn(SIZE // 2, 2, generator=generator)
    real, imaginary = torch.diag(factors[:, 0]), torch.diag(factors[:, 1])
    turned = torch.cat([torch.cat([real, -imaginary], 1), torch.cat([imaginary, real], 1)])  # by pair, a factor
    mixed = torch.randn(SIZE, SIZE, generator=generator)
    for projection, change in ((attention.k_proj, turned), (attention.v_proj, mixed)):
        for parameter in projection.parameters():
            parameter.data[SIZE:] = change @ parameter.data[:SIZE]
    by_mean, by_fit = errors(model)
    assert by_fit < 1e-4
    assert by_mean > 0.1


@pytest.mark.parametrize("family", ["llama", "qwen2", "phi3", "gemma2", "qwen3", "olmo2"])
def test_random_heads_lose_less_by_the_fit_than_by_the_mean(family: str) -> None:
    by_mean, by_fit = errors(stock(family))
    assert by_fit < 0.75 * by_mean


def test_a_calibration_merges_as_it_fits_and_what_it_made_is_saved(tmp_path: Path) -> None:
    original = stock_llama()
    before = {key: tensor.clone() for key, tensor in original.state_dict().items()}
    fitted = converted_copy(original, FITTED)
    report = calibrate(original, fitted, batches(), batches()[:1])
    mean = converted_copy(original, LayerPlan.unmodified(8).merge_heads([3, 5, 6], 1, compensated=True))
    assert report.error_after < calibrate(original, mean, batches(), batches()[:1]).error_after
    assert all(torch.equal(tensor, before[key]) for key, tensor in original.state_dict().items())
    fitted.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert loaded.layer_plan == FITTED
    ids = batches()[0]["input_ids"]
    torch.testing.assert_close(loaded(ids).logits, fitted(ids).logits, rtol=0, atol=0)


def test_a_killed_calibration_goes_on_with_the_heads_it_had_merged(tmp_path: Path) -> None:
    original = stock_llama()
    whole, killed, resumed = (converted_copy(original, FITTED) for _ in range(3))
    calibrate(original, whole, batches(), batches()[:1])
    done: list[int] = []

    def kill(number: int, total: int, text: str) -> None:
        done.append(number)
        if text == "layer 6":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        calibrate(original, killed, batches(), batches()[:1], record=tmp_path, progress=kill)
    calibrate(original, resumed, batches(), batches()[:1], record=tmp_path)
    for name, expected in whole.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], expected, rtol=0, atol=1e-6)


def test_its_progress_ends_at_its_total() -> None:
    original, seen = stock_llama(), []
    model = converted_copy(original, FITTED)
    calibrate(original, model, batches(), batches()[:1], progress=lambda *what: seen.append(what[:2]))
    assert seen[-1][0] == seen[-1][1]


def test_it_is_a_layers_own_and_needs_a_compensation() -> None:
    plan = UNMODIFIED.merge_heads([1], 1, compensated=True, merge="fit")
    assert LayerPlan.from_dict(plan.to_dict()) == plan
    assert plan.to_dict()["rows"][0]["merge"] == "fit"
    with pytest.raises(PlanError, match="layer 1 fits merged heads with a W_c, of which it lacks one or the other"):
        UNMODIFIED.merge_heads([1], 1, compensated=False, merge="fit")
    with pytest.raises(PlanError, match="layer 1 merges heads by 'median'; allowed: mean, fit"):
        UNMODIFIED.merge_heads([1], 1, compensated=True, merge="median")
    changed = [Change(1, "heads:1").apply(UNMODIFIED, compensated=compensated) for compensated in (True, False)]
    assert [changed[0].rows[1].merge, changed[1].rows[1].merge] == ["fit", "mean"]
