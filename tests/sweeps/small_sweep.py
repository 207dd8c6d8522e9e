"""A small sweep in a folder of its own, run by the driver, for the tests beside it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

from mlflow.entities import Run
from mlflow.tracking import MlflowClient

CONFIG = """
name: small
model: {source: tiny-llama, dtype: float32}
architecture: {name: uniattn, superblock_size: 3, num_superblocks: 1}
data: {source: rows.jsonl, validation_size: 4}
calibration: {num_samples: 4, held_out_samples: 2}
training:
  batch_size: 4
  micro_batch_size: 2
  stage1: {learning_rate: 1.0e-3}
  stage2: {learning_rate: 1.0e-3}
trainer: {accelerator: cpu, devices: 1}
evaluation: {num_samples: 4}
"""
ROWS = "\n".join(
    json.dumps({"instruction": f"Count to {n}.", "input": "", "output": "1 2 3 4 5"[: n + 1]}) for n in range(12)
)


class SmallSweep:
    """A working folder with a config `small.yaml`, whose sweep section is given, and what the driver made of it."""

    def __init__(self, folder: Path, sweep: str) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)
        (folder / "rows.jsonl").write_text(ROWS, encoding="utf-8")
        self.write(sweep)

    def write(self, sweep: str) -> None:
        (self.folder / "small.yaml").write_text(f"{CONFIG}sweep: {sweep}\n", encoding="utf-8")

    def events(self, kind: str) -> Counter[str]:
        """How often a fit of each point has reached `kind`: start or end."""
        return Counter(line.split()[1] for line in self._lines() if line.startswith(kind))

    def workers(self) -> set[str]:
        """The processes that started fits."""
        return {line.split()[2] for line in self._lines() if line.startswith("start")}

    def _lines(self) -> list[str]:
        return (self.folder / "events.txt").read_text().splitlines()

    def runs(self) -> tuple[Run, list[Run]]:
        """The sweep's MLflow run and all others."""
        client = MlflowClient(f"sqlite:///{self.folder}/mlruns/mlflow.db")
        (experiment,) = [e for e in client.search_experiments() if e.name == "uniattn_pl"]
        runs = list(client.search_runs([experiment.experiment_id]))
        (parent,) = [run for run in runs if run.data.tags.get("uniattn_pl.kind") == "sweep"]
        return parent, [run for run in runs if run is not parent]

    def point(self, name: str) -> Path:
        return self.folder / "runs/small" / name

    def table(self) -> str:
        return (self.folder / "runs/small/sweep/table.txt").read_text(encoding="utf-8")


def drive(*scenarios: tuple[SmallSweep, str]) -> tuple[list[list[int]], str]:
    """Run scenarios in the driver one after another; returns the exit codes of each, and all that was printed."""
    driver = [sys.executable, str(Path(__file__).with_name("sweep_driver.py"))]
    done = subprocess.run(
        [*driver, *(f"{small.folder}:{scenario}" for small, scenario in scenarios)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=150,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    codes = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[") and line.endswith("]")]
    return codes, done.stdout + done.stderr
