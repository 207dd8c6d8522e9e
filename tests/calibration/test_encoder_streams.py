"""Calibration of encoder-decoder models: the decoder's layers advance by themselves as in whole forwards."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.families.test_encoder_decoders import PLANS
from tests.tiny_seq2seq import FAMILIES, seq2seq_batch, stock_seq2seq

from uniattn_pl.calibration import calibrate
from uniattn_pl.calibration.layers import capture, repaired_point
from uniattn_pl.calibration.mean_norm import MeanNorm
from uniattn_pl.families.anatomy import anatomy_of
from uniattn_pl.families.inspection import decoder_layers
from uniattn_pl.modeling.conversion.convert import converted_copy

LENGTHS = (((9, 6), (12, 8)), ((5, 8), (7, 10)), ((7, 3), (18, 9)), ((4, 4), (6, 11)))
BATCHES = [seq2seq_batch(*lengths) for lengths in LENGTHS]
FITTED, HELD_OUT = BATCHES[:3], BATCHES[3:]


@pytest.mark.parametrize("initialiser", ["least_squares", "joint_least_squares"])
@pytest.mark.parametrize("role", ["reuse", "drop", "mixed"])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_the_errors_it_reports_are_those_of_whole_forwards(family: str, role: str, initialiser: str) -> None:
    original = stock_seq2seq(family)
    model = converted_copy(original, PLANS[role])
    report = calibrate(original, model, FITTED, HELD_OUT, initialiser=initialiser, ridge=1e-3)
    assert [error.layer for error in report.rows] == list(PLANS[role].compensated)
    norm = anatomy_of(original.config).norm_after_attention
    for error in report.rows:
        row, mean = PLANS[role].rows[error.layer], MeanNorm()
        for batch in HELD_OUT:
            seen: dict[str, torch.Tensor] = {}
            for name, whole in (("original", original), ("unified", model)):
                with capture(repaired_point(decoder_layers(whole)[row.index], row, norm), seen, name):
                    whole(**batch, use_cache=False)
            mean.add(seen["original"] - seen["unified"], batch["decoder_attention_mask"].bool())
        assert error.after == pytest.approx(mean.value, rel=1e-4)


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
