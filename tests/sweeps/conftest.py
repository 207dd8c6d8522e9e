"""A small sweep in a folder of its own, run by the driver."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
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
    """A working folder with a config `small.yaml`, whose sweep section is given."""

    def __init__(self, folder: Path, sweep: str) -> None:
        self.folder = folder
        (folder / "rows.jsonl").write_text(ROWS, encoding="utf-8")
        self.write(sweep)

    def write(self, sweep: str) -> None:
        (self.folder / "small.yaml").write_text(CONFIG + sweep, encoding="utf-8")

    def drive(self, scenario: str, *words: str) -> subprocess.CompletedProcess[str]:
        """Run `sweep` under the driver."""
        driver = [sys.executable, str(Path(__file__).with_name("sweep_driver.py")), scenario]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        return subprocess.run(
            [*driver, "sweep", "--config", "small.yaml", *words],
            cwd=self.folder,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=200,
        )

    def events(self) -> list[str]:
        """`start FOLDER` and `end FOLDER` of every fit, in order."""
        return (self.folder / "events.txt").read_text().splitlines()

    def runs(self) -> list[Run]:
        """Every MLflow run."""
        client = MlflowClient(f"sqlite:///{self.folder}/mlruns/mlflow.db")
        (experiment,) = [e for e in client.search_experiments() if e.name == "uniattn_pl"]
        return list(client.search_runs([experiment.experiment_id]))

    def point(self, name: str) -> Path:
        return self.folder / "runs/small" / name


@pytest.fixture
def small(tmp_path: Path) -> SmallSweep:
    return SmallSweep(tmp_path, "")
