"""Runs under vLLM's interpreter: engines, one after another in one process, and what they answered, as JSON.

    python engine_jobs.py JOBS.json RESULTS.json

A job is {"name", "folder", "engine": {...}, "rounds": [[{"prompt": [ids], ...sampling}]]}: the requests of a round go
in together, and the rounds one after another.
"""

from __future__ import annotations

import gc
import itertools
import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1"}

NUMBERS = itertools.count()
ENGINE = {
    "dtype": "float32",
    "enforce_eager": True,
    "skip_tokenizer_init": True,
    "max_model_len": 512,
    "max_num_seqs": 32,
    "max_num_batched_tokens": 64,  # of prompts of 200 tokens: every one in chunks
    "block_size": 32,
    "kv_cache_memory_bytes": 8 << 20,
}


def run(job: dict[str, Any]) -> dict[str, Any]:
    """One engine's answers, or why there was none."""
    from vllm import EngineArgs, LLMEngine

    try:
        engine = LLMEngine.from_engine_args(EngineArgs(model=job["folder"], **ENGINE | job.get("engine", {})))
    except Exception as error:
        return {"refused": f"{type(error).__name__}: {error}"}
    core: Any = engine.engine_core
    scheduler = core.engine_core.scheduler
    given_way: list[None] = []
    give_way = scheduler._preempt_request
    scheduler._preempt_request = lambda *words, **named: (given_way.append(None), give_way(*words, **named))
    try:
        return {
            "rounds": [answers(engine, scheduler, requests) for requests in job["rounds"]],
            "given_way": len(given_way),
            "tokens": engine.vllm_config.cache_config.kv_cache_size_tokens,
            "block_bytes": scheduler.kv_cache_config.kv_cache_tensors[0].size // scheduler.kv_cache_config.num_blocks,
        }
    finally:
        core.shutdown()


def answers(engine: Any, scheduler: Any, requests: list[dict[str, Any]]) -> dict[str, Any]:
    """What the requests of a round were answered, and the most blocks that they held together in the last steps."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    for request in requests:
        sampling = {key: value for key, value in request.items() if key != "prompt"}
        params = SamplingParams(detokenize=False, ignore_eos=True, output_kind=RequestOutputKind.FINAL_ONLY, **sampling)
        engine.add_request(str(next(NUMBERS)), {"prompt_token_ids": request["prompt"]}, params)
    pool, done, held = scheduler.kv_cache_manager.block_pool, {}, 0
    while engine.has_unfinished_requests():
        for output in engine.step():
            if output.finished:
                done[int(output.request_id)] = output
        if engine.has_unfinished_requests():
            held = pool.num_gpu_blocks - 1 - pool.get_num_free_blocks()  # without the one that stands for none
    return {"held_blocks": held, "answers": [answer(done[key]) for key in sorted(done)]}


def answer(output: Any) -> dict[str, Any]:
    first = output.outputs[0].logprobs
    return {
        "tokens": [list(part.token_ids) for part in sorted(output.outputs, key=lambda part: part.index)],
        "first": {str(token): entry.logprob for token, entry in first[0].items()} if first else {},
        "cached": output.num_cached_tokens,
    }


if __name__ == "__main__":
    import vllm.entrypoints.llm  # noqa: F401  # so that what it makes is left alone below

    gc.freeze()  # an engine collects garbage seven times as it comes and goes: of vLLM's own modules there is none
    jobs = json.loads(Path(sys.argv[1]).read_text())
    Path(sys.argv[2]).write_text(json.dumps({job["name"]: run(job) for job in jobs}))
