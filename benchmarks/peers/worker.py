"""Measures the methods of one environment, by that environment's Python: started by `python -m benchmarks.peers`."""

from __future__ import annotations

import json
import platform
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from benchmarks.peers import protocol
from benchmarks.peers.methods import chosen

PACKAGES = ("torch", "transformers", "kvpress", "hqq", "optimum-quanto", "numpy")


def main(job_file: Path) -> None:
    """Read a job, measure, and write after every part what there is, so that an end in the middle loses little."""
    job = json.loads(job_file.read_text(encoding="utf-8"))
    inputs, target = Path(job["inputs"]), Path(job["result"])
    data = json.loads((inputs / "inputs.json").read_text(encoding="utf-8"))
    torch.manual_seed(0)
    code = Path(job["code"]) if job["code"] else None
    methods = chosen(job["environment"], inputs, code, job["only"])
    found: dict[str, Any] = {"versions": _versions(), "threads": torch.get_num_threads(), "methods": {}}
    questions = [q for q in data["questions"] if q["number"] < job["trials"][str(q["length"])]]
    for method in methods:
        entry: dict[str, Any] = {"note": method.note}
        found["methods"][method.name] = entry
        for part, measure in (
            ("loss", lambda m=method: protocol.response_loss(m, data["rows"][: job["rows"]])),
            ("retrieval", lambda m=method: protocol.retrieval(m, questions)),
        ):
            if part not in job["parts"]:
                continue
            begun = time.perf_counter()
            entry[part] = measure()
            print(f"{method.name}: {part} in {time.perf_counter() - begun:.0f} s", file=sys.stderr, flush=True)
            target.write_text(json.dumps(found), encoding="utf-8")
    if "times" in job["parts"]:
        for length in job["lengths"]:
            samples = protocol.times(
                methods,
                data["random"][:length],
                new_tokens=job["new_tokens"],
                rounds=job["rounds"],
                report=lambda text: print(text, file=sys.stderr, flush=True),
            )
            for name, measured in samples.items():
                found["methods"][name].setdefault("times", {})[str(length)] = measured
            target.write_text(json.dumps(found), encoding="utf-8")


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


if __name__ == "__main__":
    main(Path(sys.argv[1]))
