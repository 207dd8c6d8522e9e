"""Fits of a tiny model in forked processes, with faults: the client of driver.py, and a working folder to fit in."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from uniattn_pl.resilience.manifest import Manifest

CONFIG = """
name: tiny
model: {source: tiny-llama, dtype: float32}
architecture: {name: uniattn, superblock_size: 3, num_superblocks: 1}
data: {source: rows.jsonl, validation_size: 4}
calibration: {num_samples: 4, held_out_samples: 2}
training:
  batch_size: 4
  micro_batch_size: 2
  checkpoint_every_steps: 2
  stage1: {learning_rate: 1.0e-3, max_epochs: 2}
  stage2: {learning_rate: 1.0e-3, max_epochs: 2}
  early_stop: {patience: 100}
trainer: {accelerator: cpu, devices: auto}
evaluation: {num_samples: 4, texts: 0}
"""
# 12 training rows: three optimizer steps an epoch, six a stage
ROWS = "\n".join(
    json.dumps({"instruction": f"Count to {n}.", "input": "", "output": "1 2 3 4 5"[: n + 1]}) for n in range(16)
)
# what a clock measured; everything else must be the same to the last bit
CLOCKED = ("tokens_per_second", "step_seconds", "seconds_left")
TIMED = {f"stage{stage}/{name}" for stage in (1, 2) for name in CLOCKED}
RUN = Path("runs/tiny")
History = dict[str, list[tuple[int, float]]]


class Driver:
    """The process that forks fits.

    Attributes:
        small_disk: mounted for it and its fits alone; None when it was not allowed to.
    """

    def __init__(self, command: list[str], environment: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.small_disk = self._answer()

    def ask(self, **request: Any) -> list[int]:
        assert self.process.stdin is not None
        print(json.dumps(request), file=self.process.stdin, flush=True)
        return self._answer()

    def seen(self, path: Path) -> Path:
        """How this process sees a path of the driver's, whose mounts are its own."""
        return Path(f"/proc/{self.process.pid}/root", *path.parts[1:])

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()

    def _answer(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, "the driver has died"
        return json.loads(line)


@dataclass
class Fit:
    """A fit that was started."""

    driver: Driver
    folder: Path
    processes: list[int]

    def wait(self) -> Ended:
        codes = self.driver.ask(wait=self.processes)
        texts = [
            [(self.folder / f"{name}-{rank}.txt").read_text(encoding="utf-8") for rank in range(len(codes))]
            for name in ("stdout", "stderr")
        ]
        return Ended(codes, *texts)


@dataclass
class Ended:
    """How the ranks of a fit ended: exit codes (negative: signals), and what they said."""

    codes: list[int]
    stdout: list[str]
    stderr: list[str]

    def __str__(self) -> str:
        return f"{self.codes}\n" + "\n".join([*self.stdout, *self.stderr])

    def message(self, rank: int = 0) -> str:
        """The one error message of a rank; a traceback or a second one fails the test."""
        assert "Traceback" not in self.stderr[rank], self
        errors = [line for line in self.stderr[rank].splitlines() if line.startswith("error: ")]
        assert len(errors) == 1, self
        return errors[0]


@dataclass
class Work:
    """A working folder with an experiment, and the fits in it."""

    driver: Driver
    folder: Path
    elsewhere: Path | None = None  # where this process sees the run folder, if not in `folder`

    @property
    def run(self) -> Path:
        return self.elsewhere or self.folder / RUN

    def start(self, *arguments: str, ranks: int = 1, faults: list[Any] | None = None) -> Fit:
        """Start the fit, or what is left of it; `faults` are [rank, point, action]."""
        job = {
            "folder": str(self.folder),
            "arguments": ["fit", "--config", "tiny.yaml", *arguments],
            "ranks": ranks,
            "faults": faults or [],
        }
        return Fit(self.driver, self.folder, self.driver.ask(start=job))

    def fit(self, *arguments: str, ranks: int = 1, faults: list[Any] | None = None) -> Ended:
        """As `start`, to the end."""
        return self.start(*arguments, ranks=ranks, faults=faults).wait()

    def resumes(self, *arguments: str, ranks: int = 1) -> None:
        """Fit to the good end."""
        ended = self.fit(*arguments, ranks=ranks)
        assert ended.codes == [0] * ranks, ended

    def copy(self, target: Path) -> Work:
        """As it is now, to work on elsewhere."""
        shutil.copytree(self.folder, target)
        return Work(self.driver, target)

    def steps(self, stage: int) -> list[str]:
        """Names of the checkpoints of a stage."""
        return sorted(path.name for path in (self.run / f"checkpoints/stage{stage}").glob("step-*"))

    def weights(self, folder: str = "final") -> bytes:
        return (self.run / folder / "model.safetensors").read_bytes()

    def manifest(self) -> Manifest:
        manifest = Manifest.read(self.run)
        assert manifest is not None
        return manifest

    def status(self) -> str:
        """Of the one MLflow run."""
        return str(self._mlflow()[1].info.status)

    def history(self) -> History:
        """Every metric's points, without values where a clock measured them."""
        client, run = self._mlflow()
        return {
            key: [
                (point.step, 0.0 if key in TIMED else point.value)
                for point in client.get_metric_history(run.info.run_id, key)
            ]
            for key in run.data.metrics
        }

    def _mlflow(self) -> tuple[Any, Any]:
        from mlflow.tracking import MlflowClient

        client = MlflowClient(f"sqlite:///{self.folder}/mlruns/mlflow.db")
        (experiment,) = [e for e in client.search_experiments() if e.name == "uniattn_pl"]
        (run,) = client.search_runs([experiment.experiment_id])
        return client, run


def same(work: Work, reference: Work) -> None:
    """The fit ended as one that nothing happened to: the same weights bit for bit, the same history."""
    assert work.weights() == reference.weights()
    assert work.history() == reference.history()
    assert work.status() == "FINISHED"
