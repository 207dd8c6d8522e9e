"""Stock llama.cpp over GGUF files, in a process of its own: `run_engine(jobs)` gives an answer per job.

A job is {"file", "cells", "prompts": lists of ids, "predict", "texts": to be made ids, "messages": a chat}. As a script
it reads jobs from a file, writes answers to another, and leaves llama.cpp's log on stderr.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

Job = dict[str, Any]
MARK = "== job "
CACHE = re.compile(r"llama_kv_cache: size = +([\d.]+) MiB \( *(\d+) cells")


def run_engine(jobs: list[Job]) -> list[Job]:
    """Answers: `top` (ten likeliest first tokens of each prompt, id -> log-probability), `tokens` (of each prompt, what
    follows greedily), `ids` (of each text), `chat` (the prompt a chat comes to), `cache_mib` for `cells` of float32."""
    with tempfile.TemporaryDirectory() as folder:
        given, answered = Path(folder) / "jobs.json", Path(folder) / "answers.json"
        given.write_text(json.dumps(jobs))
        done = subprocess.run(
            [sys.executable, __file__, str(given), str(answered)], capture_output=True, text=True, errors="replace"
        )
        assert done.returncode == 0, done.stderr[-3000:]
        answers: list[Job] = json.loads(answered.read_text())
    for answer, log in zip(answers, done.stderr.split(MARK)[1:], strict=True):
        found = CACHE.findall(log)
        answer["cache_mib"] = float(found[-1][0])
        answer["cells"] = int(found[-1][1])
    return answers


def _main() -> None:
    given, answered = map(Path, sys.argv[1:])
    answers = []
    for index, job in enumerate(json.loads(given.read_text())):
        os.write(2, f"\n{MARK}{index}\n".encode())
        answers.append(_answer(job))
    answered.write_text(json.dumps(answers))


def _answer(job: Job) -> Job:
    import urllib.request

    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.n_parallel = job["file"], job.get("cells", 256), 1
    params.cpuparams.n_threads, params.warmup, params.verbosity = 1, False, 4
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    server = xllamacpp.Server(params)

    def post(path: str, body: Job) -> Job:
        request = urllib.request.Request(server.listening_address + path, json.dumps(body).encode(), method="POST")
        request.add_header("Content-Type", "application/json")
        with urllib.request.urlopen(request) as response:
            answer: Job = json.loads(response.read())
        return answer

    answer: Job = {"top": [], "tokens": []}
    for prompt in job.get("prompts", []):
        options = {"temperature": 0.0, "top_k": 1, "cache_prompt": False, "return_tokens": True, "ignore_eos": True}
        asked = {"prompt": prompt, "n_predict": job["predict"], "n_probs": 10, **options}
        said = post("/completion", asked)
        steps = said["completion_probabilities"]
        answer["top"].append({str(entry["id"]): entry["logprob"] for entry in steps[0]["top_logprobs"]})
        answer["tokens"].append([step["id"] for step in steps])
    answer["ids"] = [
        post("/tokenize", {"content": text, "add_special": True})["tokens"] for text in job.get("texts", [])
    ]
    if "messages" in job:
        answer["chat"] = post("/apply-template", {"messages": job["messages"]})["prompt"]
    return answer


if __name__ == "__main__":
    _main()
