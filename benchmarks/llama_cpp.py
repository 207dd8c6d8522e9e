"""Tokens a second of prompts and of answers, as llama.cpp itself measures them, for GGUF files side by side.

    python benchmarks/llama_cpp.py stock=stock.gguf dropped=dropped.gguf
    python benchmarks/llama_cpp.py stock=stock.gguf dropped=dropped.gguf --prompt 4096 --threads 1

One server of the package xllamacpp (llama.cpp as a wheel) for each file, all in one process, no cache of prompts. Each
round sends every server the same random ids, in an order that rotates, and takes the rates of llama.cpp's own `timings`
of the answer: `prompt_per_second` and `predicted_per_second`. The first round warms up.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import urllib.request
from typing import Any


def started(file: str, arguments: argparse.Namespace) -> Any:
    import xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.model.path = file
    parameters.n_ctx, parameters.n_parallel = arguments.prompt + arguments.new + 64, 1
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = arguments.threads
    parameters.verbosity = 0
    return xllamacpp.Server(parameters)


def rates(server: Any, arguments: argparse.Namespace) -> tuple[float, float]:
    """Tokens a second of the prompt, and of the answer, by llama.cpp's clock."""
    numbers = random.Random(0)
    body = {
        "prompt": [numbers.randrange(100, 30_000) for _ in range(arguments.prompt)],
        "n_predict": arguments.new,
        "temperature": 0.0,
        "top_k": 1,
        "cache_prompt": False,
        "ignore_eos": True,
    }
    request = urllib.request.Request(server.listening_address + "/completion", json.dumps(body).encode(), method="POST")
    request.add_header("Content-Type", "application/json")
    with urllib.request.urlopen(request) as response:
        timings = json.loads(response.read())["timings"]
    return timings["prompt_per_second"], timings["predicted_per_second"]


def spread(own: list[float], first: list[float]) -> str:
    ratios = [a / b for a, b in zip(own, first, strict=True)]
    return f"{statistics.median(own):8.1f}  {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="NAME=FILE.gguf")
    parser.add_argument("--prompt", type=int, default=1024)
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=6)
    arguments = parser.parse_args()

    servers = {name: started(file, arguments) for name, file in (word.split("=", 1) for word in arguments.models)}
    names, taken = list(servers), {name: list[tuple[float, float]]() for name in servers}
    for turn in range(arguments.rounds + 1):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            taken[name].append(rates(servers[name], arguments))
    print(
        f"{'model':<20} {'prompt tok/s':>12}  / first, round by round   {'answer tok/s':>12}  / first, round by round"
    )
    for name in names:
        columns = [[rate[part] for rate in taken[name][1:]] for part in (0, 1)]
        firsts = [[rate[part] for rate in taken[names[0]][1:]] for part in (0, 1)]
        print(f"{name:<24} " + "      ".join(spread(own, first) for own, first in zip(columns, firsts, strict=True)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
