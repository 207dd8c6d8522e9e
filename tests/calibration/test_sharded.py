"""Ranks that calibrate on a share of the batches each get the weights of one process with all of them."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from tests.calibration.test_calibrate import PLANS, batches
from tests.parity import stock_llama

from uniattn_pl.calibration import calibrate
from uniattn_pl.calibration.refinement import Refinement
from uniattn_pl.modeling.conversion.convert import converted_copy
from uniattn_pl.plan import AUTO_RANK, LayerPlan

DRIVER = Path(__file__).with_name("sharded_driver.py")
ROOT = DRIVER.parents[2]


@pytest.mark.parametrize(
    ("initialiser", "thin"), [("joint_least_squares", None), ("joint_least_squares", AUTO_RANK), ("theorem37", None)]
)
def test_two_ranks_give_the_weights_of_one_process(initialiser: str, thin: str | None, tmp_path: Path) -> None:
    outputs = [tmp_path / f"rank{rank}.pt" for rank in range(2)]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}/src:{ROOT}", "OMP_NUM_THREADS": "1"}
    command, words = [sys.executable, str(DRIVER)], [initialiser, *([thin] if thin else [])]
    processes = [
        subprocess.Popen([*command, str(rank), "2", str(tmp_path / "meet"), str(output), *words], env=environment)
        for rank, output in enumerate(outputs)
    ]
    data, original = batches(padded=True), stock_llama()
    model = converted_copy(original, PLANS["mixed"].limit_rank(thin))
    options = {"initialiser": initialiser, "ridge": "auto", "head_alignment": "output_error"}
    options |= {"refinement": Refinement(5, 1e-3, feed_forward=True)}
    report = calibrate(original, model, data[:2], data[2:], **options)  # type: ignore[arg-type]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    # The pseudo-inverse of Theorem 3.7 amplifies the order of summation.
    tolerance = 1e-5 if initialiser == "joint_least_squares" else 2e-2
    for output in outputs:
        found = torch.load(output, weights_only=True)
        assert LayerPlan.from_dict(found["plan"]) == model.layer_plan
        assert any(row["rank"] for row in found["report"]["rows"]) == (thin is not None)
        for name, expected in model.state_dict().items():
            assert (found["weights"][name] - expected).norm() <= tolerance * expected.norm(), name
        assert found["report"]["tokens"] == report.tokens
        assert found["report"]["held_out_tokens"] == report.held_out_tokens
        for row, expected in zip(found["report"]["rows"], asdict(report)["rows"], strict=True):
            assert numbers(row) == pytest.approx(numbers(expected), rel=1e-2 if initialiser == "theorem37" else 1e-4)
    first, second = (torch.load(output, weights_only=True)["weights"] for output in outputs)
    assert all(torch.equal(first[name], second[name]) for name in first)


def numbers(row: dict[str, float | None]) -> dict[str, float]:
    """A layer of the report; a full W_c as rank 0."""
    return {name: 0 if value is None else value for name, value in row.items()}
