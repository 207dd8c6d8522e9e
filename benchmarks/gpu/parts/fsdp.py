"""FSDP2 on one rank: NCCL on a card, gloo on a CPU; its losses are those of a fit that shards nothing."""

from __future__ import annotations

import torch
from benchmarks.gpu.models import build
from benchmarks.gpu.result_file import CheckOptions, PartRows
from benchmarks.gpu.train import train

from uniattn_pl.config.sections.training_section import StageConfig
from uniattn_pl.training.callbacks.sharding import Sharding
from uniattn_pl.training.lightning_module import PostTrainingModule
from uniattn_pl.training.strategies import ShardedStrategy

STEPS, BATCH, LENGTH = 4, 2, 64
CLOSE = 1e-4  # both compute in float32; sums are taken in another order


def measure(rows: PartRows, options: CheckOptions) -> None:
    """A row per stage: backend, losses with shards and without."""
    backend = "nccl" if options.device == "cuda" else "gloo"
    for stage in (1, 2):

        def work(stage: int = stage) -> None:
            whole, shared = (losses(options.device, stage, sharded=sharded) for sharded in (False, True))
            difference = max(abs(a - b) for a, b in zip(whole, shared, strict=True))
            rows.note(what="fsdp", stage=stage, backend=backend, losses=shared, unsharded=whole, difference=difference)
            if len(shared) != STEPS or difference > CLOSE:
                raise ValueError(f"losses with shards differ by {difference:.1e}, or there are not {STEPS} of them")

        rows.attempt(work, what="fsdp", stage=stage, backend=backend)


def losses(device: str, stage: int, *, sharded: bool) -> list[float]:
    """Response losses of a few optimizer steps of the small model, which is built the same each time."""
    shape = {"superblock_size": 2, "num_superblocks": 2}
    model = build(device, tiny=True, architecture="uniattn", dtype=torch.float32, **shape)
    return train(
        PostTrainingModule(model, stage=stage, options=StageConfig(learning_rate=1e-3)),
        device=device,
        steps=STEPS,
        batch=BATCH,
        length=LENGTH,
        vocabulary=model.config.vocab_size,
        callbacks=[Sharding(stage)] if sharded else [],
        strategy=ShardedStrategy(1, cpu_offload=False, sharded_checkpoints=False) if sharded else "auto",
    )
