"""What plans cost on the shape of Llama-3.1-8B: time to first token, time per token, memory, sequences that fit."""

from __future__ import annotations

import statistics
from typing import Any

import torch
from benchmarks.gpu.clock import busy_ms, wall_seconds
from benchmarks.gpu.models import STEPPED, build, compared_models
from benchmarks.gpu.result_file import CheckOptions, PartRows

import uniattn_pl
from uniattn_pl.families.model_shape import shape_of
from uniattn_pl.inference.compiled_decoding import static_cache
from uniattn_pl.inference.prefill import prefill
from uniattn_pl.plan import LayerPlan, costs

STEPS, FIRST_STEPS = 10, 3  # of decoding; those left out of the median, which tune or plan
TINY_ROOM = 2**22  # bytes that a CPU is taken to have for caches
SHRINK = 0.96


def measure(rows: PartRows, options: CheckOptions) -> None:
    """All of one model before the next is built; the models in the order of what is asked first."""
    for name, settings in compared_models(tiny=options.tiny).items():
        rows.attempt(
            lambda n=name, s=settings: measure_model(rows, options, n, build(options.device, tiny=options.tiny, **s)),
            what="model",
            model=name,
        )


def measure_model(rows: PartRows, options: CheckOptions, name: str, model: Any) -> None:
    """Prompts, steps and capacity of one model."""
    device, lengths, batches, context = options.device, (8192, 32768), (1, 8, 32), 8192
    if options.tiny:
        lengths, batches, context = (64, 256), (1, 2, 3), 64
    for length in lengths:
        case = {"what": "ttft", "model": name, "tokens": length}
        rows.attempt(lambda n=length, c=case: rows.note(**c, **first_token(model, n, device)), **case)
    if name not in STEPPED:
        return
    for batch in batches:
        case = {"what": "tpot", "model": name, "batch": batch, "context": context}
        rows.attempt(lambda b=batch, c=case: dynamic_steps(rows, model, b, context, device, c), **case)
    for kind in ("dynamic", "static"):
        case = {"what": "capacity", "model": name, "context": context, "cache": kind}
        rows.attempt(lambda k=kind, c=case: rows.note(**c, **most_sequences(model, context, device, k)), **case)


def planned(model: Any) -> LayerPlan:
    """The model's plan; a stock model's changes nothing."""
    plan: LayerPlan = getattr(model, "layer_plan", None) or LayerPlan.unmodified(model.config.num_hidden_layers)
    return plan


def predicted_bytes(model: Any, batch: int, length: int) -> dict[str, int]:
    """What the plan says of weights and cache."""
    plan, shape = planned(model), shape_of(model.config)
    size = {"batch_size": batch, "length": length, "bytes_per_element": model.dtype.itemsize}
    return {
        "predicted_weight_bytes": costs.parameters(plan, shape) * model.dtype.itemsize,
        "predicted_kv_bytes": costs.kv_cache_bytes(plan, shape, **size),
    }


def token_ids(model: Any, batch: int, length: int) -> torch.Tensor:
    """Random tokens [B, L]."""
    return torch.randint(0, model.config.vocab_size, (batch, length), device=model.device)


@torch.no_grad()
def first_token(model: Any, length: int, device: str) -> dict[str, Any]:
    """The median of three prefills after one, the peak of memory, and what the plan had said of it."""
    ids, is_stock = token_ids(model, 1, length), not hasattr(model, "layer_plan")
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    kv_bytes = 0

    def work() -> None:
        nonlocal kv_bytes
        output = model(ids, logits_to_keep=1, use_cache=True) if is_stock else prefill(model, ids)
        kv_bytes = uniattn_pl.kv_cache_bytes(output.past_key_values)

    times = [wall_seconds(work, device) for _ in range(4)]
    peak = torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else None
    facts = {"seconds": statistics.median(times[1:]), "all": times, "peak_gib": peak, "kv_bytes": kv_bytes}
    return facts | predicted_bytes(model, 1, length)


@torch.no_grad()
def filled_cache(model: Any, context: int, batch: int) -> Any:
    """A growing cache of one random text of `context` tokens, as often as there are sequences."""
    cache = prefill(model, token_ids(model, 1, context), chunk_size=context).past_key_values
    cache.batch_repeat_interleave(batch)
    return cache


@torch.no_grad()
def dynamic_steps(rows: PartRows, model: Any, batch: int, context: int, device: str, case: dict[str, Any]) -> None:
    """Steps over a growing cache, with cuDNN's attention, which plans for every new length, and without."""
    cache = filled_cache(model, context, batch)
    ids = token_ids(model, batch, 1)

    def step() -> None:
        model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)

    try:
        for cudnn in (True, False) if batch == 1 else (False,):
            torch.backends.cuda.enable_cudnn_sdp(cudnn)
            times = [wall_seconds(step, device) for _ in range(STEPS)]
            facts = {"ms": 1000 * statistics.median(times[FIRST_STEPS:]), "gpu_ms": busy_ms(step, device), "all": times}
            rows.note(**case, cache="dynamic", cudnn=cudnn, **facts, kv_gib=uniattn_pl.kv_cache_bytes(cache) / 2**30)
    finally:
        torch.backends.cuda.enable_cudnn_sdp(True)


@torch.no_grad()
def most_sequences(model: Any, context: int, device: str, kind: str) -> dict[str, Any]:
    """The most sequences over which one token can be decoded, beside what the free memory holds by the plan."""
    per_sequence = predicted_bytes(model, 1, context)["predicted_kv_bytes"]
    room = torch.cuda.mem_get_info()[0] if device == "cuda" else TINY_ROOM
    predicted = count = room // per_sequence
    while count > 0 and not _fits(model, context, count, kind):
        count = min(count - 1, int(SHRINK * count))
    return {"sequences": count, "predicted": predicted, "kv_bytes_of_one": per_sequence, "room_bytes": room}


def _fits(model: Any, context: int, count: int, kind: str) -> bool:
    """Whether a step over so many sequences finds room."""
    cache: Any = None
    try:
        # of a static cache all is allocated by the first token
        cache = static_cache(model, context) if kind == "static" else filled_cache(model, context, count)
        model(token_ids(model, count, 1), past_key_values=cache, use_cache=True, logits_to_keep=1)
    except torch.cuda.OutOfMemoryError:
        return False
    finally:
        del cache
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return True
