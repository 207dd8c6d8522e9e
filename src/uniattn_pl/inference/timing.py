"""One measurement of one model: time to first token, time per further token, bytes of cache, peak memory.

Conventions of the serving benchmarks: TTFT is the prefill and the first argmax, logits of the last position only,
tokenisation left out; TPOT is the rest of the time over the further tokens; random token ids, no end of sequence.
"""

from __future__ import annotations

import ctypes
import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel

from uniattn_pl.inference.compiled_decoding import compiled_step, static_cache
from uniattn_pl.inference.prefill import prefill
from uniattn_pl.modeling.caches.plan_cache import kv_cache_bytes
from uniattn_pl.plan import LayerPlan

STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")
RESET_PEAK = "5"
RECORDING_STEPS = 3


@dataclass(frozen=True)
class TimedModel:
    """A model to measure: `chunked` prompts go through in chunks of queries, others in one forward.

    `compiled`: it decodes by a compiled step over a static cache, which is filled with the prompt a second time.
    """

    label: str
    model: PreTrainedModel
    plan: LayerPlan
    chunked: bool
    chunk_size: int | None = None
    compiled: bool = False

    def prefill(self, ids: torch.Tensor, cache: Any = None) -> Any:
        """The output for the last of the prompt's tokens [B, L], with a filled cache: the one given, or a new one."""
        if self.chunked:
            return prefill(self.model, ids, past_key_values=cache, chunk_size=self.chunk_size)
        with torch.no_grad():
            cache = DynamicCache(config=self.model.config) if cache is None else cache
            return self.model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)


@dataclass(frozen=True)
class Timing:
    """Seconds to the first token, seconds per further token, and bytes of keys and values after the prompt."""

    ttft_s: float
    tpot_s: float
    kv_bytes: int


def measure(subject: TimedModel, ids: torch.Tensor, new_tokens: int) -> Timing:
    """Prefill [B, L] tokens and decode `new_tokens` greedily, the first of them by the prefill."""
    device = ids.device
    with torch.no_grad():
        start = _now(device)
        output = subject.prefill(ids)
        token = output.logits[:, -1:].argmax(-1)
        first = _now(device)
        cache = output.past_key_values
        kv_bytes = kv_cache_bytes(cache)
        step: Any = subject.model
        if subject.compiled:
            step, cache = _compiled(subject, ids, new_tokens)
        begin = _now(device)
        for _ in range(new_tokens - 1):
            output = step(input_ids=token, past_key_values=cache, use_cache=True, logits_to_keep=1)
            token = output.logits[:, -1:].argmax(-1)
        end = _now(device)
    return Timing(first - start, (end - begin) / max(new_tokens - 1, 1), kv_bytes)


def _compiled(subject: TimedModel, ids: torch.Tensor, new_tokens: int) -> tuple[Callable[..., Any], Any]:
    """The compiled step, and a static cache that holds the prompt [B, L] and has room for its continuation.

    Steps that compile and record are taken and undone; a recorded graph belongs to the memory of its cache.
    """
    step, cache = compiled_step(subject.model), static_cache(subject.model, ids.shape[1] + new_tokens)
    token = subject.prefill(ids, cache).logits[:, -1:].argmax(-1)
    for _ in range(min(RECORDING_STEPS, new_tokens - 1)):
        step(input_ids=token, past_key_values=cache, use_cache=True, logits_to_keep=1)
    cache.reset()
    subject.prefill(ids, cache)
    return step, cache


def peak_memory(subject: TimedModel, ids: torch.Tensor) -> int | None:
    """Bytes that a prefill of [B, L] tokens needs at its peak, above what the process holds before it.

    On CUDA what the allocator gave out, on a Linux CPU what the process had resident; None elsewhere.
    """
    if ids.device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(ids.device)
        before = torch.cuda.memory_allocated(ids.device)
        subject.prefill(ids)
        return torch.cuda.max_memory_allocated(ids.device) - before
    if ids.device.type != "cpu" or not CLEAR_REFS.exists():
        return None
    gc.collect()
    _give_back_freed_memory()
    CLEAR_REFS.write_text(RESET_PEAK)
    before = _resident("VmRSS")
    subject.prefill(ids)
    return _resident("VmHWM") - before


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _give_back_freed_memory() -> None:
    """Return the memory that earlier measurements freed, so that it does not count as held before the next one."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _resident(field: str) -> int:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024
