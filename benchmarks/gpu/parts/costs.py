"""What plans cost on the shape of Llama-3.1-8B: time to first token, time per token, memory, sequences that fit."""

from __future__ import annotations

import statistics
from typing import Any

import torch
from benchmarks.gpu.clock import busy_ms, wall_seconds
from benchmarks.gpu.models import PROMPTS_ONLY, STOCK, build, compared_models
from benchmarks.gpu.result_file import CheckOptions, PartRows
from transformers import DynamicCache, StaticCache

import uniattn_pl
from uniattn_pl.families.model_shape import shape_of
from uniattn_pl.inference.prefill import prefill
from uniattn_pl.plan import LayerPlan, costs

STEPS, FIRST_STEPS = 10, 3  # of decoding; those left out of the median, which tune, plan or compile
CHUNK = 1024  # in which caches are filled for decoding
TINY_ROOM = 2**22  # bytes that a CPU is taken to have for caches
SHRINK = 0.97


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
    device, lengths, batches, context, compiled = options.device, (8192, 32768), (1, 8, 32), 8192, (STOCK, "uniattn")
    if options.tiny:
        lengths, batches, context, compiled = (64, 256), (2,), 64, ("uniattn",)
    for length in lengths:
        case = {"what": "ttft", "model": name, "tokens": length}
        rows.attempt(lambda n=length, c=case: rows.note(**c, **first_token(model, n, device)), **case)
    if name in PROMPTS_ONLY:
        return
    for batch in batches:
        case = {"what": "tpot", "model": name, "batch": batch, "context": context}
        rows.attempt(lambda b=batch, c=case: dynamic_steps(rows, model, b, context, device, c), **case)
        if name in compiled and batch in (batches[0], batches[-1]):
            static = {**case, "cache": "static, compiled"}
            rows.attempt(
                lambda b=batch, c=static: rows.note(**c, **compiled_steps(model, b, context, device)), **static
            )
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
def filled_cache(model: Any, context: int, batch: int, cache: Any) -> Any:
    """A cache that holds `context` tokens of every sequence; chunks keep what is in flight small."""
    ids = token_ids(model, batch, context)
    for start in range(0, context, CHUNK):
        part = ids[:, start : start + CHUNK]
        positions = torch.arange(start, start + part.shape[1], device=ids.device)
        model(part, past_key_values=cache, use_cache=True, logits_to_keep=1, position_ids=positions[None])
    return cache


@torch.no_grad()
def dynamic_steps(rows: PartRows, model: Any, batch: int, context: int, device: str, case: dict[str, Any]) -> None:
    """Steps over a growing cache, with cuDNN's attention, which plans for every new length, and without."""
    cache = filled_cache(model, context, batch, DynamicCache(config=model.config))
    ids = token_ids(model, batch, 1)

    def step() -> None:
        model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)

    try:
        for cudnn in (True, False):
            torch.backends.cuda.enable_cudnn_sdp(cudnn)
            times = [wall_seconds(step, device) for _ in range(STEPS)]
            facts = {"ms": 1000 * statistics.median(times[FIRST_STEPS:]), "gpu_ms": busy_ms(step, device), "all": times}
            rows.note(**case, cache="dynamic", cudnn=cudnn, **facts, kv_gib=uniattn_pl.kv_cache_bytes(cache) / 2**30)
    finally:
        torch.backends.cuda.enable_cudnn_sdp(True)


@torch.no_grad()
def compiled_steps(model: Any, batch: int, context: int, device: str) -> dict[str, Any]:
    """Steps over a cache of a fixed length, compiled and captured in a graph on a card."""
    room = context + 2 * STEPS
    cache = filled_cache(model, context, batch, StaticCache(config=model.config, max_cache_len=room))
    backend = {"mode": "reduce-overhead"} if device == "cuda" else {"backend": "eager"}
    compiled = torch.compile(model.forward, dynamic=False, **backend)
    ids, position = token_ids(model, batch, 1), torch.tensor([[context]], device=model.device)

    def step() -> None:
        compiled(input_ids=ids, position_ids=position, past_key_values=cache, use_cache=True, logits_to_keep=1)
        position.add_(1)

    try:
        times = [wall_seconds(step, device) for _ in range(STEPS)]
        facts = {"ms": 1000 * statistics.median(times[FIRST_STEPS:]), "gpu_ms": busy_ms(step, device), "all": times}
    finally:
        torch.compiler.reset()
    return {**facts, "kv_gib": uniattn_pl.kv_cache_bytes(cache) / 2**30}


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
        if kind == "static":  # all of it is allocated by the first token
            cache = StaticCache(config=model.config, max_cache_len=context)
        else:
            cache = filled_cache(model, context, 1, DynamicCache(config=model.config))
            cache.batch_repeat_interleave(count)
        model(token_ids(model, count, 1), past_key_values=cache, use_cache=True, logits_to_keep=1)
    except torch.cuda.OutOfMemoryError:
        return False
    finally:
        del cache
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return True
