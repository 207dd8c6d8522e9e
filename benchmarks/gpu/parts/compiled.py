"""Decoding by a compiled step over a static cache, as `generate --compile` does it: what launches do not hide."""

from __future__ import annotations

import statistics
from typing import Any

import torch
from benchmarks.gpu.clock import busy_ms, wall_seconds
from benchmarks.gpu.models import STOCK, build, compared_models
from benchmarks.gpu.result_file import CheckOptions, PartRows

import uniattn_pl
from uniattn_pl.inference.compiled_decoding import check_compilable, static_cache, step_config

RECORDED_STEPS, TIMED_STEPS = 4, 10  # the first of them compile, and record the graph
CHUNK = 1024  # of the prompts, so that little is in flight
COMPARED = (STOCK, "uniattn")


def measure(rows: PartRows, options: CheckOptions) -> None:
    """A row per model at each batch, of which the largest matters most; compiling a model takes most of the time."""
    context, batches = (64, (2,)) if options.tiny else (8192, (32, 1))
    models = compared_models(tiny=options.tiny)
    for batch in batches:
        for name in COMPARED[-1:] if options.tiny else COMPARED:
            case = {"what": "tpot", "model": name, "batch": batch, "context": context, "cache": "static, compiled"}
            rows.attempt(
                lambda b=batch, m=models[name], c=case: rows.note(**c, **compiled_steps(options, m, b, context)), **case
            )


@torch.no_grad()
def compiled_steps(options: CheckOptions, settings: dict[str, Any], batch: int, context: int) -> dict[str, Any]:
    """Times of single steps behind a prompt of `context` random tokens of each sequence."""
    model: Any = build(options.device, tiny=options.tiny, **settings)
    check_compilable(model)
    config = step_config(model.device)
    if options.tiny:
        config.backend, config.mode = "eager", None  # traced, but not compiled: that takes a CPU a minute
    step = model.get_compiled_call(config)
    cache = static_cache(model, context + RECORDED_STEPS + 2 * TIMED_STEPS)
    ids = torch.randint(0, model.config.vocab_size, (batch, context), device=model.device)
    for row in range(0, context, CHUNK):
        model(ids[:, row : row + CHUNK], past_key_values=cache, use_cache=True, logits_to_keep=1)

    def work() -> None:
        step(input_ids=ids[:, :1].clone(), past_key_values=cache, use_cache=True, logits_to_keep=1)

    for _ in range(RECORDED_STEPS):
        work()
    times = [wall_seconds(work, options.device) for _ in range(TIMED_STEPS)]
    facts = {"ms": 1000 * statistics.median(times), "gpu_ms": busy_ms(work, options.device), "all": times}
    kv_gib = uniattn_pl.kv_cache_bytes(cache) / 2**30
    torch.compiler.reset()
    return {**facts, "kv_gib": kv_gib}
