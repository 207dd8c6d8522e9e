"""Kills one fit at random points again and again and compares what comes out with a fit that was left alone.

    python benchmarks/soak.py --kills 50 --seed 0

Each attempt is a forked process that runs the same `fit` command and is sent SIGKILL after a random time, drawn so
that the kills spread over the whole fit; then it is resumed. Every attempt that is killed counts; when a fit
finishes, its final weights and its MLflow history are compared with the reference and the next fit begins. Ends with
"N / N" when all agree, exit code 1 otherwise. Bounded by --minutes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

CONFIG = """
name: soak
model: {source: tiny-llama, dtype: float32}
architecture: {name: uniattn, superblock_size: 3, num_superblocks: 1}
data: {source: rows.jsonl, validation_size: 4}
calibration: {num_samples: 8, held_out_samples: 2, batch_size: 2}
training:
  batch_size: 4
  micro_batch_size: 2
  checkpoint_every_steps: 2
  stage1: {learning_rate: 1.0e-3, max_epochs: 6}
  stage2: {learning_rate: 1.0e-3, max_epochs: 6}
  early_stop: {patience: 100}
trainer: {accelerator: cpu, devices: 1}
evaluation: {num_samples: 4}
"""
ROWS = 24
TIMED = ("tokens_per_second", "step_seconds")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=15.0, help="give up after this long")
    arguments = parser.parse_args()
    _import_everything()
    draw = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory(prefix="soak-") as root:
        return _soak(Path(root), arguments.kills, draw, time.monotonic() + 60 * arguments.minutes)


def _import_everything() -> None:
    """Once, so that attempts are forks that start in milliseconds."""
    import matplotlib.backends.backend_agg  # noqa: F401
    import mlflow.store.tracking.sqlalchemy_store  # noqa: F401
    import torch

    import uniattn_pl.training.fit  # noqa: F401

    torch.set_num_threads(1)  # threads do not survive a fork


def _soak(root: Path, wanted: int, draw: random.Random, deadline: float) -> int:
    started = time.monotonic()
    reference = _folder(root, "reference")
    if _attempt(reference, None) != 0:
        print((reference / "log.txt").read_text())
        return 1
    alone = time.monotonic() - started
    expected = _outcome(reference)
    print(f"a fit left alone takes {alone:.1f} s; {len(expected['history'])} metrics, weights {expected['weights']}")
    kills, fits, wrong = 0, 0, 0
    while kills < wanted and time.monotonic() < deadline:
        folder, before = _folder(root, f"fit-{fits}"), kills
        # the kills of one fit are spread over it: a resumed one takes up where the last left off
        while True:
            aimed = kills < wanted
            code = _attempt(folder, draw.uniform(0.0, alone / 3) if aimed else None)
            if code == 0:
                break
            if code != -signal.SIGKILL:
                print(f"fit {fits}: an attempt ended with {code}:\n{(folder / 'log.txt').read_text()[-3000:]}")
                return 1
            kills += 1
        fits += 1
        problems = _differences(expected, _outcome(folder))
        wrong += (kills - before) * bool(problems)
        print(f"fit {fits}: killed {kills - before} times, {'; '.join(problems) or 'identical'}", flush=True)
    seconds = time.monotonic() - started
    print(
        f"{kills - wrong} / {kills} kill points ended with identical weights and history ({fits} fits, {seconds:.0f} s)"
    )
    return 0 if kills >= wanted and not wrong else 1


def _folder(root: Path, name: str) -> Path:
    folder = root / name
    folder.mkdir()
    (folder / "soak.yaml").write_text(CONFIG, encoding="utf-8")
    rows = [{"instruction": f"Count to {n % 5}.", "input": "", "output": "1 2 3 4 5"[: n % 5 + 2]} for n in range(ROWS)]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return folder


def _attempt(folder: Path, seconds: float | None) -> int:
    """Run the fit in a fork, killed after `seconds` (None: left alone); returns its exit code."""
    child = os.fork()
    if child == 0:
        _child(folder)
    timer = None
    if seconds is not None:
        timer = threading.Timer(seconds, os.kill, (child, signal.SIGKILL))
        timer.start()
    _, status = os.waitpid(child, 0)
    if timer is not None:
        timer.cancel()
    return os.waitstatus_to_exitcode(status)


def _child(folder: Path) -> None:
    os.chdir(folder)
    log = os.open("log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    from uniattn_pl.cli import main as command_line

    os._exit(command_line(["fit", "--config", "soak.yaml"]))


def _outcome(folder: Path) -> dict[str, Any]:
    """The final weights' digest and the history of every metric that no clock has measured."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{folder}/mlruns/mlflow.db")
    runs = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    history = {
        key: [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, key)]
        for run in runs
        for key in run.data.metrics
    }
    timed = {key: [step for step, _ in points] for key, points in history.items() if key.endswith(TIMED)}
    weights = hashlib.sha256((folder / "runs/soak/final/model.safetensors").read_bytes()).hexdigest()[:12]
    return {"weights": weights, "runs": len(runs), "history": {**history, **timed}}


def _differences(expected: dict[str, Any], found: dict[str, Any]) -> list[str]:
    problems = []
    if found["weights"] != expected["weights"]:
        problems.append("other weights")
    if found["runs"] != 1:
        problems.append(f"{found['runs']} MLflow runs")
    keys = expected["history"].keys() | found["history"].keys()
    different = sorted(k for k in keys if expected["history"].get(k) != found["history"].get(k))
    if different:
        problems.append(f"other history of {', '.join(different)}")
    return problems


if __name__ == "__main__":
    sys.exit(main())
