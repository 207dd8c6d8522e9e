"""Calibration of encoder-decoder models: the decoder's layers advance by themselves as in whole forwards."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.families.test_encoder_decoders import PLANS
from tests.tiny_seq2seq import FAMILIES, seq2seq_batch, stock_seq2seq

from uniattn_pl.calibration import calibrate
from uniattn_pl.calibration.layers import WatchPoint, capture, repaired_point
from uniattn_pl.calibration.mean_norm import MeanNorm
from uniattn_pl.config.sections.calibration_section import LEAST_SQUARES
from uniattn_pl.families.anatomy import anatomy_of
from uniattn_pl.families.inspection import decoder_layers
from uniattn_pl.modeling.conversion.convert import converted_copy

LENGTHS = (((9, 6), (12, 8)), ((5, 8), (7, 10)), ((7, 3), (18, 9)), ((4, 4), (6, 11)))
BATCHES = [seq2seq_batch(*lengths) for lengths in LENGTHS]
FITTED, HELD_OUT = BATCHES[:3], BATCHES[3:]
BOTH_MAPS = PLANS["reuse"].reuse_cross_maps()
PLANS_OF = {
    **PLANS,
    "both maps": BOTH_MAPS,
    "late": BOTH_MAPS.place_compensation(input="attention_input", output="layer_output"),
}


@pytest.mark.parametrize(
    ("role", "initialiser"),
    [
        *((role, initialiser) for role in ("reuse", "drop", "mixed") for initialiser in LEAST_SQUARES),
        ("both maps", "joint_least_squares"),
        ("late", "least_squares"),
        ("skip", "least_squares"),
    ],
)
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_the_errors_it_reports_are_those_of_whole_forwards(family: str, role: str, initialiser: str) -> None:
    original, plan = stock_seq2seq(family), PLANS_OF[role]
    model = converted_copy(original, plan)
    report = calibrate(original, model, FITTED, HELD_OUT, initialiser=initialiser, ridge=1e-3)
    assert [error.layer for error in report.rows] == list(plan.compensated)
    anatomy = anatomy_of(original.config)
    for error in report.rows:
        row, mean = plan.rows[error.layer], MeanNorm()
        for batch in HELD_OUT:
            seen: dict[str, torch.Tensor] = {}
            for name, whole in (("original", original), ("unified", model)):
                with capture(repaired_point(decoder_layers(whole)[row.index], row, anatomy), seen, name):
                    whole(**batch, use_cache=False)
            mean.add(seen["original"] - seen["unified"], batch["decoder_attention_mask"].bool())
        assert error.after == pytest.approx(mean.value, rel=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_w_c_of_a_layer_with_both_maps_of_another_repairs_what_both_make_wrong(family: str) -> None:
    plan = PLANS["reuse"].drop([2, 5], compensated=False).reuse_cross_maps([3])
    few = seq2seq_batch((9, 6), (14, 12))  # fewer tokens than features: what is linear is repaired whole
    original = stock_seq2seq(family)
    model = converted_copy(original, plan)
    calibrate(original, model, [few], HELD_OUT, initialiser="least_squares", ridge=1e-9)
    layer, seen = 3, dict[str, torch.Tensor]()
    behind = {"t5": "layer.2.layer_norm", "t5gemma": "pre_feedforward_layernorm", "bart": "encoder_attn_layer_norm"}
    for name, whole in (("original", original), ("unified", model)):
        point = WatchPoint(decoder_layers(whole)[layer].get_submodule(behind[family]))  # behind both attentions
        with capture(point, seen, name):
            whole(**few, use_cache=False)
    text, error = few["decoder_attention_mask"].bool(), seen["original"] - seen["unified"]
    assert error[text].norm() < 1e-3 * seen["original"][text].norm()


def test_a_killed_pass_goes_on_and_other_texts_are_another_pass(tmp_path: Path) -> None:
    original = stock_seq2seq("t5")
    first, again = (converted_copy(original, PLANS["reuse"]) for _ in range(2))
    calibrate(original, first, FITTED, HELD_OUT, record=tmp_path)
    labels: list[str] = []
    calibrate(original, again, FITTED, HELD_OUT, record=tmp_path, progress=lambda _, __, label: labels.append(label))
    weights = again.state_dict()
    assert all(torch.equal(weights[name], tensor) for name, tensor in first.state_dict().items())
    others = [{**batch, "decoder_input_ids": batch["decoder_input_ids"].flip(1)} for batch in FITTED]
    with pytest.raises(Exception, match="another"):
        calibrate(original, converted_copy(original, PLANS["reuse"]), others, HELD_OUT, record=tmp_path)
