"""Tokens that fit into vLLM's cache, and tokens a second of several requests at once, for model folders side by side.

    .venv-serving/bin/python benchmarks/serving.py stock=FOLDER uniattn=runs/my-uniattn/final
    .venv-serving/bin/python benchmarks/serving.py uniattn=FOLDER --cache-mib 256 --rounds 0    # the tokens alone

`make serving-env` comes first. One engine for each folder, all in one process. The requests of a round go in together:
random prompts, as long as `--prompt` says, and `--new` greedy tokens each; rounds of all folders in turn, in an order
that rotates. Tokens a second are those generated, over the whole round with its prompts. The engines' threads are those
of OMP_NUM_THREADS.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import time
from typing import Any

os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")


def started(folder: str, arguments: argparse.Namespace) -> Any:
    from vllm import LLM

    return LLM(
        folder,
        dtype=arguments.dtype,
        enforce_eager=True,
        skip_tokenizer_init=True,
        enable_prefix_caching=False,
        max_model_len=arguments.prompt + arguments.new,
        max_num_seqs=arguments.requests,
        kv_cache_memory_bytes=arguments.cache_mib << 20,
        seed=0,
    )


def seconds(llm: Any, arguments: argparse.Namespace) -> float:
    """How long one round takes."""
    from vllm import SamplingParams

    numbers, vocabulary = random.Random(0), llm.llm_engine.model_config.get_vocab_size()
    prompts = [
        {"prompt_token_ids": [numbers.randrange(vocabulary) for _ in range(arguments.prompt)]}
        for _ in range(arguments.requests)
    ]
    sampling = SamplingParams(temperature=0, max_tokens=arguments.new, ignore_eos=True, detokenize=False)
    start = time.perf_counter()
    llm.generate(prompts, sampling, use_tqdm=False)
    return time.perf_counter() - start


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="NAME=FOLDER")
    parser.add_argument("--cache-mib", type=int, default=256)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--requests", type=int, default=8)
    parser.add_argument("--prompt", type=int, default=448)  # with the new ones whole pages of 128
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()

    engines = {name: started(folder, arguments) for name, folder in (word.split("=", 1) for word in arguments.models)}
    names, taken = list(engines), {name: list[float]() for name in engines}
    for turn in range(arguments.rounds + 1):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            taken[name].append(seconds(engines[name], arguments) if arguments.rounds else 0.0)
    print(f"{'model':<24} {'tokens in the cache':>20} {'/ first':>8} {'tokens/s':>9}   / first, round by round")
    base = names[0]
    first = engines[base].llm_engine.vllm_config.cache_config.kv_cache_size_tokens
    for name, llm in engines.items():
        fit, rate, ratio = llm.llm_engine.vllm_config.cache_config.kv_cache_size_tokens, "-", ""
        if arguments.rounds:  # the first of the rounds warms up
            rate = f"{arguments.requests * arguments.new / statistics.median(taken[name][1:]):.1f}"
            ratios = [own / other for own, other in zip(taken[base][1:], taken[name][1:], strict=True)]
            ratio = f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"
        print(f"{name:<24} {fit:>20,} {fit / first:>8.3f} {rate:>9}   {ratio}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
