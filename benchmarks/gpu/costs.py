"""What plans cost on one GPU, on the product's public interface: correctness, time to first token, decoding, memory.

    python benchmarks/gpu/costs.py RESULT.json [--tiny]   # three minutes on an H100; --tiny: small shapes, anywhere

The models have the shape of Llama-3.1-8B and random weights, on which costs do not depend. Every line is measured by
itself, printed and written at once; one that fails says so and the next goes on. Decoding is measured with and without
cuDNN's attention, which plans anew for every length it sees, and once by what the GPU alone was busy with.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import uniattn_pl
from uniattn_pl.inference.prefill import prefill

LLAMA_8B = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
}
TINY = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 512,
    "max_position_embeddings": 4096,
}
DROPPED = [18, 21, 19, 20, 26, 22, 29, 28, 27, 25, 23, 24]  # paper Table 6, counted from 0
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
STEPS = 12  # of decoding; the median leaves the first two out


class Results:
    """Rows of one run, printed and written as they come."""

    def __init__(self, file: Path) -> None:
        self.file, self.rows = file, list[dict[str, Any]]()

    def note(self, **row: Any) -> None:
        """Keep one row."""
        self.rows.append(row)
        print(json.dumps(row), flush=True)
        card = torch.cuda.get_device_name(0) if DEVICE == "cuda" else "cpu"
        self.file.write_text(json.dumps({"device": card, "torch": torch.__version__, "rows": self.rows}, indent=1))

    def attempt(self, name: str, work: Callable[[], None]) -> None:
        """Run `work`; what fails is a row as well."""
        try:
            work()
        except Exception as error:  # whatever it is, it is the finding
            self.note(what=name, failed=f"{type(error).__name__}: {str(error)[:300]}")
        gc.collect()
        if DEVICE == "cuda":
            torch.cuda.empty_cache()


def build(
    shape: dict[str, int],
    architecture: str | None,
    dtype: torch.dtype = torch.bfloat16,
    reuse: str = "auto",
    **options: Any,
) -> Any:
    """A model of random weights on the device; `architecture` None: as transformers has it."""
    torch.manual_seed(0)
    with torch.device(DEVICE):
        model = LlamaForCausalLM(LlamaConfig(**shape, attn_implementation="sdpa")).to(dtype).eval()
    if architecture is not None:
        uniattn_pl.apply_architecture(model, architecture, **options)
        model.to(device=DEVICE, dtype=dtype)
        model.config.reuse_mode = reuse
    return model


def seconds(work: Callable[[], Any]) -> float:
    """Wall time of `work`, the device's included."""
    _wait()
    start = time.perf_counter()
    work()
    _wait()
    return time.perf_counter() - start


def _wait() -> None:
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def busy_ms(work: Callable[[], Any]) -> float | None:
    """Milliseconds that the GPU computes during `work`, gaps between kernels left out; None on a CPU."""
    if DEVICE != "cuda":
        return None
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        work()
        _wait()
    return sum(event.device_time_total for event in profile.key_averages()) / 1000


def correctness(results: Results) -> None:
    """Kept maps, replayed ones and chunks against one forward; steps with a cache against none."""
    small = {**TINY, "hidden_size": 256, "num_attention_heads": 8}
    cases: dict[str, dict[str, Any]] = {
        "uniattn": {"superblock_size": 4, "num_superblocks": 1},
        "cla": {"superblock_size": 4, "num_superblocks": 1},
        "llmdrop": {"layers": [5, 6], "compensation": True},
    }
    ids = torch.randint(0, small["vocab_size"], (2, 96), device=DEVICE)
    for dtype in (torch.float32, torch.bfloat16):
        for name, options in cases.items():

            def work(name: str = name, options: dict[str, Any] = options, dtype: torch.dtype = dtype) -> None:
                model = build(small, name, dtype, **options)
                for parameter in (p for n, p in model.named_parameters() if ".w_c." in n):
                    torch.nn.init.normal_(parameter, std=0.02)
                differences = {}
                with torch.no_grad():
                    full = model(ids).logits.float()
                    for mode in ("materialise", "replay", "auto"):
                        model.config.reuse_mode = mode
                        differences[mode] = (model(ids).logits.float() - full).abs().max().item()
                    last = prefill(model, ids, chunk_size=32).logits[:, -1].float()
                    differences["chunks"] = (last - full[:, -1]).abs().max().item()
                    greedy = {"max_new_tokens": 16, "do_sample": False, "pad_token_id": 0}
                    same = torch.equal(model.generate(ids, **greedy), model.generate(ids, use_cache=False, **greedy))
                results.note(what="correct", model=name, dtype=str(dtype), differences=differences, cached_equals=same)

            results.attempt(f"correct {name} {dtype}", work)


def first_token(results: Results, name: str, model: Any, length: int) -> None:
    """The median of three prefills after one, and the peak of memory."""
    ids = torch.randint(0, model.config.vocab_size, (1, length), device=DEVICE)
    if DEVICE == "cuda":
        torch.cuda.reset_peak_memory_stats()

    def work() -> Any:
        with torch.inference_mode():
            return model(ids, logits_to_keep=1, use_cache=True) if name == "stock" else prefill(model, ids)

    times = [seconds(work) for _ in range(4)]
    peak = torch.cuda.max_memory_allocated() / 2**30 if DEVICE == "cuda" else None
    kv_bytes = uniattn_pl.kv_cache_bytes(work().past_key_values)
    ttft = statistics.median(times[1:])
    results.note(what="ttft", model=name, tokens=length, seconds=ttft, all=times, peak_gib=peak, kv_bytes=kv_bytes)


def decoding(results: Results, name: str, model: Any, batch: int, context: int) -> None:
    """Steps of one token over a cache, filled in the same chunks for every model."""
    ids = torch.randint(0, model.config.vocab_size, (batch, context), device=DEVICE)
    cache: Any = None
    with torch.inference_mode():
        for start in range(0, context, 1024):
            part = ids[:, start : start + 1024]
            cache = model(part, past_key_values=cache, use_cache=True, logits_to_keep=1).past_key_values

        def step() -> None:
            model(ids[:, :1], past_key_values=cache, use_cache=True)

        for cudnn in (True, False):
            torch.backends.cuda.enable_cudnn_sdp(cudnn)
            times = [seconds(step) for _ in range(STEPS)]
            ms, busy = 1000 * statistics.median(times[2:]), busy_ms(step)
            facts = {"batch": batch, "context": context, "cudnn": cudnn, "ms": ms, "gpu_ms": busy, "all": times}
            results.note(what="tpot", model=name, **facts, kv_gib=uniattn_pl.kv_cache_bytes(cache) / 2**30)
    torch.backends.cuda.enable_cudnn_sdp(True)


def main(file: Path, *, tiny: bool) -> None:
    """Correctness first, then the costs of every model."""
    results = Results(file)
    correctness(results)
    shape = TINY if tiny else LLAMA_8B
    blocks = {"superblock_size": 2 if tiny else 4, "num_superblocks": 2 if tiny else 4}
    models: dict[str, dict[str, Any]] = {
        "stock": {"architecture": None},
        "uniattn": {"architecture": "uniattn", **blocks},
        "uniattn without W_c": {"architecture": "uniattn", **blocks, "compensation": False},
        "uniattn, maps kept": {"architecture": "uniattn", **blocks, "reuse": "materialise"},
        "cla": {"architecture": "cla", **blocks},
        "llmdrop": {"architecture": "llmdrop", "layers": [5, 7] if tiny else DROPPED},
    }
    for name, options in models.items():

        def work(name: str = name, options: dict[str, Any] = options) -> None:
            model = build(shape, **options)
            for length in (64, 256) if tiny else (2048, 8192, 32768):
                results.attempt(
                    f"ttft {name} {length}", lambda length=length: first_token(results, name, model, length)
                )
            for batch, context in ((1, 64), (4, 64)) if tiny else ((1, 8192), (32, 8192)):
                case = f"tpot {name} {batch}x{context}"
                results.attempt(case, lambda b=batch, c=context: decoding(results, name, model, b, c))

        results.attempt(name, work)
    print("done,", sum("failed" in row for row in results.rows), "failed")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--tiny", action="store_true")
    arguments = parser.parse_args()
    main(arguments.file, tiny=arguments.tiny)
