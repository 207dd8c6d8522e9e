"""Training of the 8B shape on one card, stage 1 and low-rank updates: tokens per second, MFU, memory."""

from __future__ import annotations

from typing import Any

import torch
from benchmarks.gpu.models import build
from benchmarks.gpu.result_file import CheckOptions, PartRows
from benchmarks.gpu.train import train

from uniattn_pl.config.sections.training_section import StageConfig
from uniattn_pl.families.model_shape import shape_of
from uniattn_pl.modeling.lora import lora_config
from uniattn_pl.plan.training_memory import training_memory
from uniattn_pl.training.callbacks.throughput import Throughput, flops_per_token, peak_flops
from uniattn_pl.training.lightning_module import PostTrainingModule

LORA_RANK = 16
SCORED = 0.5  # of the tokens, responses, as `train` makes them


def measure(rows: PartRows, options: CheckOptions) -> None:
    """A row for stage 1 and one for low-rank updates, in bfloat16, with activations recomputed."""
    for stage, rank in ((1, None), (2, LORA_RANK)):
        name = "stage 1" if rank is None else f"LoRA, rank {rank}"
        rows.attempt(lambda s=stage, r=rank, n=name: _train_one(rows, options, s, r, n), what="training", case=name)


def _train_one(rows: PartRows, options: CheckOptions, stage: int, rank: int | None, name: str) -> None:
    steps, batch, length = (3, 2, 64) if options.tiny else (20, 2, 1024)
    device = options.device
    count = 2 if options.tiny else 4
    model: Any = build(device, tiny=options.tiny, architecture="uniattn", superblock_size=count, num_superblocks=count)
    shape, plan = shape_of(model.config), model.layer_plan
    model.activation_checkpointing_enable({"use_reentrant": False})
    if rank is not None:
        from peft import get_peft_model

        model = get_peft_model(model, lora_config(model, rank=rank), autocast_adapter_dtype=False)
    module, throughput = PostTrainingModule(model, stage=stage, options=StageConfig()), Throughput()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    losses = train(
        module,
        device=device,
        steps=steps,
        batch=batch,
        length=length,
        vocabulary=shape.vocab_size,
        callbacks=[throughput],
        precision="bf16-true",
    )
    estimate = training_memory(
        plan,
        shape,
        stage=stage,
        micro_batch_size=batch,
        length=length,
        weight_bytes=2,
        activation_bytes=2,
        gradient_checkpointing=True,
        scored_fraction=SCORED,
        lora_rank=rank,
    )
    speed, peak = throughput.tokens_per_second, peak_flops(torch.device(device))
    rows.note(
        what="training",
        case=name,
        steps=len(losses),
        batch=batch,
        tokens=length,
        tokens_per_second=speed,
        step_seconds=throughput.step_seconds,
        mfu=None if peak is None or speed is None else speed * flops_per_token(module) / peak,
        peak_bytes=torch.cuda.max_memory_allocated() if device == "cuda" else None,
        estimated_bytes=estimate.total,
        losses=[losses[0], losses[-1]],
    )
