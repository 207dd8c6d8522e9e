"""One rank of a sharded calibration: sharded_driver.py RANK WORLD_SIZE RENDEZVOUS OUTPUT INITIALISER [RANK_OF_W_C]."""

from __future__ import annotations

import sys
from dataclasses import asdict

import torch
from tests.calibration.test_calibrate import PLANS, batches
from tests.parity import stock_llama
from torch import distributed

from uniattn_pl.calibration import calibrate
from uniattn_pl.calibration.refinement import Refinement
from uniattn_pl.modeling.conversion.convert import converted_copy

rank, world_size, rendezvous, output, initialiser, *thin = sys.argv[1:]
distributed.init_process_group("gloo", f"file://{rendezvous}", rank=int(rank), world_size=int(world_size))
data = batches(padded=True)
fitted, held_out = data[:2], data[2:]
original = stock_llama()
model = converted_copy(original, PLANS["mixed"].limit_rank(thin[0] if thin else None))
report = calibrate(
    original,
    model,
    fitted,
    held_out,
    initialiser=initialiser,
    ridge="auto",
    head_alignment="output_error",
    refinement=Refinement(5, 1e-3, feed_forward=True),
    rank=int(rank),
    world_size=int(world_size),
)
torch.save({"weights": model.state_dict(), "report": asdict(report), "plan": model.layer_plan.to_dict()}, output)
distributed.destroy_process_group()
