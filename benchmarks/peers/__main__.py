"""UniAttn and its peers in one run: the same prompts, the same model, the same machine, each in its own environment.

    python -m benchmarks.peers env                       # once: the environments, pinned (make peers-env)
    python -m benchmarks.peers prepare                   # once: rows, questions, models by closed form
    python -m benchmarks.peers run --parts loss retrieval --out FILE.json
    python -m benchmarks.peers run --parts times --into FILE.json      # on a machine that does nothing else
    python -m benchmarks.peers table --out FILE.json

`run --quick` measures all of it in small, to see that every environment works. README.md beside this file says what
each method is, and what is fair and what is not.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.peers.environment_setup import ENVIRONMENTS, HERE, ROOT, code_of, install, python_of
from benchmarks.peers.render import table

PLACE, INPUTS = Path(".venv-peers"), Path("runs/peers/inputs")
OUT = Path("runs/peers/result.json")
PARTS = ("loss", "retrieval", "times")


def main() -> int:
    arguments = _parser().parse_args()
    if arguments.action == "env":
        for name in arguments.environments:
            print(f"{name} ...", flush=True)
            install(PLACE, name, dict(arguments.code).get(name))
    elif arguments.action == "prepare":
        from benchmarks.peers.inputs import prepare

        prepare(arguments.inputs, arguments.data, arguments.inputs.parent, rows=arguments.rows)
    elif arguments.action == "run":
        print(table(run(arguments)))
    else:
        print(table(json.loads((arguments.into or arguments.out).read_text(encoding="utf-8"))))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("action", choices=("env", "prepare", "run", "table"))
    add("--environments", nargs="+", choices=list(ENVIRONMENTS), default=list(ENVIRONMENTS), metavar="NAME",
        help=f"of {', '.join(ENVIRONMENTS)}; default: all")  # fmt: skip
    add("--code", nargs="+", default=[], type=_pair, metavar="NAME=REPOSITORY",
        help="env: where git finds the code of a peer; default: its address on the net")  # fmt: skip
    add("--inputs", type=Path, default=INPUTS, help=f"folder of rows, questions and models; default: {INPUTS}")
    add("--data", default=_default_data(), help="prepare: the PMC rows (uniattn-pl data pmc-1000 builds them)")
    add("--rows", type=int, default=100, help="held-out rows whose responses are scored; default: 100")
    add("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="run: what is measured; default: all")
    add("--only", nargs="+", default=[], metavar="WORD", help="run: methods whose names have one of these, and stock")
    add("--trials", nargs=2, type=int, default=[4, 1], metavar=("AT_512", "AT_4096"),
        help="run: texts for each kind of question and depth; default: 4 1")  # fmt: skip
    add("--lengths", nargs="+", type=int, default=[512, 4096], help="run: prompts of which times are taken")
    add("--new-tokens", type=int, default=16, help="run: tokens of an answer that is timed; default: 16")
    add("--rounds", type=int, default=3, help="run: times are taken so often; default: 3")
    add("--threads", type=int, default=int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)),
        help="run: default: OMP_NUM_THREADS, or the cores")  # fmt: skip
    add("--quick", action="store_true", help="run: 2 rows, 1 text at 512 tokens, times of 256 tokens, one round")
    add("--out", type=Path, default=OUT, help=f"run, table: a new result file; default: {OUT}")
    add("--into", type=Path, help="run: an older result file that these parts are added to")
    return parser


def _pair(word: str) -> tuple[str, str]:
    name, _, repository = word.partition("=")
    if name not in ENVIRONMENTS or not repository:
        raise argparse.ArgumentTypeError(f"{word}: not one of {', '.join(ENVIRONMENTS)} with = and a repository")
    return name, repository


def _default_data() -> str:
    return f"{os.environ.get('UNIATTN_PL_DATA', '../shared/data/train')}/pmc_llama_instructions_1000.json"


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure in every environment; the result is written after each, so that one that fails costs no other."""
    if arguments.quick:
        arguments.rows, arguments.trials, arguments.lengths, arguments.rounds = 2, [1, 0], [256], 1
    target = arguments.into or arguments.out
    result: dict[str, Any] = {"environments": {}}
    if arguments.into:
        result = json.loads(target.read_text(encoding="utf-8"))
    target.parent.mkdir(parents=True, exist_ok=True)
    for name in arguments.environments:
        taken = provenance(arguments)
        found = measure_in(name, arguments, target)
        if found is None:
            continue
        known = result["environments"].setdefault(name, {**found, "methods": {}})
        known |= {f"{part} taken": taken for part in arguments.parts}
        for method, entry in found["methods"].items():
            known["methods"].setdefault(method, {}).update(entry)
        target.write_text(json.dumps(result, indent=1), encoding="utf-8")
    return result


def measure_in(name: str, arguments: argparse.Namespace, target: Path) -> dict[str, Any] | None:
    """Let the Python of an environment measure; what it has written, if anything."""
    written, job_file = target.with_suffix(f".{name}.part"), target.with_suffix(f".{name}.job")
    code = code_of(PLACE, name)
    job = {
        "environment": name,
        "inputs": str(arguments.inputs.resolve()),
        "result": str(written.resolve()),
        "code": str(code.resolve()) if code else None,
        "trials": {"512": arguments.trials[0], "4096": arguments.trials[1]},
        **{key: getattr(arguments, key) for key in ("parts", "only", "rows", "lengths", "new_tokens", "rounds")},
    }
    job_file.write_text(json.dumps(job), encoding="utf-8")
    settings = {"OMP_NUM_THREADS": str(arguments.threads), "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}
    paths = [str(ROOT), *([str(ROOT / "src")] if name == "product" else [])]
    surroundings = {**os.environ, **settings, "PYTHONPATH": os.pathsep.join(paths)}
    command = [str(python_of(PLACE, name).absolute()), "-m", "benchmarks.peers.worker", str(job_file.resolve())]
    written.unlink(missing_ok=True)
    ended = subprocess.run(command, env=surroundings, cwd=ROOT, check=False)
    if ended.returncode:
        print(f"{name}: the worker ended with {ended.returncode}; what it said stands above.", file=sys.stderr)
    if not written.exists():
        return None
    found: dict[str, Any] = json.loads(written.read_text(encoding="utf-8"))
    written.unlink()
    job_file.unlink()
    return found


def provenance(arguments: argparse.Namespace) -> dict[str, Any]:
    """When, on what and by which command, with the load of the machine before it began."""
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "load_before": os.getloadavg()[0],
        "command": " ".join(["python -m benchmarks.peers", *sys.argv[1:]]),
        "threads": arguments.threads,
        "commit": _commit(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _commit() -> str:
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=HERE, capture_output=True, text=True, check=False)
    return done.stdout.strip()


if __name__ == "__main__":
    raise SystemExit(main())
