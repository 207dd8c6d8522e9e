"""A small sweep in a folder of its own, run by the driver, for the tests beside it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

from mlflow.entities import Run
from mlflow.tracking import MlflowClient
from tests.driver_environment import driver_environment

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
"""
EVALUATION = "{num_samples: 4}"  # of the milestones; nothing is evaluated after the fit
ROWS = "\n".join(
    json.dumps({"instruction": f"Count to {n}.", "input": "", "output": "1 2 3 4 5"[: n + 1]}) for n in range(12)
)


class SmallSweep:
    """A working folder with a config `small.yaml`, whose sweep section is given, and what the driver made of it."""

    def __init__(self, folder: Path, sweep: str, **sections: str) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)
        (folder / "rows.jsonl").write_text(ROWS, encoding="utf-8")
        self.write(sweep, **sections)

    def write(self, sweep: str, **sections: str) -> None:
        lines = {"evaluation": EVALUATION, "sweep": sweep, **sections}
        text = CONFIG + "".join(f"{name}: {section}\n" for name, section in lines.items())
        (self.folder / "small.yaml").write_text(text, encoding="utf-8")

    def events(self, kind: str) -> Counter[str]:
        """How often each point has come to the `start` or `end` of a fit, to `measure` or `measured`."""
        return Counter(folder for event, folder, _ in self._events() if event == kind)

    def workers(self) -> set[str]:
        """The processes that started fits."""
        return {worker for event, _, worker in self._events() if event == "start"}

    def _events(self) -> list[list[str]]:
        file = self.folder / "events.txt"
        return [line.split() for line in file.read_text().splitlines()] if file.exists() else []

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
        env=driver_environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    codes = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[") and line.endswith("]")]
    return codes, done.stdout + done.stderr
